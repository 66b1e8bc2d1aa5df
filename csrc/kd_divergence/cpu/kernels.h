// The arithmetic of the divergence, compiled once for each instruction set, and the choice among them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "../../cpu/isa.h"
#include "rows.h"

namespace merc::kd_divergence::cpu {
namespace plain {
namespace {
#include "../../cpu/vector_math.h"
#include "logits.h"
#include "narrow.h"
#include "wide.h"
}  // namespace
}  // namespace plain

#ifdef MERC_X86_KERNELS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,prefer-vector-width=256")
namespace avx2 {
namespace {
#include "../../cpu/vector_math.h"
#include "logits.h"
#include "narrow.h"
#include "wide.h"
}  // namespace
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,prefer-vector-width=512")
namespace avx512 {
namespace {
#include "../../cpu/vector_math.h"
#include "logits.h"
#include "narrow.h"
#include "wide.h"
}  // namespace
}  // namespace avx512
#pragma GCC pop_options
#endif

namespace {

#define MERC_ROWS(isa) \
  (!forward ? isa::backward_rows<A> : p.classes <= isa::kNarrow ? isa::forward_tiles<A> : isa::forward_rows<A>)

// One pass over all rows, by all threads.
template <class A>
void run(const Rows& p, bool forward) {
  auto rows = MERC_ROWS(plain);
#ifdef MERC_X86_KERNELS
  if (merc::cpu::isa() >= merc::cpu::Isa::avx512) {
    rows = MERC_ROWS(avx512);
  } else if (merc::cpu::isa() == merc::cpu::Isa::avx2) {
    rows = MERC_ROWS(avx2);
  }
#endif
  const int64_t count = forward ? p.groups * p.rows_a_group : p.rows_a_group;
  const int64_t work = p.classes * (forward ? 1 : p.groups);
  const int64_t grain = 8192 / (work > 0 ? work : 1) + 1;  // rows that are worth a thread
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { rows(p, begin, end); });
}

void run(const Rows& p, bool forward) {
  if (p.wide_numbers) {
    run<double>(p, forward);
  } else {
    run<float>(p, forward);
  }
}

#undef MERC_ROWS

}  // namespace
}  // namespace merc::kd_divergence::cpu
