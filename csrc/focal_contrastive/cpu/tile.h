// What the arithmetic on a tile of cosines is told.
#pragma once

#include <cstdint>

#include "../focal.h"
#include "../options.h"
#include "layout.h"

namespace merc::focal_contrastive::cpu {

// A tile of cosines: `rows` by `columns` of all rows, `stride` apart in memory.
struct View {
  const Layout* layout;
  Range rows, columns;
  int column_segment;
  bool diagonal, mutual;
  int64_t stride;

  bool both() const { return diagonal || mutual; }  // whether a column is an anchor too
  int32_t padded() const { return static_cast<int32_t>(whole(columns.size())); }
};

// s' of a cosine.
template <class A>
struct Score {
  A centre, inverse;

  A operator()(A cosine) const { return (cosine - centre) * inverse; }
};

// The options, and what follows from them for all tiles.
template <class A>
struct TileOptions : Options<A> {
  Power power;
  bool bounded;
  A centre;

  explicit TileOptions(const Options<double>& options)
      : Options<A>(options.in<A>()),
        power(power_of(options.gamma)),
        bounded(options.bounded()),
        centre(bounded ? 1 : 0) {}

  Score<A> score() const { return {centre, 1 / this->temperature}; }

  // Whether the sums over positives take a pass of their own: the probability form needs L there, and where s' is
  // large, sum h s' - L' sum h would lose what the terms do not.
  bool needs_l() const { return this->focal == Focal::probability || !bounded; }
};

// Of each row or column of a tile.
template <class A>
struct TileSums {
  A *row_max, *e, *v, *h;
};

// Of each row or column of a tile: the parts of L'.
template <class A>
struct Logarithms {
  const A *row_max = nullptr, *log_e = nullptr;
};

// Of each row or column of a tile: a, L', and a G (over E in a bounded tile).
template <class A>
struct Weights {
  const A* a;
  Logarithms<A> l;
  const A* u;
};

}  // namespace merc::focal_contrastive::cpu
