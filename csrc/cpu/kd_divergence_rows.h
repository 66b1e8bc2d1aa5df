// The rows of the divergence, for one instruction set; included inside its namespace, hence no include guard.
//
// A row's logits are read block by block into `x` (one distribution, a) and `y` (the other, b), divided by T:
//   sums     m = max, Z = sum e^(x - m), and, in the same sweep, A = sum e^(x - m_x) [(x - m_x) - (y - m_y)], so that
//            KL(a|b) = A / Z_x + log Z_y - log Z_x. A grows by Z_x times the shift of the bracket when a maximum moves.
//   js       K = sum a (log a - log m) for a and for b, m = w b + (1 - w) a, in a second sweep.
//   gradient of the first logits, x being theirs, c its factor:
//            second argument of KL: c (a - b); first: c a (log a - log b - KL), in which the log Z cancel:
//            c a [(x - m_x) - (y - m_y) - A / Z_x]; js: c (1 - w) a (log a - log m - K_a).
// A class with a = 0 adds nothing, whatever b is. Sums run in a fixed order, so a row's bits never change.

constexpr int64_t kBlock = 1024;

template <class T, class A>
void load(const void* from, int64_t offset, int64_t n, A t, A* __restrict to) {
  const T* source = static_cast<const T*>(from) + offset;
  const A scale = A(1) / t;
  int exponent;
  if (__builtin_frexp(t, &exponent) == 0.5) {  // a power of two: the product is exact
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      to[i] = static_cast<A>(source[i]) * scale;
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      to[i] = divide(static_cast<A>(source[i]), t, scale);
    }
  }
}

template <class T, class A>
void store(void* to, int64_t offset, int64_t n, const A* __restrict from) {
  T* target = static_cast<T*>(to) + offset;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    target[i] = static_cast<T>(from[i]);
  }
}

template <class A>
void load(const Logits& logits, int64_t row, int64_t column, int64_t n, A t, A* to) {
  const int64_t offset = logits.row_offset(row) + column;
  switch (logits.type) {
    case ScalarType::Double:
      return load<double>(logits.data, offset, n, t, to);
    case ScalarType::Float:
      return load<float>(logits.data, offset, n, t, to);
    case ScalarType::BFloat16:
      return load<torch::headeronly::BFloat16>(logits.data, offset, n, t, to);
    default:
      return load<torch::headeronly::Half>(logits.data, offset, n, t, to);
  }
}

template <class A>
void store(const Gradient& gradient, int64_t offset, int64_t n, const A* from) {
  switch (gradient.type) {
    case ScalarType::Double:
      return store<double>(gradient.data, offset, n, from);
    case ScalarType::Float:
      return store<float>(gradient.data, offset, n, from);
    case ScalarType::BFloat16:
      return store<torch::headeronly::BFloat16>(gradient.data, offset, n, from);
    default:
      return store<torch::headeronly::Half>(gradient.data, offset, n, from);
  }
}

template <class A>
void fill(A* __restrict values, int64_t n, A value) {
  for (int64_t i = 0; i < n; ++i) {
    values[i] = value;
  }
}

template <class A>
A load_one(const Logits& logits, int64_t row, int64_t column, A t) {
  A value;
  load(logits, row, column, 1, t, &value);
  return value;
}

template <class A>
A largest(const A* __restrict values, int64_t n) {
  A most = std::numeric_limits<A>::lowest();
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) {
    most = values[i] > most ? values[i] : most;
  }
  return most;
}

template <class A>
struct Sums {
  A max_x, max_y, z_x, z_y, bracket;
  A z_raw;  // sum e^(logit - max) of the student at T = 1, for the cross entropy
};

// e times a difference of logarithms, 0 where e is 0, whatever the logarithms are.
template <class A>
inline A times(A e, A difference) {
  const A term = e * difference;
  return e > A(0) ? term : A(0);
}

