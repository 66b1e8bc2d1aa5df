// How the losses of rows become what an operator returns: the same numbers for every operator.
#pragma once

#include <cstdint>

namespace merc {

// mean divides by the rows that have a loss, batchmean by the rows that are kept; at least by 1.
enum class Reduction : int { none = 0, sum = 1, mean = 2, batchmean = 3 };

}  // namespace merc
