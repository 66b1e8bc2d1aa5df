// The threads of a block as fibers, which go on in random order, the same on every run. Blocks begin in random order, and
// up to kResident are under way, each on a thread of the system that holds its shared memory: one of them goes on at a
// time, and after each round of its fibers any of them is next. A barrier that not all threads reach, or a warp whose
// lanes part, ends the process with a message.
//
// Under ThreadSanitizer (-fsanitize=thread) each fiber is a thread of its own to it. Only __syncthreads, atomics and the
// beginning and end of a launch order their accesses: two that a barrier should part, and none does, are reported, and so
// are two of blocks on different threads. A shuffle orders nothing, as on a GPU. `skipped` is a barrier of the sources
// that is left out, to see that it is missed.
#pragma once

#include <linux/futex.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#ifdef __SANITIZE_THREAD__
#define MERC_UNSEEN __attribute__((noinline, no_sanitize("thread")))
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#else
#define MERC_UNSEEN __attribute__((noinline))
#endif

namespace on_host {

struct Barrier {
  int arrived = 0, generation = 0;
};

struct Fiber {
  ucontext_t context;
  jmp_buf left;  // where it goes on, once it has started
  void *stack, *seen;
  dim3 index;
  unsigned exchanges;
  bool started, done = false;
};

constexpr size_t kStack = 256 << 10, kMost = 1024;

inline dim3 block_size, grid_size;

// Of one thread of the system and the block that it runs. Plain arrays: what ThreadSanitizer must not see stays out of
// instrumented templates.
struct Resident {
  int number;
  dim3 thread, block;
  Fiber* fibers[kMost];
  size_t count = 0, current = 0;
  bool moved = false;  // a barrier opened, or a fiber ended, in this round
  Barrier of_block, of_warp[32];
  uint32_t slots[kMost];
  const std::function<void()>* body;
  std::mt19937 random_order;
  char begun, ended;  // of the block
#ifdef __SANITIZE_THREAD__
  ucontext_t scheduler;
  void* scheduler_seen;
#else
  jmp_buf scheduler;
#endif
  bool running = false, under_way = false;
};

constexpr int kResident = 3;
inline Resident residents[kResident];
inline Resident* now = residents;  // whose turn it is

// Dynamic shared memory, of which a launch has so much; NaN where a block has written nothing.
constexpr size_t kDynamicShared = 99 << 10;  // the least that a chip from sm_80 on has
alignas(16) inline thread_local unsigned char dynamic_memory[kDynamicShared];
inline size_t dynamic_size = 0;

struct Place {
  const char* file;
  int line;
};
inline Place barriers[256];  // met so far
inline int barrier_count = 0, skipped = -1;

#ifdef __SANITIZE_THREAD__

MERC_UNSEEN inline void leave() {
  Fiber& fiber = *now->fibers[now->current];
  __tsan_switch_to_fiber(now->scheduler_seen, 1);
  swapcontext(&fiber.context, &now->scheduler);
}

MERC_UNSEEN inline void enter(Fiber& fiber) {
  fiber.started = true;
  __tsan_switch_to_fiber(fiber.seen, 1);
  swapcontext(&now->scheduler, &fiber.context);
}

// What happened before the first is seen by who goes on after the second.
MERC_UNSEEN inline void give(void* place) { __tsan_release(place); }
MERC_UNSEEN inline void take(void* place) { __tsan_acquire(place); }
#else

// Between fibers by jumps: unlike swapcontext they call no kernel.
MERC_UNSEEN inline void leave() {
  if (_setjmp(now->fibers[now->current]->left) == 0) {
    _longjmp(now->scheduler, 1);
  }
}

MERC_UNSEEN inline void enter(Fiber& fiber) {
  if (_setjmp(now->scheduler) == 0) {
    if (fiber.started) {
      _longjmp(fiber.left, 1);
    }
    fiber.started = true;
    setcontext(&fiber.context);
  }
}

inline void give(void*) {}
inline void take(void*) {}
#endif

MERC_UNSEEN inline void entry() {
  for (;;) {
    take(&now->begun);
    (*now->body)();
    now->fibers[now->current]->done = now->moved = true;
    give(&now->ended);
    leave();
  }
}

MERC_UNSEEN inline int alive(size_t begin, size_t end) {
  int left = 0;
  for (size_t i = begin; i < end && i < now->count; ++i) {
    left += !now->fibers[i]->done;
  }
  return left;
}

MERC_UNSEEN inline void wait(Barrier& barrier, size_t begin, size_t end) {
  const int generation = barrier.generation;
  ++barrier.arrived;
  while (barrier.generation == generation) {
    if (barrier.arrived == alive(begin, end)) {
      barrier.arrived = 0;
      ++barrier.generation;
      now->moved = true;
      return;
    }
    leave();
  }
}

MERC_UNSEEN inline void synchronize(const char* file, int line) {
  int place = 0;
  while (place < barrier_count && (barriers[place].line != line || std::strcmp(barriers[place].file, file) != 0)) {
    ++place;
  }
  if (place == barrier_count) {
    barriers[barrier_count++] = {file, line};
  }
  if (place == skipped) {
    return;
  }
  give(&now->of_block);
  wait(now->of_block, 0, now->count);
  take(&now->of_block);
}

MERC_UNSEEN inline uint32_t shuffle(uint32_t value, int source_lane) {
  const size_t self = now->current, first = self / 32 * 32;
  now->slots[self] = value;
  wait(now->of_warp[self / 32], first, first + 32);
  const uint32_t got = now->slots[first + source_lane];
  wait(now->of_warp[self / 32], first, first + 32);
  return got;
}

// What all lanes of the warp give, by lane; good until the exchange after the next.
template <class T>
MERC_UNSEEN const T* exchange(const T& mine) {
  static T given[kResident][2][kMost];
  const size_t self = now->current, first = self / 32 * 32;
  T* const place = given[now->number][now->fibers[self]->exchanges++ % 2];
  place[self] = mine;
  wait(now->of_warp[self / 32], first, first + 32);
  return place + first;
}

// The threads of the system take turns, and the caller of a launch with them. What hands the turn over orders nothing to
// ThreadSanitizer.
constexpr int kCaller = -1;
inline int turn = kCaller;
inline size_t* blocks;  // that have not begun
inline size_t blocks_left;
inline const std::function<void()>* launched;
inline char launch_begun, launch_ended;
inline std::mt19937 order_of_blocks;

MERC_UNSEEN inline void hand_over(int to) {
  __atomic_store_n(&turn, to, __ATOMIC_RELEASE);
  syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, kMost, nullptr, nullptr, 0);
}

