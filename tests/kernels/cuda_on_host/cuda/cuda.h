// As much of CUDA as the kernels use, on the CPU: every thread of a block is a fiber, blocks run one after the other.
// A barrier that not all threads reach, or a warp whose lanes part, ends the process with a message.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) double2 {
  double x, y;
};

namespace on_host {

struct Barrier {
  int arrived = 0, generation = 0;
};

struct Fiber {
  ucontext_t context;
  jmp_buf left;  // where it goes on, once it has started
  void* stack;
  dim3 index;
  unsigned exchanges;
  bool started, done = false;
};

constexpr size_t kStack = 256 << 10;

inline dim3 thread, block, block_size, grid_size;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline jmp_buf scheduler;
inline size_t current = 0;
inline bool moved = false;  // a barrier opened, or a fiber ended, in this round
inline Barrier of_block, of_warp[32];
inline uint32_t slots[1024];
inline std::function<void()> body;

// Between fibers by jumps: unlike swapcontext they call no kernel.
__attribute__((noinline)) inline void leave() {
  if (_setjmp(fibers[current]->left) == 0) {
    _longjmp(scheduler, 1);
  }
}

__attribute__((noinline)) inline void enter(Fiber& fiber) {
  if (_setjmp(scheduler) == 0) {
    if (fiber.started) {
      _longjmp(fiber.left, 1);
    }
    fiber.started = true;
    setcontext(&fiber.context);
  }
}

inline void entry() {
  body();
  fibers[current]->done = moved = true;
  leave();
}

inline int alive(size_t begin, size_t end) {
  int count = 0;
  for (size_t i = begin; i < end && i < fibers.size(); ++i) {
    count += !fibers[i]->done;
  }
  return count;
}

inline void wait(Barrier& barrier, size_t begin, size_t end) {
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

inline uint32_t shuffle(uint32_t value, int source_lane) {
  const size_t self = current, first = self / 32 * 32;
  slots[self] = value;
  wait(of_warp[self / 32], first, first + 32);
  const uint32_t got = slots[first + source_lane];
  wait(of_warp[self / 32], first, first + 32);
  return got;
}

// What all lanes of the warp give, by lane; good until the exchange after the next.
template <class T>
const T* exchange(const T& mine) {
  static T given[2][1024];
  const size_t self = current, first = self / 32 * 32;
  T* const now = given[fibers[self]->exchanges++ % 2];
  now[self] = mine;
  wait(of_warp[self / 32], first, first + 32);
  return now + first;
}

inline void run_block(const std::function<void()>& kernel) {
  body = kernel;
  const size_t count = block_size.x * block_size.y;
  while (fibers.size() < count) {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fibers.push_back(std::move(fiber));
  }
  while (fibers.size() > count) {
    munmap(fibers.back()->stack, kStack);
    fibers.pop_back();
  }
  of_block = {};
  for (Barrier& barrier : of_warp) {
    barrier = {};
  }
  for (size_t i = 0; i < count; ++i) {
    Fiber& fiber = *fibers[i];
    fiber.started = fiber.done = false;
    fiber.exchanges = 0;
    fiber.index = dim3(i % block_size.x, i / block_size.x);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
  }
  while (alive(0, count) > 0) {
    moved = false;
    for (current = 0; current < count; ++current) {
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
}

}  // namespace on_host

#define threadIdx on_host::thread
#define blockIdx on_host::block
#define blockDim on_host::block_size
#define gridDim on_host::grid_size

inline void __syncthreads() { on_host::wait(on_host::of_block, 0, on_host::fibers.size()); }
inline uint32_t __shfl_xor_sync(unsigned, uint32_t value, int mask) {
  return on_host::shuffle(value, (on_host::current % 32) ^ mask);
}
inline uint32_t __shfl_sync(unsigned, uint32_t value, int lane) { return on_host::shuffle(value, lane); }
inline void __threadfence() {}
inline unsigned atomicInc(unsigned* at, unsigned most) {
  const unsigned old = *at;
  *at = old >= most ? 0 : old + 1;
  return old;
}

template <class T>
T __ldg(const T* at) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(T) != 0) {
    std::fprintf(stderr, "cuda_on_host: a load that is not aligned\n");
    std::abort();
  }
  return *at;
}
template <class T>
T __ldcg(const T* at) {
  return *at;
}
template <class T>
void __stcs(T* at, T value) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(T) != 0) {
    std::fprintf(stderr, "cuda_on_host: a store that is not aligned\n");
    std::abort();
  }
  *at = value;
}
template <class T>
void __stcg(T* at, T value) {
  *at = value;
}

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

using __half = _Float16;
inline __half __ushort_as_half(uint16_t bits) {
  __half value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint16_t __half_as_ushort(__half value) {
  uint16_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __half2float(__half value) { return static_cast<float>(value); }
inline __half __float2half_rn(float value) { return static_cast<__half>(value); }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = __float_as_uint(value);
  if (value != value) {
    return {0x7fff};
  }
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
