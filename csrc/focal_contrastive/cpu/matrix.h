// One tile of the matrix of the gradient, for one instruction set; included inside its namespace after sums.h, hence no
// include guard.
//
//   M_ij = W_ij + W_ji,  W_ij = a_i ([j positive] dg/ds(s_ij, L_i) + p_ij G_i),  p_ij = e^(s'_ij - L'_i)
// In a bounded tile one exponential serves both directions: p_ij a_i G_i = e^(s'_ij) u_i, u_i = a_i G_i / E_i.

// What stands in a row of M for all pairs, from one side and from both.
template <class A>
MERC_LOOP void spread_bounded(A* __restrict x, int32_t n, Score<A> score, A u) {
#pragma omp simd
  MERC_COLUMNS(j, n) {
    x[j] = fast_exp(score(x[j])) * u;
  }
}

template <class A>
MERC_LOOP void spread_bounded_both(A* __restrict x, int32_t n, Score<A> score, A u, const A* __restrict column_u) {
#pragma omp simd
  MERC_COLUMNS(j, n) {
    x[j] = fast_exp(score(x[j])) * (u + column_u[j]);
  }
}

template <class A>
MERC_LOOP void spread(A* __restrict x, int32_t n, Score<A> score, A row_max, A log_e, A u) {
#pragma omp simd
  MERC_COLUMNS(j, n) {
    x[j] = fast_exp((score(x[j]) - row_max) - log_e) * u;
  }
}

template <class A>
MERC_LOOP void spread_both(
    A* __restrict x, int32_t n, Score<A> score, A row_max, A log_e, A u, const A* __restrict column_max,
    const A* __restrict column_log, const A* __restrict column_u) {
#pragma omp simd
  MERC_COLUMNS(j, n) {
    const A s = score(x[j]);
    x[j] = fast_exp((s - row_max) - log_e) * u + fast_exp((s - column_max[j]) - column_log[j]) * column_u[j];
  }
}

// Row i of M before its positives: e^(s' - L'_i) a_i G_i from either side.
template <class A>
void spread_row(
    const View& view, const TileOptions<A>& o, int64_t i, A* x, const Weights<A>& rows, const Weights<A>& columns) {
  const int32_t n = view.padded();
  if (o.bounded && view.both()) {
    spread_bounded_both(x, n, o.score(), rows.u[i], columns.u);
  } else if (o.bounded) {
    spread_bounded(x, n, o.score(), rows.u[i]);
  } else if (view.both()) {
    spread_both(
        x, n, o.score(), rows.l.row_max[i], rows.l.log_e[i], rows.u[i], columns.l.row_max, columns.l.log_e, columns.u);
  } else {
    spread(x, n, o.score(), rows.l.row_max[i], rows.l.log_e[i], rows.u[i]);
  }
}

// a dg/ds from the row's side: of a detached factor in the similarity form, it is the same from the column's.
template <Power power, class A>
MERC_LOOP void attract_similar(
    const A* __restrict x, const Window run, const TileOptions<A> o, A a, A* __restrict terms) {
#pragma omp simd
  MERC_COLUMNS(j, run.size) {
    terms[j] = run.holds(j) ? -similarity_factor<Math<A>, power>(x[j], o.temperature, o).h * a : A(0);
  }
}

template <Power power, class A>
MERC_LOOP void attract_similar_both(
    const A* __restrict x, const Window run, const TileOptions<A> o, A a, const A* __restrict column_a,
    A* __restrict terms) {
#pragma omp simd
  MERC_COLUMNS(j, run.size) {
    const A both = a + column_a[j];
    terms[j] = run.holds(j) ? -similarity_factor<Math<A>, power>(x[j], o.temperature, o).h * both : A(0);
  }
}

template <Focal focal, Power power, class A>
inline A slope(A x, A l, const TileOptions<A>& o) {
  if constexpr (focal == Focal::similarity) {
    return slope_by_s(similarity_factor<Math<A>, power>(x, o.temperature, o), l, o.detach_focal);
  } else {
    return slope_by_s(probability_factor<Math<A>, power>(l, o), l, o.detach_focal);
  }
}

