// The arithmetic on one tile of cosines, for one instruction set; included inside its namespace, hence no include guard.
//
// Row i of a tile is an anchor, column j a candidate; in a mutual tile j is an anchor and i its candidate as well. With
// s' = (cosine - centre) / tau and L' = L - centre / tau, where centre = 1 for unit rows, so that nothing overflows:
//   sums      E_i = sum_j e^(s'_ij - m_i), L'_i = m_i + log E_i;  over positives H_i = sum h, V_i = sum h s'
//             or, in a pass of its own once L' is known, H_i = sum dg/dL, V_i = sum h l, l = s' - L'_i
//   gradient  M_ij = W_ij + W_ji,  W_ij = a_i ([j positive] dg/ds(s_ij, L_i) + p_ij G_i),  p_ij = e^(s'_ij - L'_i)
// In a bounded tile m = 0, and one exponential serves both directions: p_ij a_i G_i = e^(s'_ij) u_i, u_i = a_i G_i / E_i.
// Else m is the maximum: l = s - L = (s' - m) - log E then loses nothing where a positive holds nearly all of E.

template <class A>
struct Math {
  static A exp(A x) { return fast_exp(x); }
  static A log(A x) { return fast_log(x); }
  static A minus_expm1(A x) { return fast_minus_expm1(x); }
};

// The positives of one row within the tile's columns, without the row itself.
template <class F>
inline void each_positive_run(const View& view, int64_t row, const F& f) {
  const Range* runs = view.layout->runs(view.rows.begin + row);
  const Range run = runs[view.column_segment].within(view.columns);
  const int64_t begin = run.begin - view.columns.begin, end = run.end - view.columns.begin;
  if (view.diagonal && begin <= row && row < end) {
    f(begin, row);
    f(row + 1, end);
  } else if (begin < end) {
    f(begin, end);
  }
}

// All columns of one row, without the row itself.
template <class F>
inline void each_column_run(const View& view, int64_t row, const F& f) {
  if (view.diagonal) {
    f(int64_t{0}, row);
    f(row + 1, view.columns.size());
  } else {
    f(int64_t{0}, view.columns.size());
  }
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

// The loops over columns are functions of their own: with what they read and write apart, they become vector code.
#define MERC_LOOP __attribute__((noinline))

template <class A>
MERC_LOOP A exp_sum(const A* __restrict x, int64_t n, Scale<A> scale, A most) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    sum += fast_exp(scale(x[j]) - most);
  }
  return sum;
}

template <class A>
MERC_LOOP A exp_sum_both(const A* __restrict x, int64_t n, Scale<A> scale, A* __restrict columns) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    const A term = fast_exp(scale(x[j]));
    sum += term;
    columns[j] += term;
  }
  return sum;
}

template <class A>
MERC_LOOP void add_exp(const A* __restrict x, int64_t n, Scale<A> scale, const A* __restrict most, A* __restrict sums) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    sums[j] += fast_exp(scale(x[j]) - most[j]);
  }
}

template <class A>
MERC_LOOP A largest(const A* __restrict x, int64_t n, Scale<A> scale, A most) {
#pragma omp simd reduction(max : most)
  for (int64_t j = 0; j < n; ++j) {
    const A s = scale(x[j]);
    most = s > most ? s : most;
  }
  return most;
}

template <class A>
MERC_LOOP void raise_maxima(const A* __restrict x, int64_t n, Scale<A> scale, A* __restrict most) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const A s = scale(x[j]);
    most[j] = s > most[j] ? s : most[j];
  }
}

// E of a bounded tile.
template <class A>
void bounded_exponentials(const View& view, const Options<A>& o, const A* tile, Sums<A> rows, Sums<A> columns) {
  for (int64_t i = 0; i < view.rows.size(); ++i) {
    const A* x = tile + i * view.stride;
    A e = 0;
    each_column_run(view, i, [&](int64_t begin, int64_t end) {
      e += view.mutual ? exp_sum_both(x + begin, end - begin, o.scale(), columns.e + begin)
                       : exp_sum(x + begin, end - begin, o.scale(), A(0));
    });
    rows.e[i] = e;
  }
}

// E and the maximum that it is taken from on.
template <class A>
void exponentials(const View& view, const Options<A>& o, const A* tile, Sums<A> rows, Sums<A> columns) {
  const Scale<A> scale = o.scale();
  const int64_t n = view.columns.size();
  const A lowest = std::numeric_limits<A>::lowest();
  std::fill_n(columns.most, n, lowest);
  for (int64_t i = 0; i < view.rows.size(); ++i) {
    const A* x = tile + i * view.stride;
    A most = lowest, e = 0;
    each_column_run(
        view, i, [&](int64_t begin, int64_t end) { most = largest(x + begin, end - begin, scale, most); });
    each_column_run(
        view, i, [&](int64_t begin, int64_t end) { e += exp_sum(x + begin, end - begin, scale, most); });
    rows.most[i] = most;
    rows.e[i] = e;
    if (view.mutual) {
      raise_maxima(x, n, scale, columns.most);
    }
  }
  for (int64_t i = 0; view.mutual && i < view.rows.size(); ++i) {
    add_exp(tile + i * view.stride, n, scale, columns.most, columns.e);
  }
}

