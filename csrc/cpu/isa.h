// Which instruction set a kernel runs with. A kernel's file is compiled once for each, in a namespace
// of its own with `#pragma GCC target`; `isa` says which one runs.
#pragma once

namespace merc::cpu {

enum class Isa { plain, avx2, avx512 };

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MERC_X86_KERNELS 1

inline Isa best_isa() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    return Isa::avx512;
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