// log(m / a) and log(m / b) for m = w_a a + w_b b, where `gap` = log b - log a: no difference of two large logarithms.
template <class A>
struct Mixture {
  A log_a, log_b;  // of the weights

  explicit Mixture(double weight_a) : log_a(__builtin_log(weight_a)), log_b(__builtin_log(1 - weight_a)) {}
  A over_a(A gap) const { return log_a + soft(gap + (log_b - log_a)); }
  A over_b(A gap) const { return log_b + soft((log_a - log_b) - gap); }

 private:
  static A soft(A d) { return (d > A(0) ? d : A(0)) + fast_log1p(fast_exp(d > A(0) ? -d : d)); }
};

// One sweep over a row. `student_is_x` says whose T = 1 sum to take, where raw_scale (= T) is not 0.
template <class A>
Sums<A> sweep(
    const Logits& first, const Logits& second, int64_t row, A t, A raw_scale, bool student_is_x, A* x, A* y) {
  const A lowest = std::numeric_limits<A>::lowest();
  Sums<A> sums{lowest, lowest, 0, 0, 0, 0};
  for (int64_t begin = 0; begin < first.classes; begin += kBlock) {
    const int64_t n = first.classes - begin < kBlock ? first.classes - begin : kBlock;
    load(first, row, begin, n, t, x);
    load(second, row, begin, n, t, y);
    const A top_x = largest(x, n), top_y = largest(y, n);
    const A max_x = top_x > sums.max_x ? top_x : sums.max_x;
    const A max_y = top_y > sums.max_y ? top_y : sums.max_y;
    const A shift_x = sums.max_x - max_x, shift_y = sums.max_y - max_y;
    const A shrink_x = fast_exp(shift_x), shrink_y = fast_exp(shift_y);
    if (shrink_x == A(0)) {
      sums.bracket = 0;  // also where it is infinite
    } else if (sums.z_x > A(0)) {
      sums.bracket = shrink_x * (sums.bracket + sums.z_x * (shift_x - shift_y));
    }
    if (raw_scale != A(0)) {
      sums.z_raw *= fast_exp((student_is_x ? shift_x : shift_y) * raw_scale);
      const A* student = student_is_x ? x : y;
      const A most = student_is_x ? max_x : max_y;
      A z_raw = 0;
#pragma omp simd reduction(+ : z_raw)
      for (int64_t i = 0; i < n; ++i) {
        z_raw += fast_exp((student[i] - most) * raw_scale);
      }
      sums.z_raw += z_raw;
    }
    A z_x = 0, z_y = 0, bracket = 0;
#pragma omp simd reduction(+ : z_x, z_y, bracket)
    for (int64_t i = 0; i < n; ++i) {
      const A from_x = x[i] - max_x, from_y = y[i] - max_y;
      const A e_x = fast_exp(from_x);
      z_x += e_x;
      z_y += fast_exp(from_y);
      bracket += times(e_x, from_x - from_y);
    }
    sums.z_x = sums.z_x * shrink_x + z_x;
    sums.z_y = sums.z_y * shrink_y + z_y;
    sums.bracket += bracket;
    sums.max_x = max_x;
    sums.max_y = max_y;
  }
  return sums;
}

// What is taken off logits before two of them are compared: nothing from the usual ones, which would cost a rounding,
// and about their maximum from large ones, whose difference would lose more.
template <class A>
A center_of(A most) {
  return 64 * __builtin_nearbyint(most / 64);
}

// The difference of two maxima that are off their centers.
template <class A>
double gap_of(A max_x, A max_y) {
  return (double(max_x) - center_of(max_x)) - (double(max_y) - center_of(max_y));
}

