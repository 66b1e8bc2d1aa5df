// Which instruction set a kernel runs with. A kernel's file is compiled once for each, in a namespace of its own
// between MERC_ISA_BEGIN and MERC_ISA_END; `best_isa` says which one this machine can run.
#pragma once

namespace merc::cpu {

enum class Isa { plain, avx2, avx512 };

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MERC_X86_KERNELS 1

inline Isa best_isa() {
  static const Isa isa = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      return Isa::avx512;
    }
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? Isa::avx2 : Isa::plain;
  }();
  return isa;
}
#else
inline Isa best_isa() { return Isa::plain; }
#endif

}  // namespace merc::cpu