template <Focal focal, Power power, class A>
MERC_LOOP void attract_row(
    const A* __restrict x, const Window run, const TileOptions<A> o, A a, A row_max, A log_e, A* __restrict terms) {
  const Score<A> score = o.score();
#pragma omp simd
  MERC_COLUMNS(j, run.size) {
    terms[j] = run.holds(j) ? a * slope<focal, power>(x[j], (score(x[j]) - row_max) - log_e, o) : A(0);
  }
}

template <Focal focal, Power power, class A>
MERC_LOOP void attract_columns(
    const A* __restrict x, const Window run, const TileOptions<A> o, const A* __restrict a, const A* __restrict row_max,
    const A* __restrict log_e, A* __restrict terms) {
  const Score<A> score = o.score();
#pragma omp simd
  MERC_COLUMNS(j, run.size) {
    terms[j] += run.holds(j) ? a[j] * slope<focal, power>(x[j], (score(x[j]) - row_max[j]) - log_e[j], o) : A(0);
  }
}

template <Focal focal, Power power, class A>
void attract_from_l(
    const View& view, const TileOptions<A>& o, int64_t i, const A* x, const Window& run, const Weights<A>& rows,
    const Weights<A>& columns, A* terms) {
  attract_row<focal, power>(x, run, o, rows.a[i], rows.l.row_max[i], rows.l.log_e[i], terms);
  if (view.both()) {
    attract_columns<focal, power>(
        x, run, o, columns.a + run.begin, columns.l.row_max + run.begin, columns.l.log_e + run.begin, terms);
  }
}

// What positives add to row i of M, from its cosines.
template <Power power, class A>
void attract(
    const View& view, const TileOptions<A>& o, int64_t i, const A* cosines, const Window& run, const Weights<A>& rows,
    const Weights<A>& columns, A* terms) {
  const A* x = cosines + run.begin;
  if (o.focal == Focal::probability) {
    attract_from_l<Focal::probability, power>(view, o, i, x, run, rows, columns, terms);
  } else if (!o.detach_focal) {
    attract_from_l<Focal::similarity, power>(view, o, i, x, run, rows, columns, terms);
  } else if (view.both()) {
    attract_similar_both<power>(x, run, o, rows.a[i], columns.a + run.begin, terms);
  } else {
    attract_similar<power>(x, run, o, rows.a[i], terms);
  }
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
MERC_LOOP void add(const A* __restrict terms, int32_t n, A* __restrict to) {
#pragma omp simd
  MERC_COLUMNS(j, n) {
    to[j] += terms[j];
  }
}

// Cosines become M. Returns sum W s over the tile, W without h' of the similarity form, where the temperature wants it.
// `scratch` holds three rows of the tile.
template <class A>
double matrix_tile(
    const View& view, const TileOptions<A>& o, A* tile, const Weights<A>& rows, const Weights<A>& columns,
    bool wants_temperature, A* scratch) {
  const int64_t n = view.columns.size();
  A *terms = scratch, *cosines = scratch + view.stride, *plain = cosines + view.stride;
  TileOptions<A> of_temperature = o;
  of_temperature.detach_focal = o.detach_focal || o.focal == Focal::similarity;
  double sum = 0;
  with_power(o.power, [&](auto power) {
    for (int64_t i = 0; i < view.rows.size(); ++i) {
      A* x = tile + i * view.stride;
      const Window run = positives_of(view, i);
      attract<power()>(view, o, i, x, run, rows, columns, terms);
      if (wants_temperature) {
        attract<power()>(view, of_temperature, i, x, run, rows, columns, plain);
        std::copy_n(x, n, cosines);
        std::fill(cosines + n, cosines + view.padded(), A(0));
        if (view.diagonal) {
          cosines[i] = 0;
        }
      }
      spread_row(view, o, i, x, rows, columns);
      if (wants_temperature) {
        sum += inner_product(x, cosines, n) + inner_product(plain, cosines + run.begin, run.size);
      }
      add(terms, run.size, x + run.begin);
    }
  });
  return sum / o.temperature * (view.diagonal ? 0.5 : 1.0);
}