// K of the student (x) and of the teacher (y) in the js form.
template <class A>
void js_sweep(const Problem& p, int64_t row, A t, Row<A>& result, A* x, A* y) {
  const Mixture<A> mixture(1 - p.beta);
  const A max_x = result.max_student, max_y = result.max_teacher;
  const A shrink_x = 1 / result.z_student, shrink_y = 1 / result.z_teacher;
  const A center_x = center_of(max_x), center_y = center_of(max_y);
  const A shift =
      static_cast<A>(gap_of(max_x, max_y) + (__builtin_log(result.z_student) - __builtin_log(result.z_teacher)));
  A k_x = 0, k_y = 0;
  for (int64_t begin = 0; begin < p.classes; begin += kBlock) {
    const int64_t n = p.classes - begin < kBlock ? p.classes - begin : kBlock;
    load(p.student, row, begin, n, t, x);
    load(p.teacher, row, begin, n, t, y);
    A block_x = 0, block_y = 0;
#pragma omp simd reduction(+ : block_x, block_y)
    for (int64_t i = 0; i < n; ++i) {
      const A gap = ((y[i] - center_y) - (x[i] - center_x)) + shift;
      block_x -= times(fast_exp(x[i] - max_x) * shrink_x, mixture.over_a(gap));
      block_y -= times(fast_exp(y[i] - max_y) * shrink_y, mixture.over_b(gap));
    }
    k_x += block_x;
    k_y += block_y;
  }
  result.mean_student = k_x;
  result.mean_teacher = k_y;
}

// What is saved of a row, and its divergence without T^2.
template <class A>
A measure(const Problem& p, int64_t row, A* x, A* y, Row<A>& result) {
  const A t = p.temperature_of(row);
  const A raw_scale = p.ce_weight != 0 ? t : A(0);
  const bool student_first = p.direction != Direction::forward;  // x is the first argument of KL
  const Logits& first = student_first ? p.student : p.teacher;
  const Logits& second = student_first ? p.teacher : p.student;
  const Sums<A> sums = sweep<A>(first, second, row, t, raw_scale, student_first, x, y);
  const A mean = sums.bracket / sums.z_x;
  result.max_student = student_first ? sums.max_x : sums.max_y;
  result.max_teacher = student_first ? sums.max_y : sums.max_x;
  result.z_student = student_first ? sums.z_x : sums.z_y;
  result.z_teacher = student_first ? sums.z_y : sums.z_x;
  result.z_raw = sums.z_raw;
  result.mean_student = result.mean_teacher = mean;
  if (p.direction == Direction::js) {
    js_sweep<A>(p, row, t, result, x, y);
    return A(1 - p.beta) * result.mean_student + A(p.beta) * result.mean_teacher;
  }
  return mean + fast_log(sums.z_y) - fast_log(sums.z_x);
}

// What the gradient of one row's loss needs, for the logits of the student or of the teacher.
template <class A>
struct Slope {
  const Logits *own, *other;
  A max_own, max_other, shrink_own, shrink_other, mean, t, c, ce, shrink_raw;
  A offset;  // x - y - offset, both less their centers, is log own - log other, less KL where that is not js
  Mixture<A> mixture;
  bool own_is_second;
  int64_t label;  // -1: no cross entropy

  Slope(const Problem& p, int64_t row, const Row<A>& of, A factor, bool of_student)
      : own(of_student ? &p.student : &p.teacher),
        other(of_student ? &p.teacher : &p.student),
        max_own(of_student ? of.max_student : of.max_teacher),
        max_other(of_student ? of.max_teacher : of.max_student),
        shrink_own(1 / (of_student ? of.z_student : of.z_teacher)),
        shrink_other(1 / (of_student ? of.z_teacher : of.z_student)),
        mean(of_student ? of.mean_student : of.mean_teacher),
        t(p.temperature_of(row)),
        c(factor * (p.scale_by_t2 ? t : A(1) / t)),
        ce(factor * A(p.ce_weight)),
        shrink_raw(1 / of.z_raw),
        mixture(of_student ? 1 - p.beta : p.beta),
        own_is_second(of_student == (p.direction == Direction::forward)),
        label(of_student && p.ce_weight != 0 ? p.label_of(row) : -1) {
    double logs = mean;
    if (p.direction == Direction::js) {
      c *= of_student ? A(1 - p.beta) : A(p.beta);
      logs = (__builtin_log(of.z_student) - __builtin_log(of.z_teacher)) * (of_student ? 1 : -1);
    }
    offset = static_cast<A>(gap_of(max_own, max_other) + logs);
  }
};

