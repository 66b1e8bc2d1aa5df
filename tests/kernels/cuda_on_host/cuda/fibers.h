// The threads of a block as fibers, which go on in random order, the same on every run; blocks run in random order, one
// after the other. A barrier that not all threads reach, or a warp whose lanes part, ends the process with a message.
//
// Under ThreadSanitizer (-fsanitize=thread) each fiber is a thread of its own to it, and only __syncthreads and the
// beginning and end of a launch order their accesses: two that a barrier should part, and none does, are reported. A
// shuffle orders nothing, as on a GPU. `skipped` is a barrier of the sources that is left out, to see that it is missed.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
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

inline dim3 thread, block, block_size, grid_size;
inline Fiber* fibers[kMost];  // plain arrays: what ThreadSanitizer must not see stays out of instrumented templates
inline size_t count = 0;      // of the block
inline std::mt19937 random_order;
inline size_t current = 0;
inline bool moved = false;  // a barrier opened, or a fiber ended, in this round
inline Barrier of_block, of_warp[32];
inline uint32_t slots[kMost];
inline std::function<void()> body;

struct Place {
  const char* file;
  int line;
};
inline Place barriers[256];  // met so far
inline int barrier_count = 0, skipped = -1;

#ifdef __SANITIZE_THREAD__
inline ucontext_t scheduler;
inline void* scheduler_seen;

MERC_UNSEEN inline void leave() {
  Fiber& fiber = *fibers[current];
  __tsan_switch_to_fiber(scheduler_seen, 1);
  swapcontext(&fiber.context, &scheduler);
}

MERC_UNSEEN inline void enter(Fiber& fiber) {
  fiber.started = true;
  __tsan_switch_to_fiber(fiber.seen, 1);
  swapcontext(&scheduler, &fiber.context);
}

// What happened before the first is seen by who goes on after the second.
MERC_UNSEEN inline void give(void* place) { __tsan_release(place); }
MERC_UNSEEN inline void take(void* place) { __tsan_acquire(place); }
#else
inline jmp_buf scheduler;

// Between fibers by jumps: unlike swapcontext they call no kernel.
MERC_UNSEEN inline void leave() {
  if (_setjmp(fibers[current]->left) == 0) {
    _longjmp(scheduler, 1);
  }
}

MERC_UNSEEN inline void enter(Fiber& fiber) {
  if (_setjmp(scheduler) == 0) {
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

inline char begun, ended;  // of a block

MERC_UNSEEN inline void entry() {
  for (;;) {
    take(&begun);
    body();
    fibers[current]->done = moved = true;
    give(&ended);
    leave();
  }
}

MERC_UNSEEN inline int alive(size_t begin, size_t end) {
  int left = 0;
  for (size_t i = begin; i < end && i < count; ++i) {
    left += !fibers[i]->done;
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
      moved = true;
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
  give(&of_block);
  wait(of_block, 0, count);
  take(&of_block);
}

MERC_UNSEEN inline uint32_t shuffle(uint32_t value, int source_lane) {
  const size_t self = current, first = self / 32 * 32;
  slots[self] = value;
  wait(of_warp[self / 32], first, first + 32);
  const uint32_t got = slots[first + source_lane];
  wait(of_warp[self / 32], first, first + 32);
  return got;
}

// What all lanes of the warp give, by lane; good until the exchange after the next.
template <class T>
MERC_UNSEEN const T* exchange(const T& mine) {
  static T given[2][kMost];
  const size_t self = current, first = self / 32 * 32;
  T* const now = given[fibers[self]->exchanges++ % 2];
  now[self] = mine;
  wait(of_warp[self / 32], first, first + 32);
  return now + first;
}

MERC_UNSEEN inline void prepare(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

MERC_UNSEEN inline void run_block(const std::function<void()>& kernel) {
  body = kernel;
  count = size_t{block_size.x} * block_size.y;
  for (size_t i = 0; i < count; ++i) {
    if (fibers[i]) {
      continue;
    }
    fibers[i] = new Fiber;
    fibers[i]->stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
#ifdef __SANITIZE_THREAD__
    fibers[i]->seen = __tsan_create_fiber(0);
    prepare(*fibers[i]);
#endif
  }
#ifdef __SANITIZE_THREAD__
  scheduler_seen = __tsan_get_current_fiber();
#endif
  of_block = {};
  for (Barrier& barrier : of_warp) {
    barrier = {};
  }
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = 0; i < count; ++i) {
    Fiber& fiber = *fibers[i];
    fiber.done = false;
    fiber.exchanges = 0;
    fiber.index = dim3(i % block_size.x, i / block_size.x);
#ifndef __SANITIZE_THREAD__
    fiber.started = false;
    prepare(fiber);
#endif
  }
  give(&begun);
  while (alive(0, count) > 0) {
    moved = false;
    std::shuffle(order.begin(), order.end(), random_order);
    for (const size_t next : order) {
      current = next;
      if (!fibers[current]->done) {
        thread = fibers[current]->index;
        enter(*fibers[current]);
      }
    }
    if (!moved) {
      std::fprintf(stderr, "cuda_on_host: the threads of a block wait for each other\n");
      std::abort();
    }
  }
  take(&ended);
}

// Blocks in random order.
MERC_UNSEEN inline void run_grid(const std::function<void()>& kernel) {
  std::vector<size_t> blocks(size_t{grid_size.x} * grid_size.y);
  std::iota(blocks.begin(), blocks.end(), size_t{0});
  std::shuffle(blocks.begin(), blocks.end(), random_order);
  for (const size_t at : blocks) {
    block = dim3(at % grid_size.x, at / grid_size.x);
    run_block(kernel);
  }
}

}  // namespace on_host

// For the tests, by ctypes: the barriers met so far, and one to leave out, -1 for none.
extern "C" inline __attribute__((used)) int merc_barriers() { return on_host::barrier_count; }
extern "C" inline __attribute__((used)) void merc_skip_barrier(int place) { on_host::skipped = place; }
extern "C" inline __attribute__((used)) const char* merc_barrier_file(int place) {
  return on_host::barriers[place].file;
}
extern "C" inline __attribute__((used)) int merc_barrier_line(int place) { return on_host::barriers[place].line; }
