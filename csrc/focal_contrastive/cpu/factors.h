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

using Half = uint16_t;  // the bits of a bfloat16

// The same of half_product.h.
struct HalfLeft {
  const Half* data;
  int64_t row;    // numbers from one row to the next
  int parts = 1;  // that are added: one after the other in a row, each as long as the depth
};
struct HalfRight {
  const Half* data;
  int64_t panel;  // numbers from one panel to the next
};

// A tile of the matrix unit, which multiplies 16 rows by 16 columns, 32 steps of the depth at a time.
constexpr int64_t kTileRows = 16, kTileDepth = 32;

}  // namespace merc::focal_contrastive::cpu