// Adds the gradient of a row's columns [begin, begin + n) to `out`.
template <class A>
void add_gradient(
    const Problem& p, int64_t row, const Slope<A>& slope, int64_t begin, int64_t n, A* __restrict x, A* __restrict y,
    A* __restrict out) {
  load(*slope.own, row, begin, n, slope.t, x);
  load(*slope.other, row, begin, n, slope.t, y);
  const A max_own = slope.max_own, max_other = slope.max_other;
  const A center_own = center_of(max_own), center_other = center_of(max_other);
  const A shrink_own = slope.c * slope.shrink_own, offset = slope.offset;
  if (p.direction == Direction::js) {
    const Mixture<A> mixture = slope.mixture;
    const A mean = slope.mean;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const A e = fast_exp(x[i] - max_own);
      const A gap = ((y[i] - center_other) - (x[i] - center_own)) + offset;
      const A term = shrink_own * e * (mixture.over_a(gap) + mean);
      out[i] -= e > A(0) ? term : A(0);
    }
  } else if (slope.own_is_second) {
    const A shrink_other = slope.c * slope.shrink_other;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      out[i] += fast_exp(x[i] - max_own) * shrink_own - fast_exp(y[i] - max_other) * shrink_other;
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const A e = fast_exp(x[i] - max_own);
      const A term = shrink_own * e * (((x[i] - center_own) - (y[i] - center_other)) - offset);
      out[i] += e > A(0) ? term : A(0);
    }
  }
  if (slope.label >= 0) {
    const A ce = slope.ce * slope.shrink_raw, t = slope.t;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      out[i] += ce * fast_exp((x[i] - max_own) * t);
    }
    if (slope.label >= begin && slope.label < begin + n) {
      out[slope.label - begin] -= slope.ce;
    }
  }
}

// Rows of few classes: kLanes rows at once, a lane a row, [class][lane] in memory; every loop over lanes is vector code.
constexpr int64_t kLanes = 32;
constexpr int64_t kNarrow = 64;

template <class A>
struct Tile {
  alignas(64) A x[kNarrow * kLanes], y[kNarrow * kLanes], e_x[kNarrow * kLanes], e_y[kNarrow * kLanes];
  alignas(64) A row[kNarrow * kLanes];
  alignas(64) int32_t start[kLanes];  // where a lane's row starts in `row`
  alignas(64) A scale[kLanes], t[kLanes], weight[kLanes], max_x[kLanes], max_y[kLanes], z_x[kLanes], z_y[kLanes];
  alignas(64) A kl_x[kLanes], kl_y[kLanes], z_raw[kLanes], label[kLanes], ce[kLanes], loss[kLanes];
  alignas(64) A shift[kLanes];  // log q - log p = x - y - shift
};

// The logits of rows [begin, begin + n) over T; rows that do not count, and lanes beyond n, are 0.
template <class A>
void load_tile(const Problem& p, const Logits& logits, int64_t begin, int64_t n, Tile<A>& tile, A* __restrict to) {
  const int64_t classes = p.classes;
  const bool plain = p.labels.data == nullptr && logits.row_stride == classes &&
                     begin / p.rows_a_group == (begin + n - 1) / p.rows_a_group;
  A* rows = tile.row;
  if (plain) {
    load(logits, begin, 0, n * classes, A(1), rows);
  } else {
    for (int64_t lane = 0; lane < n; ++lane) {
      if (p.kept(begin + lane)) {
        load(logits, begin + lane, 0, classes, A(1), rows + lane * classes);
      } else {
        fill(rows + lane * classes, classes, A(0));
      }
    }
  }
  fill(rows + n * classes, (kLanes - n) * classes, A(0));
  const int32_t* __restrict start = tile.start;
  const A* __restrict scale = tile.scale;
  const A* __restrict t = tile.t;
  for (int64_t c = 0; c < classes; ++c) {
    const A* __restrict column = rows + c;
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      to[c * kLanes + lane] = divide(column[start[lane]], t[lane], scale[lane]);
    }
  }
}

