// The rows of the divergence, one after the other, for one instruction set; included inside its namespace after
// logits.h, hence no include guard.
//
// A row's logits are read block by block into `x` (one distribution, a) and `y` (the other, b), divided by T:
//   sums     m = max, Z = sum e^(x - m), and, in the same sweep, A = sum e^(x - m_x) [(x - m_x) - (y - m_y)], so that
//            KL(a|b) = A / Z_x + log Z_y - log Z_x. A grows by Z_x times the shift of the bracket when a maximum moves.
//   js       K = sum a (log a - log m) for a and for b, m = w b + (1 - w) a, in a second sweep.
//   gradient of the first logits, x being theirs, c its factor:
//            second argument of KL: c (a - b); first: c a (log a - log b - KL), in which the log Z cancel:
//            c a [(x - m_x) - (y - m_y) - A / Z_x]; js: c (1 - w) a (log a - log m - K_a).
// A class with a = 0 adds nothing, whatever b is, but in a row whose divergence is NaN: its mean is NaN then. Sums run
// in a fixed order, so a row's bits never change.

constexpr int64_t kBlock = 1024;

template <class A>
struct PairSums {
  A max_x, max_y, z_x, z_y, bracket;
  A z_raw;  // sum e^(logit - max) of the student at T = 1, for the cross entropy
};

// The exponentials of a sweep, for a gradient that needs nothing else: those of a block are off the maxima then known.
template <class A>
struct Exponentials {
  std::vector<A> x, y, max_x, max_y;  // of the classes; of the blocks

  explicit Exponentials(int64_t classes)
      : x(classes), y(classes), max_x((classes + kBlock - 1) / kBlock), max_y(max_x.size()) {}
};

