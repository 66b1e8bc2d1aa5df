// The arithmetic on one tile of cosines, for one instruction set; included inside its namespace, hence no include guard.
//
// Row i of a tile is an anchor, column j a candidate; in a mutual tile j is an anchor and i its candidate as well. With
// s' = (cosine - centre) / tau and L' = L - centre / tau, where centre = 1 for unit rows, so that nothing overflows:
//   sums      E_i = sum_j e^(s'_ij - m_i), L'_i = m_i + log E_i;  over positives H_i = sum h, V_i = sum h s'  (similarity)
//             or, in a pass of its own once L' is known, V_i = sum h l, H_i = sum dg/dL, l = s' - L'_i  (probability)
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

template <class A>
void clear(A* __restrict values, int64_t n, A value = 0) {
  for (int64_t i = 0; i < n; ++i) {
    values[i] = value;
  }
}

// E of a bounded tile.
template <class A>
void bounded_exponentials(const View& view, const Options<A>& o, const A* tile, Sums<A> rows, Sums<A> columns) {
  const A inverse = 1 / o.temperature, centre = o.centre;
  A* __restrict of_columns = columns.e;
  for (int64_t i = 0; i < view.rows.size(); ++i) {
    const A* __restrict x = tile + i * view.stride;
    A e = 0;
    each_column_run(view, i, [&](int64_t begin, int64_t end) {
      A sum = 0;
      if (view.mutual) {
#pragma omp simd reduction(+ : sum)
        for (int64_t j = begin; j < end; ++j) {
          const A term = fast_exp((x[j] - centre) * inverse);
          sum += term;
          of_columns[j] += term;
        }
      } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t j = begin; j < end; ++j) {
          sum += fast_exp((x[j] - centre) * inverse);
        }
      }
      e += sum;
    });
    rows.e[i] = e;
  }
}

// E and the maximum that it is taken from on.
template <class A>
void exponentials(const View& view, const Options<A>& o, const A* tile, Sums<A> rows, Sums<A> columns) {
  const A inverse = 1 / o.temperature, centre = o.centre;
  const A lowest = std::numeric_limits<A>::lowest();
  A* __restrict most_of_columns = columns.most;
  A* __restrict of_columns = columns.e;
  for (int64_t i = 0; i < view.rows.size(); ++i) {
    const A* __restrict x = tile + i * view.stride;
    A most = lowest;
    each_column_run(view, i, [&](int64_t begin, int64_t end) {
#pragma omp simd reduction(max : most)
      for (int64_t j = begin; j < end; ++j) {
        const A s = (x[j] - centre) * inverse;
        most = s > most ? s : most;
      }
    });
    A e = 0;
    each_column_run(view, i, [&](int64_t begin, int64_t end) {
      A sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = begin; j < end; ++j) {
        sum += fast_exp((x[j] - centre) * inverse - most);
      }
      e += sum;
    });
    rows.most[i] = most;
    rows.e[i] = e;
  }
  if (!view.mutual) {
    return;
  }
  clear(most_of_columns, view.columns.size(), lowest);
  for (int64_t i = 0; i < view.rows.size(); ++i) {
    const A* __restrict x = tile + i * view.stride;
#pragma omp simd
    for (int64_t j = 0; j < view.columns.size(); ++j) {
      const A s = (x[j] - centre) * inverse;
      most_of_columns[j] = s > most_of_columns[j] ? s : most_of_columns[j];
    }
  }
  for (int64_t i = 0; i < view.rows.size(); ++i) {
    const A* __restrict x = tile + i * view.stride;
#pragma omp simd
    for (int64_t j = 0; j < view.columns.size(); ++j) {
      of_columns[j] += fast_exp((x[j] - centre) * inverse - most_of_columns[j]);
    }
  }
}