// x := x - max, z := sum e^x, e := e^x / z.
template <class A>
void center(A* __restrict x, A* __restrict e, int64_t classes, A* __restrict most, A* __restrict z) {
  fill(most, kLanes, std::numeric_limits<A>::lowest());
  fill(z, kLanes, A(0));
  for (int64_t c = 0; c < classes; ++c) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      most[lane] = x[c * kLanes + lane] > most[lane] ? x[c * kLanes + lane] : most[lane];
    }
  }
  for (int64_t c = 0; c < classes; ++c) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      x[c * kLanes + lane] -= most[lane];
      e[c * kLanes + lane] = fast_exp(x[c * kLanes + lane]);
      z[lane] += e[c * kLanes + lane];
    }
  }
  A shrink[kLanes];
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    shrink[lane] = A(1) / z[lane];
  }
  for (int64_t c = 0; c < classes; ++c) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      e[c * kLanes + lane] *= shrink[lane];
    }
  }
}

// x and y centred logits of student and teacher, e_x and e_y their distributions; and what of a row is saved.
template <class A>
void measure_tile(const Problem& p, int64_t begin, int64_t n, Tile<A>& tile) {
  const int64_t classes = p.classes;
  fill(tile.t, kLanes, A(p.temperature));
  fill(tile.weight, kLanes, A(1));
  if (p.temperatures != nullptr || p.weights.data != nullptr || p.labels.data != nullptr) {
    for (int64_t lane = 0; lane < n; ++lane) {
      const bool kept = p.kept(begin + lane);
      tile.t[lane] = kept ? A(p.temperature_of(begin + lane)) : A(1);
      tile.weight[lane] = kept ? A(p.weight_of(begin + lane)) : A(0);
    }
  }
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    tile.scale[lane] = A(1) / tile.t[lane];
  }
  load_tile(p, p.student, begin, n, tile, tile.x);
  load_tile(p, p.teacher, begin, n, tile, tile.y);
  center(tile.x, tile.e_x, classes, tile.max_x, tile.z_x);
  center(tile.y, tile.e_y, classes, tile.max_y, tile.z_y);
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    tile.shift[lane] = fast_log(tile.z_x[lane]) - fast_log(tile.z_y[lane]);
  }
  fill(tile.z_raw, kLanes, A(1));
  fill(tile.ce, kLanes, A(0));
  if (p.ce_weight != 0) {
    A* z = tile.z_raw;
    fill(z, kLanes, A(0));
    for (int64_t c = 0; c < classes; ++c) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        z[lane] += fast_exp(tile.x[c * kLanes + lane] * tile.t[lane]);
      }
    }
    for (int64_t lane = 0; lane < n; ++lane) {
      const int64_t label = p.kept(begin + lane) ? p.label_of(begin + lane) : 0;
      tile.label[lane] = tile.x[label * kLanes + lane] * tile.t[lane];
    }
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      tile.ce[lane] = fast_log(z[lane]) - tile.label[lane];
    }
  }
  const Mixture<A> mixture(1 - p.beta);
  A* kl_x = tile.kl_x;
  A* kl_y = tile.kl_y;
  fill(kl_x, kLanes, A(0));
  fill(kl_y, kLanes, A(0));
  for (int64_t c = 0; c < classes; ++c) {
    const A *x = tile.x + c * kLanes, *y = tile.y + c * kLanes;
    const A *e_x = tile.e_x + c * kLanes, *e_y = tile.e_y + c * kLanes, *shift = tile.shift;
    if (p.direction == Direction::forward) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        kl_y[lane] += times(e_y[lane], (y[lane] - x[lane]) + shift[lane]);
      }
    } else if (p.direction == Direction::reverse) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        kl_x[lane] += times(e_x[lane], (x[lane] - y[lane]) - shift[lane]);
      }
    } else {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const A gap = (y[lane] - x[lane]) + shift[lane];
        kl_x[lane] -= times(e_x[lane], mixture.over_a(gap));
        kl_y[lane] -= times(e_y[lane], mixture.over_b(gap));
      }
    }
  }
  const A weight_x = p.direction == Direction::js ? A(1 - p.beta) : A(1);
  const A weight_y = p.direction == Direction::js ? A(p.beta) : A(1);
  const A ce_weight = A(p.ce_weight);
  const bool scale_by_t2 = p.scale_by_t2;
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const A kl = weight_x * kl_x[lane] + weight_y * kl_y[lane];
    const A t2 = scale_by_t2 ? tile.t[lane] * tile.t[lane] : A(1);
    tile.loss[lane] = tile.weight[lane] * (kl * t2 + ce_weight * tile.ce[lane]);
  }
}

