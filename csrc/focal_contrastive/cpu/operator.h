// The operator of operator.cpp that the module calls without the dispatcher.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "../arguments.h"

namespace merc::focal_contrastive::cpu {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward_and_backward(const BothArguments& call);

}  // namespace merc::focal_contrastive::cpu