// V and H of the similarity form: h is the same from either side.
template <class A>
void similarity_positives(const View& view, const Options<A>& o, const A* tile, Sums<A> rows, Sums<A> columns) {
  const A inverse = 1 / o.temperature, centre = o.centre;
  with_power(o.power, [&](auto power) {
    for (int64_t i = 0; i < view.rows.size(); ++i) {
      const A* __restrict x = tile + i * view.stride;
      A* __restrict v_of_columns = columns.v;
      A* __restrict h_of_columns = columns.h;
      A v = 0, h = 0;
      each_positive_run(view, i, [&](int64_t begin, int64_t end) {
        A run_v = 0, run_h = 0;
#pragma omp simd reduction(+ : run_v, run_h)
        for (int64_t j = begin; j < end; ++j) {
          const A factor = similarity_factor<Math<A>, power()>(x[j], o.temperature, o.gamma).h;
          const A term = factor * ((x[j] - centre) * inverse);
          run_v += term;
          run_h += factor;
          v_of_columns[j] += term;
          h_of_columns[j] += factor;
        }
        v += run_v;
        h += run_h;
      });
      rows.v[i] = v;
      rows.h[i] = h;
    }
  });
}

// V and H of the probability form.
template <class A>
void probability_positives(
    const View& view, const Options<A>& o, const A* tile, const Logarithms<A>& row_l, const Logarithms<A>& column_l,
    Sums<A> rows, Sums<A> columns) {
  const A inverse = 1 / o.temperature, centre = o.centre;
  const bool detached = o.detached;
  const A* __restrict column_most = column_l.most;
  const A* __restrict column_log = column_l.log_e;
  with_power(o.power, [&](auto power) {
    for (int64_t i = 0; i < view.rows.size(); ++i) {
      const A* __restrict x = tile + i * view.stride;
      A* __restrict v_of_columns = columns.v;
      A* __restrict h_of_columns = columns.h;
      A v = 0, h = 0;
      each_positive_run(view, i, [&](int64_t begin, int64_t end) {
        A run_v = 0, run_h = 0;
#pragma omp simd reduction(+ : run_v, run_h)
        for (int64_t j = begin; j < end; ++j) {
          const A l = ((x[j] - centre) * inverse - row_l.most[i]) - row_l.log_e[i];
          const Factor<A> factor = probability_factor<Math<A>, power()>(l, o.gamma);
          run_v += factor.h * l;
          run_h -= slope_by_s(factor, l, detached);
        }
        v += run_v;
        h += run_h;
        if (view.mutual) {
#pragma omp simd
          for (int64_t j = begin; j < end; ++j) {
            const A l = ((x[j] - centre) * inverse - column_most[j]) - column_log[j];
            const Factor<A> factor = probability_factor<Math<A>, power()>(l, o.gamma);
            v_of_columns[j] += factor.h * l;
            h_of_columns[j] -= slope_by_s(factor, l, detached);
          }
        }
      });
      rows.v[i] = v;
      rows.h[i] = h;
    }
  });
}

// The sums of a tile, or the second ones of the probability form.
template <class A>
void sum_tile(
    const View& view, const Options<A>& o, const A* tile, const Logarithms<A>& row_l, const Logarithms<A>& column_l,
    Sums<A> rows, Sums<A> columns) {
  const int64_t n = view.columns.size();
  clear(columns.e, n);
  clear(columns.v, n);
  clear(columns.h, n);
  if (row_l.log_e) {
    return probability_positives(view, o, tile, row_l, column_l, rows, columns);
  }
  if (o.bounded) {
    bounded_exponentials(view, o, tile, rows, columns);
  } else {
    exponentials(view, o, tile, rows, columns);
  }
  if (o.focal == Focal::similarity) {
    similarity_positives(view, o, tile, rows, columns);
  }
}

// What stands in row i of M for all pairs: e^(s' - L'_i) a_i G_i from either side.
template <class A>
void spread(
    const View& view, const Options<A>& o, int64_t i, A* __restrict x, const Weights<A>& rows,
    const Weights<A>& columns) {
  const A inverse = 1 / o.temperature, centre = o.centre;
  const A most = rows.l.most[i], log_e = rows.l.log_e[i], u = rows.u[i];
  const int64_t n = view.columns.size();
  const A* __restrict column_most = columns.l.most;
  const A* __restrict column_log = columns.l.log_e;
  const A* __restrict column_u = columns.u;
  if (o.bounded && view.both()) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      x[j] = fast_exp((x[j] - centre) * inverse) * (u + column_u[j]);
    }
  } else if (o.bounded) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      x[j] = fast_exp((x[j] - centre) * inverse) * u;
    }
  } else if (view.both()) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const A s = (x[j] - centre) * inverse;
      x[j] = fast_exp((s - most) - log_e) * u + fast_exp((s - column_most[j]) - column_log[j]) * column_u[j];
    }
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      x[j] = fast_exp(((x[j] - centre) * inverse - most) - log_e) * u;
    }
  }
}