// V and H of one side: of a row, or of each column.
template <class A>
struct Positives {
  A v, h;
};

template <Power power, class A>
MERC_LOOP Positives<A> similar(
    const A* __restrict x, int64_t n, const Options<A> o, A* __restrict v_of_columns, A* __restrict h_of_columns) {
  const Scale<A> scale = o.scale();
  A v = 0, h = 0;
#pragma omp simd reduction(+ : v, h)
  for (int64_t j = 0; j < n; ++j) {
    const A factor = similarity_factor<Math<A>, power>(x[j], o.temperature, o.gamma).h;
    const A term = factor * scale(x[j]);
    v += term;
    h += factor;
    v_of_columns[j] += term;
    h_of_columns[j] += factor;
  }
  return {v, h};
}

// V and H of the similarity form: h is the same from either side.
template <class A>
void similarity_positives(const View& view, const Options<A>& o, const A* tile, Sums<A> rows, Sums<A> columns) {
  with_power(o.power, [&](auto power) {
    for (int64_t i = 0; i < view.rows.size(); ++i) {
      const A* x = tile + i * view.stride;
      rows.v[i] = rows.h[i] = 0;
      each_positive_run(view, i, [&](int64_t begin, int64_t end) {
        const Positives<A> sums =
            similar<power()>(x + begin, end - begin, o, columns.v + begin, columns.h + begin);
        rows.v[i] += sums.v;
        rows.h[i] += sums.h;
      });
    }
  });
}

// One term of V and of H once L is known.
template <Focal focal, Power power, class A>
inline Positives<A> positive(A x, A l, const Options<A>& o) {
  if constexpr (focal == Focal::similarity) {
    const A h = similarity_factor<Math<A>, power>(x, o.temperature, o.gamma).h;
    return {h * l, h};
  } else {
    const Factor<A> factor = probability_factor<Math<A>, power>(l, o.gamma);
    return {factor.h * l, -slope_by_s(factor, l, o.detached)};
  }
}

template <Focal focal, Power power, class A>
MERC_LOOP Positives<A> sum_positives(const A* __restrict x, int64_t n, const Options<A> o, A most, A log_e) {
  const Scale<A> scale = o.scale();
  A v = 0, h = 0;
#pragma omp simd reduction(+ : v, h)
  for (int64_t j = 0; j < n; ++j) {
    const Positives<A> term = positive<focal, power>(x[j], (scale(x[j]) - most) - log_e, o);
    v += term.v;
    h += term.h;
  }
  return {v, h};
}

template <Focal focal, Power power, class A>
MERC_LOOP void add_positives(
    const A* __restrict x, int64_t n, const Options<A> o, const A* __restrict most, const A* __restrict log_e,
    A* __restrict v, A* __restrict h) {
  const Scale<A> scale = o.scale();
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const Positives<A> term = positive<focal, power>(x[j], (scale(x[j]) - most[j]) - log_e[j], o);
    v[j] += term.v;
    h[j] += term.h;
  }
}

// V and H from L.
template <Focal focal, class A>
void positives_from_l(
    const View& view, const Options<A>& o, const A* tile, const Logarithms<A>& row_l, const Logarithms<A>& column_l,
    Sums<A> rows, Sums<A> columns) {
  with_power(o.power, [&](auto power) {
    for (int64_t i = 0; i < view.rows.size(); ++i) {
      const A* x = tile + i * view.stride;
      rows.v[i] = rows.h[i] = 0;
      each_positive_run(view, i, [&](int64_t begin, int64_t end) {
        const int64_t n = end - begin;
        const Positives<A> sums = sum_positives<focal, power()>(x + begin, n, o, row_l.most[i], row_l.log_e[i]);
        rows.v[i] += sums.v;
        rows.h[i] += sums.h;
        if (view.mutual) {
          add_positives<focal, power()>(
              x + begin, n, o, column_l.most + begin, column_l.log_e + begin, columns.v + begin, columns.h + begin);
        }
      });
    }
  });
}

// The sums of a tile, or those that need L.
template <class A>
void sum_tile(
    const View& view, const Options<A>& o, const A* tile, const Logarithms<A>& row_l, const Logarithms<A>& column_l,
    Sums<A> rows, Sums<A> columns) {
  const int64_t n = view.columns.size();
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

// What stands in a row of M for all pairs, from one side and from both.
template <class A>
MERC_LOOP void spread_bounded(A* __restrict x, int64_t n, Scale<A> scale, A u) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    x[j] = fast_exp(scale(x[j])) * u;
  }
}

