// The forward operator of operator.cpp, for the module: it calls it without the dispatcher.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "../arguments.h"

namespace merc::kd_divergence::cpu {

std::tuple<Tensor, Tensor, Tensor> forward(const ForwardArguments& call);

}  // namespace merc::kd_divergence::cpu
