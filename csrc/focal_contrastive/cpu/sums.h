// The sums of one tile of cosines, for one instruction set; included inside its namespace, hence no include guard.
//
// Row i of a tile is an anchor, column j a candidate; in a mutual tile j is an anchor and i its candidate as well. With
// s' = (cosine - centre) / tau and L' = L - centre / tau, where centre = 1 in bounded tiles, so that nothing overflows,
// and else 0, as it would cost a rounding:
//   E_i = sum_j e^(s'_ij - m_i), L'_i = m_i + log E_i;  over positives H_i = sum h, V_i = sum h s'
//   or, in a pass of its own once L' is known, H_i = sum dg/dL, V_i = sum h l, l = s' - L'_i
// In a bounded tile m = 0. Else m is the maximum: l = s - L = (s' - m) - log E then loses nothing where a positive
// holds nearly all of E.
//
// Rows are whole vectors: they are padded with cosines of -inf, which add nothing, and so is the place of a row itself.

template <class A>
struct Math {
  static A exp(A x) { return fast_exp(x); }
  static A log(A x) { return fast_log(x); }
  static A minus_expm1(A x) { return fast_minus_expm1(x); }
};

// Whole vectors of a row with the run of its positives: of columns [low, high) from `begin` on, but not the row itself.
struct Window {
  int64_t begin;
  int32_t size, low, high, self;

  bool holds(int32_t column) const { return (column >= low) & (column < high) & (column != self); }
};

inline Window positives_of(const View& view, int64_t row) {
  const Range* runs = view.layout->runs(view.rows.begin + row);
  const Range run = runs[view.column_segment].within(view.columns);
  const int64_t first = run.begin - view.columns.begin, begin = first / kLanes * kLanes;
  const auto from_there = [&](int64_t column) { return static_cast<int32_t>(column - begin); };
  const int32_t end = from_there(first + run.size());
  return {
      begin, run.size() ? static_cast<int32_t>(whole(end)) : 0, from_there(first), end,
      view.diagonal ? from_there(row) : -1};
}

template <class F>
inline void with_power(Power power, const F& f) {
  switch (power) {
    case Power::zero:
      return f(std::integral_constant<Power, Power::zero>());
    case Power::one:
      return f(std::integral_constant<Power, Power::one>());
    case Power::two:
      return f(std::integral_constant<Power, Power::two>());
    default:
      return f(std::integral_constant<Power, Power::any>());
  }
}

template <class A>
MERC_LOOP A exp_sum(const A* __restrict x, int32_t n, Score<A> score, A row_max) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  MERC_COLUMNS(j, n) {
    sum += fast_exp(score(x[j]) - row_max);
  }
  return sum;
}

template <class A>
MERC_LOOP A exp_sum_both(const A* __restrict x, int32_t n, Score<A> score, A* __restrict columns) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  MERC_COLUMNS(j, n) {
    const A term = fast_exp(score(x[j]));
    sum += term;
    columns[j] += term;
  }
  return sum;
}

template <class A>
MERC_LOOP void add_exp(
    const A* __restrict x, int32_t n, Score<A> score, const A* __restrict row_max, A* __restrict sums) {
#pragma omp simd
  MERC_COLUMNS(j, n) {
    sums[j] += fast_exp(score(x[j]) - row_max[j]);
  }
}

template <class A>
MERC_LOOP A largest(const A* __restrict x, int32_t n, Score<A> score, A row_max) {
#pragma omp simd reduction(max : row_max)
  MERC_COLUMNS(j, n) {
    const A s = score(x[j]);
    row_max = s > row_max ? s : row_max;
  }
  return row_max;
}

template <class A>
MERC_LOOP void raise_maxima(const A* __restrict x, int32_t n, Score<A> score, A* __restrict row_max) {
#pragma omp simd
  MERC_COLUMNS(j, n) {
    const A s = score(x[j]);
    row_max[j] = s > row_max[j] ? s : row_max[j];
  }
}

// E of a bounded tile.
template <class A>
void bounded_exponentials(
    const View& view, const TileOptions<A>& o, const A* tile, TileSums<A> rows, TileSums<A> columns) {
  for (int64_t i = 0; i < view.rows.size(); ++i) {
    const A* x = tile + i * view.stride;
    rows.e[i] =
        view.mutual ? exp_sum_both(x, view.padded(), o.score(), columns.e) : exp_sum(x, view.padded(), o.score(), A(0));
  }
}

// E and the maximum that it is taken from on.
template <class A>
void exponentials(const View& view, const TileOptions<A>& o, const A* tile, TileSums<A> rows, TileSums<A> columns) {
  const Score<A> score = o.score();
  const int32_t n = view.padded();
  const A lowest = std::numeric_limits<A>::lowest();
  std::fill_n(columns.row_max, n, lowest);
  for (int64_t i = 0; i < view.rows.size(); ++i) {
    const A* x = tile + i * view.stride;
    rows.row_max[i] = largest(x, n, score, lowest);
    rows.e[i] = exp_sum(x, n, score, rows.row_max[i]);
    if (view.mutual) {
      raise_maxima(x, n, score, columns.row_max);
    }
  }
  for (int64_t i = 0; view.mutual && i < view.rows.size(); ++i) {
    add_exp(tile + i * view.stride, n, score, columns.row_max, columns.e);
  }
}