template <class A>
MERC_LOOP void spread_bounded_both(A* __restrict x, int64_t n, Scale<A> scale, A u, const A* __restrict column_u) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    x[j] = fast_exp(scale(x[j])) * (u + column_u[j]);
  }
}

template <class A>
MERC_LOOP void spread(A* __restrict x, int64_t n, Scale<A> scale, A most, A log_e, A u) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    x[j] = fast_exp((scale(x[j]) - most) - log_e) * u;
  }
}

template <class A>
MERC_LOOP void spread_both(
    A* __restrict x, int64_t n, Scale<A> scale, A most, A log_e, A u, const A* __restrict column_most,
    const A* __restrict column_log, const A* __restrict column_u) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const A s = scale(x[j]);
    x[j] = fast_exp((s - most) - log_e) * u + fast_exp((s - column_most[j]) - column_log[j]) * column_u[j];
  }
}

// Row i of M before its positives: e^(s' - L'_i) a_i G_i from either side.
template <class A>
void spread_row(
    const View& view, const Options<A>& o, int64_t i, A* x, const Weights<A>& rows, const Weights<A>& columns) {
  const int64_t n = view.columns.size();
  if (o.bounded && view.both()) {
    spread_bounded_both(x, n, o.scale(), rows.u[i], columns.u);
  } else if (o.bounded) {
    spread_bounded(x, n, o.scale(), rows.u[i]);
  } else if (view.both()) {
    spread_both(
        x, n, o.scale(), rows.l.most[i], rows.l.log_e[i], rows.u[i], columns.l.most, columns.l.log_e, columns.u);
  } else {
    spread(x, n, o.scale(), rows.l.most[i], rows.l.log_e[i], rows.u[i]);
  }
}

// a dg/ds from the row's side: of a detached factor in the similarity form, it is the same from the column's.
template <Power power, class A>
MERC_LOOP void attract_similar(const A* __restrict x, int64_t n, const Options<A> o, A a, A* __restrict terms) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    terms[j] = -similarity_factor<Math<A>, power>(x[j], o.temperature, o.gamma).h * a;
  }
}

template <Power power, class A>
MERC_LOOP void attract_similar_both(
    const A* __restrict x, int64_t n, const Options<A> o, A a, const A* __restrict column_a, A* __restrict terms) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    terms[j] = -similarity_factor<Math<A>, power>(x[j], o.temperature, o.gamma).h * (a + column_a[j]);
  }
}

template <Focal focal, Power power, class A>
inline A slope(A x, A l, const Options<A>& o) {
  if constexpr (focal == Focal::similarity) {
    return slope_by_s(similarity_factor<Math<A>, power>(x, o.temperature, o.gamma), l, o.detached);
  } else {
    return slope_by_s(probability_factor<Math<A>, power>(l, o.gamma), l, o.detached);
  }
}

template <Focal focal, Power power, class A>
MERC_LOOP void attract_row(
    const A* __restrict x, int64_t n, const Options<A> o, A a, A most, A log_e, A* __restrict terms) {
  const Scale<A> scale = o.scale();
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    terms[j] = a * slope<focal, power>(x[j], (scale(x[j]) - most) - log_e, o);
  }
}

template <Focal focal, Power power, class A>
MERC_LOOP void attract_columns(
    const A* __restrict x, int64_t n, const Options<A> o, const A* __restrict a, const A* __restrict most,
    const A* __restrict log_e, A* __restrict terms) {
  const Scale<A> scale = o.scale();
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    terms[j] += a[j] * slope<focal, power>(x[j], (scale(x[j]) - most[j]) - log_e[j], o);
  }
}

template <Focal focal, Power power, class A>
void attract_both(
    const View& view, const Options<A>& o, int64_t i, const A* x, int64_t begin, int64_t n, const Weights<A>& rows,
    const Weights<A>& columns, A* terms) {
  attract_row<focal, power>(x, n, o, rows.a[i], rows.l.most[i], rows.l.log_e[i], terms);
  if (view.both()) {
    attract_columns<focal, power>(
        x, n, o, columns.a + begin, columns.l.most + begin, columns.l.log_e + begin, terms);
  }
}

// What positives add to row i of M, from the cosines x.
template <Power power, class A>
void attract(
    const View& view, const Options<A>& o, int64_t i, const A* x, const Weights<A>& rows, const Weights<A>& columns,
    A* terms) {
  each_positive_run(view, i, [&](int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    if (o.focal == Focal::probability) {
      attract_both<Focal::probability, power>(view, o, i, x + begin, begin, n, rows, columns, terms + begin);
    } else if (!o.detached) {
      attract_both<Focal::similarity, power>(view, o, i, x + begin, begin, n, rows, columns, terms + begin);
    } else if (view.both()) {
      attract_similar_both<power>(x + begin, n, o, rows.a[i], columns.a + begin, terms + begin);
    } else {
      attract_similar<power>(x + begin, n, o, rows.a[i], terms + begin);
    }
  });
}

