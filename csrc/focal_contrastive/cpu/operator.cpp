// Focal contrastive loss on the CPU: the operators.
//
//   loss_i = a_i sum over positives of -h (s_ij - L_i),  s_ij = z_i.z_j / tau,  L_i = logsumexp_j s_ij
//   a_i = w / |P(i)|
//   dZ = M Z / tau,  M = W + W',  W_ij = a_i ([j positive] dg/ds + p_ij G_i),  G_i = sum over positives of dg/dL
//   d tau = -sum W_ij s_ij / tau (without h' of the similarity form),  dX = (dZ - (z.dZ) z) / |x|
//
// S is symmetric, and so is M: a pair of blocks of rows is one tile, whose cosines serve both. A tile adds to its two
// blocks when the tiles before it have, in an order that does not depend on the threads: nor do the bits. The places of
// the rows are in layout.h, the arithmetic on a tile in product.h, sums.h and matrix.h (of bfloat16 rows, where there is
// a matrix unit, half_product.h), the two passes in forward.h and backward.h; h and the derivatives of g = -h (s - L) in
// ../focal.h.

#include "operator.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "../../stack.h"
#include "backward.h"
#include "forward.h"

namespace merc::focal_contrastive::cpu {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Outputs forward_operator(const ForwardArguments& call) {
  return with_accumulate(call.arguments.accumulate, [&]<class A>(A) -> Outputs {
    const std::vector<int64_t> labels = all_labels(call);
    Batch<A> batch(call.arguments, labels, /*keep=*/false);
    const Loss loss = forward(batch, labels, call.class_weights, call.reduction);
    return {loss.loss, loss.divisor, batch.z(), batch.norms(), loss.stats, batch.index()};
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_operator(const BackwardArguments& call) {
  call.check_saved(call.arguments.accumulate);
  return with_accumulate(call.arguments.accumulate, [&]<class A>(A) {
    Batch<A> batch(call.arguments, call.z, call.norms, call.index, call.all_anchors);
    return backward(batch, call.grad, call.divisor, call.stats, call.wanted, /*exact=*/false);
  });
}

}  // namespace

// No cosine is computed twice.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward_and_backward(const BothArguments& call) {
  return with_accumulate(call.forward.arguments.accumulate, [&]<class A>(A) {
    const std::vector<int64_t> labels = all_labels(call.forward);
    Batch<A> batch(call.forward.arguments, labels, /*keep=*/true);
    const Loss loss = forward(batch, labels, call.forward.class_weights, call.forward.reduction);
    Tensor one = empty({}, kType<A>);
    *static_cast<A*>(one.mutable_data_ptr()) = 1;
    auto gradients = backward(batch, one, loss.divisor, loss.stats, call.wanted, /*exact=*/true);
    return std::tuple_cat(std::make_tuple(loss.loss), std::move(gradients));
  });
}

}  // namespace merc::focal_contrastive::cpu

STABLE_TORCH_LIBRARY_IMPL(merc, CPU, m) {
  namespace op = merc::focal_contrastive;
  m.impl("focal_contrastive", merc::boxed<op::ForwardArguments, op::cpu::forward_operator>);
  m.impl("focal_contrastive_backward", merc::boxed<op::BackwardArguments, op::cpu::backward_operator>);
  m.impl("focal_contrastive_with_gradients", merc::boxed<op::BothArguments, op::cpu::forward_and_backward>);
}