MERC_UNSEEN inline void wait_for(int me) {
  for (int of; (of = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) != me;) {
    syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, of, nullptr, nullptr, 0);
  }
  if (me != kCaller) {
    now = &residents[me];
  }
}

// To any thread that has a block, or to the caller when none has.
MERC_UNSEEN inline void pass_on() {
  int with[kResident], some = 0;
  for (const Resident& one : residents) {
    if (one.under_way) {
      with[some++] = one.number;
    }
  }
  const int next = some == 0 ? kCaller : with[now->random_order() % some], me = now->number;
  if (next != me) {
    hand_over(next);
    wait_for(me);
  }
}

MERC_UNSEEN inline void prepare(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

MERC_UNSEEN inline void run_block(const std::function<void()>& kernel) {
  now->body = &kernel;
  now->count = size_t{block_size.x} * block_size.y;
  for (size_t i = 0; i < now->count; ++i) {
    if (now->fibers[i]) {
      continue;
    }
    now->fibers[i] = new Fiber;
    now->fibers[i]->stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
#ifdef __SANITIZE_THREAD__
    now->fibers[i]->seen = __tsan_create_fiber(0);
    prepare(*now->fibers[i]);
#endif
  }
#ifdef __SANITIZE_THREAD__
  now->scheduler_seen = __tsan_get_current_fiber();
#endif
  std::memset(dynamic_memory, 0xff, dynamic_size);
  now->of_block = {};
  for (Barrier& barrier : now->of_warp) {
    barrier = {};
  }
  std::vector<size_t> order(now->count);
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = 0; i < now->count; ++i) {
    Fiber& fiber = *now->fibers[i];
    fiber.done = false;
    fiber.exchanges = 0;
    fiber.index = dim3(i % block_size.x, i / block_size.x);
#ifndef __SANITIZE_THREAD__
    fiber.started = false;
    prepare(fiber);
#endif
  }
  give(&now->begun);
  while (alive(0, now->count) > 0) {
    now->moved = false;
    std::shuffle(order.begin(), order.end(), now->random_order);
    for (const size_t next : order) {
      now->current = next;
      if (!now->fibers[now->current]->done) {
        now->thread = now->fibers[now->current]->index;
        enter(*now->fibers[now->current]);
      }
    }
    pass_on();
    if (!now->moved) {
      std::fprintf(stderr, "cuda_on_host: the threads of a block wait for each other\n");
      std::abort();
    }
  }
  take(&now->ended);
}

// A thread of the system: of each launch some blocks.
MERC_UNSEEN inline void run_blocks(int me) {
  for (;;) {
    wait_for(me);
    take(&launch_begun);
    while (blocks_left > 0) {
      const size_t at = blocks[--blocks_left];
      now->block = dim3(at % grid_size.x, at / grid_size.x);
      run_block(*launched);
    }
    now->under_way = false;
    give(&launch_ended);
    pass_on();
  }
}

// All blocks of a launch.
MERC_UNSEEN inline void run_grid(const std::function<void()>& kernel) {
  std::vector<size_t> order(size_t{grid_size.x} * grid_size.y);
  std::iota(order.begin(), order.end(), size_t{0});
  std::shuffle(order.begin(), order.end(), order_of_blocks);
  blocks = order.data();
  blocks_left = order.size();
  launched = &kernel;
  give(&launch_begun);
  for (int i = 0; i < kResident && i < static_cast<int>(order.size()); ++i) {
    residents[i].number = i;
    residents[i].under_way = true;
    if (!residents[i].running) {
      residents[i].running = true;
      std::thread(run_blocks, i).detach();
    }
  }
  hand_over(0);
  wait_for(kCaller);
  take(&launch_ended);
}

}  // namespace on_host

// For the tests, by ctypes: the barriers met so far, and one to leave out, -1 for none.
extern "C" inline __attribute__((used)) int merc_barriers() { return on_host::barrier_count; }
extern "C" inline __attribute__((used)) void merc_skip_barrier(int place) { on_host::skipped = place; }
extern "C" inline __attribute__((used)) const char* merc_barrier_file(int place) {
  return on_host::barriers[place].file;
}
extern "C" inline __attribute__((used)) int merc_barrier_line(int place) { return on_host::barriers[place].line; }