template <class A>
MERC_LOOP A inner_product(const A* __restrict x, const A* __restrict y, int64_t n) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    sum += x[j] * y[j];
  }
  return sum;
}

template <class A>
MERC_LOOP void add(const A* __restrict terms, int64_t n, A* __restrict to) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    to[j] += terms[j];
  }
}

// Cosines become M. Returns sum W s over the tile, W without h' of the similarity form, where the temperature wants it.
// `scratch` holds three rows of the tile.
template <class A>
double matrix_tile(
    const View& view, const Options<A>& o, A* tile, const Weights<A>& rows, const Weights<A>& columns,
    bool wants_temperature, A* scratch) {
  const int64_t n = view.columns.size();
  A *terms = scratch, *cosines = scratch + view.stride, *plain = cosines + view.stride;
  Options<A> of_temperature = o;
  of_temperature.detached = o.detached || o.focal == Focal::similarity;
  double sum = 0;
  with_power(o.power, [&](auto power) {
    for (int64_t i = 0; i < view.rows.size(); ++i) {
      A* x = tile + i * view.stride;
      attract<power()>(view, o, i, x, rows, columns, terms);
      if (wants_temperature) {
        attract<power()>(view, of_temperature, i, x, rows, columns, plain);
        std::copy_n(x, n, cosines);
      }
      spread_row(view, o, i, x, rows, columns);
      if (view.diagonal) {
        x[i] = 0;
      }
      if (wants_temperature) {
        sum += inner_product(x, cosines, n);
      }
      each_positive_run(view, i, [&](int64_t begin, int64_t end) {
        if (wants_temperature) {
          sum += inner_product(plain + begin, cosines + begin, end - begin);
        }
        add(terms + begin, end - begin, x + begin);
      });
    }
  });
  return sum / o.temperature * (view.diagonal ? 0.5 : 1.0);
}

// A unit row and its length; a zero row stays zero. The largest element is taken out first: no square over- or
// underflows.
template <class T, class A>
A unit_row(const void* from, int64_t n, bool normalize, A* __restrict to) {
  const T* __restrict source = static_cast<const T*>(from);
  if (!normalize) {
    for (int64_t i = 0; i < n; ++i) {
      to[i] = static_cast<A>(source[i]);
    }
    return 1;
  }
  A most = 0, sum = 0;
#pragma omp simd reduction(max : most) reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const A x = static_cast<A>(source[i]);
    const A size = x < 0 ? -x : x;
    to[i] = x;
    most = size > most ? size : most;
    sum += x;
  }
  if (most == 0 && sum == sum) {
    return 0;
  }
  A square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < n; ++i) {
    to[i] = to[i] / most;
    square += to[i] * to[i];
  }
  const A length = static_cast<A>(__builtin_sqrt(square));
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    to[i] = to[i] / length;
  }
  return most * length;
}

template <class A>
A unit_row(const void* from, ScalarType type, int64_t n, bool normalize, A* to) {
  switch (type) {
    case ScalarType::Double:
      return unit_row<double>(from, n, normalize, to);
    case ScalarType::Float:
      return unit_row<float>(from, n, normalize, to);
    case ScalarType::BFloat16:
      return unit_row<torch::headeronly::BFloat16>(from, n, normalize, to);
    default:
      return unit_row<torch::headeronly::Half>(from, n, normalize, to);
  }
}

// sum += (g - (z.g) z) / length, the gradient of what was normalised.
template <class A>
void add_row_gradient(const A* __restrict g, const A* __restrict z, A length, int64_t n, bool normalize, A scale,
                      A* __restrict sum) {
  A along = 0;
  if (normalize) {
    if (length == 0) {
      return;
    }
#pragma omp simd reduction(+ : along)
    for (int64_t i = 0; i < n; ++i) {
      along += g[i] * z[i];
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    sum[i] += (g[i] - along * z[i]) * scale / length;
  }
}

template <class T, class A>
void store_row(const A* __restrict from, int64_t n, void* to) {
  T* __restrict target = static_cast<T*>(to);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    target[i] = static_cast<T>(from[i]);
  }
}

template <class A>
void store_row(const A* from, int64_t n, ScalarType type, void* to) {
  switch (type) {
    case ScalarType::Double:
      return store_row<double>(from, n, to);
    case ScalarType::Float:
      return store_row<float>(from, n, to);
    case ScalarType::BFloat16:
      return store_row<torch::headeronly::BFloat16>(from, n, to);
    default:
      return store_row<torch::headeronly::Half>(from, n, to);
  }
}

#undef MERC_LOOP