// One sweep over a row. `student_is_x` says whose T = 1 sum to take, where raw_scale (= T) is not 0.
template <class A>
PairSums<A> sweep(
    const Logits& first, const Logits& second, int64_t row, A t, A raw_scale, bool student_is_x, A* x, A* y,
    Exponentials<A>* keep) {
  const A lowest = std::numeric_limits<A>::lowest();
  PairSums<A> sums{lowest, lowest, 0, 0, 0, 0};
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
    A* e_x = keep == nullptr ? x : keep->x.data() + begin;  // x and y end here
    A* e_y = keep == nullptr ? y : keep->y.data() + begin;
#pragma omp simd reduction(+ : z_x, z_y, bracket)
    for (int64_t i = 0; i < n; ++i) {
      const A from_x = x[i] - max_x, from_y = y[i] - max_y;
      e_x[i] = fast_exp(from_x);
      e_y[i] = fast_exp(from_y);
      z_x += e_x[i];
      z_y += e_y[i];
      bracket += times(e_x[i], from_x - from_y);
    }
    if (keep != nullptr) {
      keep->max_x[begin / kBlock] = max_x;
      keep->max_y[begin / kBlock] = max_y;
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
void js_sweep(const Rows& p, int64_t row, A t, RowStats<A>& result, A* x, A* y) {
  const Mixture<A> mixture(1 - p.options.beta);
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
A measure(const Rows& p, int64_t row, A* x, A* y, Exponentials<A>* keep, RowStats<A>& result) {
  const A t = p.temperature_of(row);
  const A raw_scale = p.options.ce_weight != 0 ? t : A(0);
  const bool student_first = p.options.direction != Direction::forward;  // x is the first argument of KL
  const Logits& first = student_first ? p.student : p.teacher;
  const Logits& second = student_first ? p.teacher : p.student;
  const PairSums<A> sums = sweep<A>(first, second, row, t, raw_scale, student_first, x, y, keep);
  const A mean = sums.bracket / sums.z_x;
  result.max_student = student_first ? sums.max_x : sums.max_y;
  result.max_teacher = student_first ? sums.max_y : sums.max_x;
  result.z_student = student_first ? sums.z_x : sums.z_y;
  result.z_teacher = student_first ? sums.z_y : sums.z_x;
  result.z_raw = sums.z_raw;
  result.mean_student = result.mean_teacher = mean;
  if (p.options.direction == Direction::js) {
    js_sweep<A>(p, row, t, result, x, y);
    return A(1 - p.options.beta) * result.mean_student + A(p.options.beta) * result.mean_teacher;
  }
  const A divergence = mean + fast_log(sums.z_y) - fast_log(sums.z_x);
  if (divergence != divergence) {
    result.mean_student = result.mean_teacher = divergence;
  }
  return divergence;
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

  Slope(const Rows& p, int64_t row, const RowStats<A>& of, A factor, bool of_student)
      : own(of_student ? &p.student : &p.teacher),
        other(of_student ? &p.teacher : &p.student),
        max_own(of_student ? of.max_student : of.max_teacher),
        max_other(of_student ? of.max_teacher : of.max_student),
        shrink_own(1 / (of_student ? of.z_student : of.z_teacher)),
        shrink_other(1 / (of_student ? of.z_teacher : of.z_student)),
        mean(of_student ? of.mean_student : of.mean_teacher),
        t(p.temperature_of(row)),
        c(factor * (p.options.scale_by_t2 ? t : A(1) / t)),
        ce(factor * A(p.options.ce_weight)),
        shrink_raw(1 / of.z_raw),
        mixture(of_student ? 1 - p.options.beta : p.options.beta),
        own_is_second(of_student == (p.options.direction == Direction::forward)),
        label(of_student && p.options.ce_weight != 0 ? p.label_of(row) : -1) {
    double logs = mean;
    if (p.options.direction == Direction::js) {
      c *= of_student ? A(1 - p.options.beta) : A(p.options.beta);
      logs = (__builtin_log(of.z_student) - __builtin_log(of.z_teacher)) * (of_student ? 1 : -1);
    }
    offset = static_cast<A>(gap_of(max_own, max_other) + logs);
  }
};

// Adds the gradient of a row's columns [begin, begin + n) to `out`.
template <class A>
void add_gradient(
    const Rows& p, int64_t row, const Slope<A>& slope, int64_t begin, int64_t n, A* __restrict x, A* __restrict y,
    A* __restrict out) {
  load(*slope.own, row, begin, n, slope.t, x);
  load(*slope.other, row, begin, n, slope.t, y);
  const A max_own = slope.max_own, max_other = slope.max_other;
  const A center_own = center_of(max_own), center_other = center_of(max_other);
  const A shrink_own = slope.c * slope.shrink_own, offset = slope.offset;
  if (p.options.direction == Direction::js) {
    const Mixture<A> mixture = slope.mixture;
    const A mean = slope.mean, zero = zero_of(mean);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const A e = fast_exp(x[i] - max_own);
      const A gap = ((y[i] - center_other) - (x[i] - center_own)) + offset;
      const A term = shrink_own * e * (mixture.over_a(gap) + mean);
      out[i] -= e == A(0) ? zero : term;
    }
  } else if (slope.own_is_second) {
    const A shrink_other = slope.c * slope.shrink_other;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      out[i] += fast_exp(x[i] - max_own) * shrink_own - fast_exp(y[i] - max_other) * shrink_other;
    }
  } else {
    const A zero = zero_of(slope.mean);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const A e = fast_exp(x[i] - max_own);
      const A term = shrink_own * e * (((x[i] - center_own) - (y[i] - center_other)) - offset);
      out[i] += e == A(0) ? zero : term;
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

// The student's gradient where it is q - p alone, of a row's block from the exponentials.
template <class A>
void gradient_of(const Exponentials<A>& kept, const Slope<A>& slope, int64_t begin, int64_t n, A* __restrict out) {
  const A* __restrict own = kept.y.data() + begin;  // the student is the second argument of KL
  const A* __restrict other = kept.x.data() + begin;
  const int64_t block = begin / kBlock;
  const A own_scale = slope.c * slope.shrink_own * fast_exp(kept.max_y[block] - slope.max_own);
  const A other_scale = slope.c * slope.shrink_other * fast_exp(kept.max_x[block] - slope.max_other);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    out[i] = own[i] * own_scale - other[i] * other_scale;
  }
}

// Losses of the rows [begin, end), and what p.save asks for.
template <class A>
void forward_rows(const Rows& p, int64_t begin, int64_t end) {
  alignas(64) A x[kBlock], y[kBlock], out[kBlock];
  std::optional<Exponentials<A>> keep;
  if (p.save == Save::gradient && p.options.direction == Direction::forward && p.options.ce_weight == 0) {
    keep.emplace(p.classes);
  }
  for (int64_t row = begin; row < end; ++row) {
    RowStats<A> of{};
    A loss = 0, factor = 0;
    const bool kept = p.kept(row);
    if (kept) {
      const A kl = measure<A>(p, row, x, y, keep ? &*keep : nullptr, of);
      const A t = p.temperature_of(row);
      loss = p.options.scale_by_t2 ? kl * t * t : kl;
      if (p.options.ce_weight != 0) {
        const A label = load_one<A>(p.student, row, p.label_of(row), t);
        loss += A(p.options.ce_weight) * (fast_log(of.z_raw) - (label - of.max_student) * t);
      }
      const A weight = p.weight_of(row);
      loss *= weight;
      factor = weight / A(p.divisor);
    }
    static_cast<A*>(p.losses)[row] = loss;
    if (p.save == Save::stats) {
      static_cast<RowStats<A>*>(p.stats)[row] = of;
    } else if (p.save == Save::gradient) {
      const Slope<A> slope(p, row, of, factor, true);
      for (int64_t column = 0; column < p.classes; column += kBlock) {
        const int64_t n = p.classes - column < kBlock ? p.classes - column : kBlock;
        if (kept && keep) {
          gradient_of(*keep, slope, column, n, out);
        } else {
          fill(out, n, A(0));
          if (kept) {
            add_gradient(p, row, slope, column, n, x, y, out);
          }
        }
        store(p.grad_student, row * p.classes + column, n, out);
      }
    }
  }
}

// Gradients of the rows of the teacher [begin, end), and of the students' rows that belong to them.
template <class A>
void backward_rows(const Rows& p, int64_t begin, int64_t end) {
  alignas(64) A x[kBlock], y[kBlock], out[kBlock];
  for (int64_t index = begin; index < end; ++index) {
    for (int64_t column = 0; column < p.classes; column += kBlock) {
      const int64_t n = p.classes - column < kBlock ? p.classes - column : kBlock;
      for (const bool of_student : {true, false}) {
        const Gradient& target = of_student ? p.grad_student : p.grad_teacher;
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
            const Slope<A> slope(p, row, static_cast<const RowStats<A>*>(p.stats)[row], factor, of_student);
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
