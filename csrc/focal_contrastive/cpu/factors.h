// What the product of two tiles is told.
#pragma once

#include <cstdint>

namespace merc::focal_contrastive::cpu {

// The factors of a product a b: numbers from one row, or one step of the depth, to the next. The columns of b stand in
// vectors, of as many as an instruction set takes at a time: of 1 for the BLAS.
template <class A>
struct Left {
  const A* data;
  int64_t row, depth;
};
template <class A>
struct Right {
  const A* data;
  int64_t vector, depth;
};

// The product, its rows `stride` apart; `add`: to what stands there.
template <class A>
struct Product {
  A* data;
  int64_t stride;
  bool add;
};

}  // namespace merc::focal_contrastive::cpu
