// Which instruction set a kernel runs with. A kernel's file is compiled once for each, in a namespace
// of its own with `#pragma GCC target`; `isa` says which one runs.
#pragma once

#ifdef __x86_64__
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace merc::cpu {

// Each has what those before it have; amx: the matrix unit for bfloat16.
enum class Isa { plain, avx2, avx512, amx };

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MERC_X86_KERNELS 1

// Whether there is a matrix unit and Linux lets this process have its registers.
inline bool has_amx() {
#ifdef __linux__
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24;  // of cpuid 7
  constexpr long kRequest = 0x1023, kTileData = 18;           // ARCH_REQ_XCOMP_PERM
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBfloat16) && (d & kTile) &&
         syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

inline Isa best_isa() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    return has_amx() ? Isa::amx : Isa::avx512;
  }
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") ? Isa::avx2
                                                                                                           : Isa::plain;
}
#else
inline Isa best_isa() { return Isa::plain; }
#endif

// The one in use: the best, unless a test chose another.
inline Isa& isa() {
  static Isa isa = best_isa();
  return isa;
}

}  // namespace merc::cpu