// The student's gradient of the measured rows [begin, begin + n), for a gradient of 1.
template <class A>
void tile_gradient(const Problem& p, int64_t begin, int64_t n, Tile<A>& tile) {
  const int64_t classes = p.classes;
  A c_lane[kLanes], ce_lane[kLanes];
  const A divided = A(1) / A(p.divisor), ce_weight = A(p.ce_weight);
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const A factor = tile.weight[lane] * divided;
    c_lane[lane] = factor * (p.scale_by_t2 ? tile.t[lane] : tile.scale[lane]);
    ce_lane[lane] = factor * ce_weight;
  }
  const Mixture<A> mixture(1 - p.beta);
  const A weight = A(1 - p.beta);
  for (int64_t c = 0; c < classes; ++c) {
    const A *x = tile.x + c * kLanes, *y = tile.y + c * kLanes, *e_y = tile.e_y + c * kLanes;
    A* out = tile.e_x + c * kLanes;
    A e[kLanes];
    if (p.ce_weight != 0) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        e[lane] = ce_lane[lane] * fast_exp(x[lane] * tile.t[lane]) / tile.z_raw[lane];
      }
    } else {
      fill(e, kLanes, A(0));
    }
    if (p.direction == Direction::forward) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        out[lane] = c_lane[lane] * (out[lane] - e_y[lane]) + e[lane];
      }
    } else if (p.direction == Direction::reverse) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const A term = c_lane[lane] * out[lane] * ((x[lane] - y[lane]) - (tile.shift[lane] + tile.kl_x[lane]));
        out[lane] = (out[lane] > A(0) ? term : A(0)) + e[lane];
      }
    } else {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const A gap = (y[lane] - x[lane]) + tile.shift[lane];
        const A term = c_lane[lane] * weight * out[lane] * (mixture.over_a(gap) + tile.kl_x[lane]);
        out[lane] = (out[lane] > A(0) ? -term : A(0)) + e[lane];
      }
    }
  }
  const int32_t* __restrict start = tile.start;
  for (int64_t c = 0; c < classes; ++c) {
    const A* __restrict from = tile.e_x + c * kLanes;
    A* __restrict column = tile.row + c;
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      column[start[lane]] = from[lane];
    }
  }
  for (int64_t lane = 0; lane < n && p.ce_weight != 0; ++lane) {
    if (p.kept(begin + lane)) {
      tile.row[lane * classes + p.label_of(begin + lane)] -= ce_lane[lane];
    }
  }
  store(p.student_gradient, begin * classes, n * classes, tile.row);
}