// V and H of one side: of a row, or of each column.
template <class A>
struct Positives {
  A v, h;
};

template <Power power, class A>
MERC_LOOP Positives<A> similar(
    const A* __restrict x, const Window run, const TileOptions<A> o, A* __restrict v_of_columns,
    A* __restrict h_of_columns) {
  const Score<A> score = o.score();
  A v = 0, h = 0;
#pragma omp simd reduction(+ : v, h)
  MERC_COLUMNS(j, run.size) {
    const bool in = run.holds(j);
    const A factor = in ? similarity_factor<Math<A>, power>(x[j], o.temperature, o).h : A(0);
    const A term = in ? factor * score(x[j]) : A(0);
    v += term;
    h += factor;
    v_of_columns[j] += term;
    h_of_columns[j] += factor;
  }
  return {v, h};
}

// V and H of the similarity form: h is the same from either side.
template <class A>
void similarity_positives(
    const View& view, const TileOptions<A>& o, const A* tile, TileSums<A> rows, TileSums<A> columns) {
  with_power(o.power, [&](auto power) {
    for (int64_t i = 0; i < view.rows.size(); ++i) {
      const Window run = positives_of(view, i);
      const Positives<A> sums =
          similar<power()>(tile + i * view.stride + run.begin, run, o, columns.v + run.begin, columns.h + run.begin);
      rows.v[i] = sums.v;
      rows.h[i] = sums.h;
    }
  });
}

// One term of V and of H once L is known.
template <Focal focal, Power power, class A>
inline Positives<A> positive(A x, A l, const TileOptions<A>& o) {
  if constexpr (focal == Focal::similarity) {
    const A h = similarity_factor<Math<A>, power>(x, o.temperature, o).h;
    return {h * l, h};
  } else {
    const Factor<A> factor = probability_factor<Math<A>, power>(l, o);
    return {factor.h * l, -slope_by_s(factor, l, o.detach_focal)};
  }
}

template <Focal focal, Power power, class A>
MERC_LOOP Positives<A> sum_positives(
    const A* __restrict x, const Window run, const TileOptions<A> o, A row_max, A log_e) {
  const Score<A> score = o.score();
  A v = 0, h = 0;
#pragma omp simd reduction(+ : v, h)
  MERC_COLUMNS(j, run.size) {
    const bool in = run.holds(j);
    const Positives<A> term = positive<focal, power>(x[j], (score(x[j]) - row_max) - log_e, o);
    v += in ? term.v : A(0);
    h += in ? term.h : A(0);
  }
  return {v, h};
}

template <Focal focal, Power power, class A>
MERC_LOOP void add_positives(
    const A* __restrict x, const Window run, const TileOptions<A> o, const A* __restrict row_max,
    const A* __restrict log_e, A* __restrict v, A* __restrict h) {
  const Score<A> score = o.score();
#pragma omp simd
  MERC_COLUMNS(j, run.size) {
    const bool in = run.holds(j);
    const Positives<A> term = positive<focal, power>(x[j], (score(x[j]) - row_max[j]) - log_e[j], o);
    v[j] += in ? term.v : A(0);
    h[j] += in ? term.h : A(0);
  }
}

// V and H from L.
template <Focal focal, class A>
void positives_from_l(
    const View& view, const TileOptions<A>& o, const A* tile, const Logarithms<A>& row_l, const Logarithms<A>& column_l,
    TileSums<A> rows, TileSums<A> columns) {
  with_power(o.power, [&](auto power) {
    for (int64_t i = 0; i < view.rows.size(); ++i) {
      const Window run = positives_of(view, i);
      const A* x = tile + i * view.stride + run.begin;
      const Positives<A> sums = sum_positives<focal, power()>(x, run, o, row_l.row_max[i], row_l.log_e[i]);
      rows.v[i] = sums.v;
      rows.h[i] = sums.h;
      if (view.mutual) {
        add_positives<focal, power()>(
            x, run, o, column_l.row_max + run.begin, column_l.log_e + run.begin, columns.v + run.begin,
            columns.h + run.begin);
      }
    }
  });
}

// The sums of a tile, or those that need L.
template <class A>
void sum_tile(
    const View& view, const TileOptions<A>& o, const A* tile, const Logarithms<A>& row_l, const Logarithms<A>& column_l,
    TileSums<A> rows, TileSums<A> columns) {
  const int32_t n = view.padded();
  std::fill_n(columns.e, n, A(0));
  std::fill_n(columns.v, n, A(0));
  std::fill_n(columns.h, n, A(0));
  if (row_l.log_e) {
    return o.focal == Focal::similarity
               ? positives_from_l<Focal::similarity>(view, o, tile, row_l, column_l, rows, columns)
               : positives_from_l<Focal::probability>(view, o, tile, row_l, column_l, rows, columns);
  }
  if (o.bounded) {
    bounded_exponentials(view, o, tile, rows, columns);
  } else {
    exponentials(view, o, tile, rows, columns);
  }
  if (!o.needs_l()) {
    similarity_positives(view, o, tile, rows, columns);
  }
}