// What positives add to row i of M, from the cosines x. With `detached`, without h'.
template <class A, Power power>
void attract(
    const View& view, const Options<A>& o, int64_t i, const A* __restrict x, const Weights<A>& rows,
    const Weights<A>& columns, bool detached, A* __restrict terms) {
  const A inverse = 1 / o.temperature, centre = o.centre;
  const bool both = view.both();
  const A a = rows.a[i], most = rows.l.most[i], log_e = rows.l.log_e[i];
  const A* __restrict column_a = columns.a;
  const A* __restrict column_most = columns.l.most;
  const A* __restrict column_log = columns.l.log_e;
  each_positive_run(view, i, [&](int64_t begin, int64_t end) {
    if (o.focal == Focal::similarity && detached) {
#pragma omp simd
      for (int64_t j = begin; j < end; ++j) {
        const A weight = both ? a + column_a[j] : a;
        terms[j] = -similarity_factor<Math<A>, power>(x[j], o.temperature, o.gamma).h * weight;
      }
    } else if (o.focal == Focal::similarity) {
#pragma omp simd
      for (int64_t j = begin; j < end; ++j) {
        const A s = (x[j] - centre) * inverse;
        const Factor<A> factor = similarity_factor<Math<A>, power>(x[j], o.temperature, o.gamma);
        const A from_j = (s - column_most[j]) - column_log[j];
        const A other = both ? column_a[j] * slope_by_s(factor, from_j, false) : A(0);
        terms[j] = a * slope_by_s(factor, (s - most) - log_e, false) + other;
      }
    } else {
#pragma omp simd
      for (int64_t j = begin; j < end; ++j) {
        const A from_i = ((x[j] - centre) * inverse - most) - log_e;
        terms[j] = a * slope_by_s(probability_factor<Math<A>, power>(from_i, o.gamma), from_i, detached);
      }
      if (both) {
#pragma omp simd
        for (int64_t j = begin; j < end; ++j) {
          const A from_j = ((x[j] - centre) * inverse - column_most[j]) - column_log[j];
          terms[j] += column_a[j] * slope_by_s(probability_factor<Math<A>, power>(from_j, o.gamma), from_j, detached);
        }
      }
    }
  });
}

template <class A>
A inner_product(const A* __restrict x, const A* __restrict y, int64_t begin, int64_t end) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = begin; j < end; ++j) {
    sum += x[j] * y[j];
  }
  return sum;
}

// Cosines become M. Returns sum W s over the tile, W without h' of the similarity form, where the temperature wants it.
// `scratch` holds three rows of the tile.
template <class A>
double matrix_tile(
    const View& view, const Options<A>& o, A* tile, const Weights<A>& rows, const Weights<A>& columns,
    bool wants_temperature, A* scratch) {
  const int64_t n = view.columns.size();
  A *terms = scratch, *cosines = scratch + view.stride, *plain = cosines + view.stride;
  double sum = 0;
  with_power(o.power, [&](auto power) {
    for (int64_t i = 0; i < view.rows.size(); ++i) {
      A* x = tile + i * view.stride;
      attract<A, power()>(view, o, i, x, rows, columns, o.detached, terms);
      if (wants_temperature) {
        attract<A, power()>(view, o, i, x, rows, columns, o.detached || o.focal == Focal::similarity, plain);
        std::copy(x, x + n, cosines);
      }
      spread(view, o, i, x, rows, columns);
      if (view.diagonal) {
        x[i] = 0;
      }
      if (wants_temperature) {
        sum += inner_product(x, cosines, 0, n);
      }
      each_positive_run(view, i, [&](int64_t begin, int64_t end) {
        if (wants_temperature) {
          sum += inner_product(plain, cosines, begin, end);
        }
#pragma omp simd
        for (int64_t j = begin; j < end; ++j) {
          x[j] += terms[j];
        }
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