template <class A>
void forward_tiles(const Problem& p, int64_t begin, int64_t end) {
  Tile<A> tile;
  for (int32_t lane = 0; lane < kLanes; ++lane) {
    tile.start[lane] = lane * static_cast<int32_t>(p.classes);
  }
  for (int64_t row = begin; row < end; row += kLanes) {
    const int64_t n = end - row < kLanes ? end - row : kLanes;
    measure_tile(p, row, n, tile);
    store<A>(p.losses, row, n, tile.loss);
    for (int64_t lane = 0; lane < n && p.save == Save::numbers; ++lane) {
      const A shift = p.direction == Direction::js ? A(0) : tile.shift[lane];
      static_cast<Row<A>*>(p.rows)[row + lane] = {
          tile.max_x[lane],        tile.max_y[lane],        tile.z_x[lane],    tile.z_y[lane],
          tile.kl_x[lane] + shift, tile.kl_y[lane] - shift, tile.z_raw[lane]};
    }
    if (p.save == Save::gradient) {
      tile_gradient(p, row, n, tile);
    }
  }
}

// Losses of the rows [begin, end), and what p.save asks for.
template <class A>
void forward_rows(const Problem& p, int64_t begin, int64_t end) {
  if (p.classes <= kNarrow) {
    return forward_tiles<A>(p, begin, end);
  }
  alignas(64) A x[kBlock], y[kBlock], out[kBlock];
  for (int64_t row = begin; row < end; ++row) {
    Row<A> of{};
    A loss = 0, factor = 0;
    const bool kept = p.kept(row);
    if (kept) {
      const A kl = measure<A>(p, row, x, y, of);
      const A t = p.temperature_of(row);
      loss = p.scale_by_t2 ? kl * t * t : kl;
      if (p.ce_weight != 0) {
        const A label = load_one<A>(p.student, row, p.label_of(row), t);
        loss += A(p.ce_weight) * (fast_log(of.z_raw) - (label - of.max_student) * t);
      }
      const A weight = p.weight_of(row);
      loss *= weight;
      factor = weight / A(p.divisor);
    }
    static_cast<A*>(p.losses)[row] = loss;
    if (p.save == Save::numbers) {
      static_cast<Row<A>*>(p.rows)[row] = of;
    } else if (p.save == Save::gradient) {
      const Slope<A> slope(p, row, of, factor, true);
      for (int64_t column = 0; column < p.classes; column += kBlock) {
        const int64_t n = p.classes - column < kBlock ? p.classes - column : kBlock;
        fill(out, n, A(0));
        if (kept) {
          add_gradient(p, row, slope, column, n, x, y, out);
        }
        store(p.student_gradient, row * p.classes + column, n, out);
      }
    }
  }
}

// Gradients of the rows of the teacher [begin, end), and of the students' rows that belong to them.
template <class A>
void backward_rows(const Problem& p, int64_t begin, int64_t end) {
  alignas(64) A x[kBlock], y[kBlock], out[kBlock];
  for (int64_t index = begin; index < end; ++index) {
    for (int64_t column = 0; column < p.classes; column += kBlock) {
      const int64_t n = p.classes - column < kBlock ? p.classes - column : kBlock;
      for (const bool of_student : {true, false}) {
        const Gradient& target = of_student ? p.student_gradient : p.teacher_gradient;
        if (target.data == nullptr) {
          continue;
        }
        const bool shared = !of_student && p.teacher.shared;
        fill(out, n, A(0));
        for (int64_t group = 0; group < p.groups; ++group) {
          const int64_t row = group * p.rows_a_group + index;
          if (p.kept(row)) {
            const A grad = static_cast<const A*>(p.grad)[p.grad_is_scalar ? 0 : row];
            const A factor = grad * A(p.weight_of(row)) / A(p.divisor);
            const Slope<A> slope(p, row, static_cast<const Row<A>*>(p.rows)[row], factor, of_student);
            add_gradient(p, row, slope, column, n, x, y, out);
          }
          if (!shared || group == p.groups - 1) {
            store(target, (shared ? index : row) * p.classes + column, n, out);
            fill(out, n, A(0));
          }
        }
      }
    }
  }
}
