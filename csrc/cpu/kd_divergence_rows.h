// The rows of the divergence, for one instruction set; included inside its namespace, hence no include guard.
//
// A row's logits are read block by block into `x` (one distribution, a) and `y` (the other, b), divided by T:
//   sums     m = max, Z = sum e^(x - m), and, in the same sweep, A = sum e^(x - m_x) [(x - m_x) - (y - m_y)], so that
//            KL(a|b) = A / Z_x + log Z_y - log Z_x. A grows by Z_x times the shift of the bracket when a maximum moves.
//   js       K = sum a (log a - log m) for a and for b, m = w b + (1 - w) a, in a second sweep.
//   gradient of the first logits, x being theirs, c its factor:
//            second argument of KL: c (a - b); first: c a (log a - log b - KL); js: c (1 - w) a (log a - log m - K_a).
// A class with a = 0 adds nothing, whatever b is. Sums run in a fixed order, so a row's bits never change.

constexpr int64_t kBlock = 1024;

template <class T, class A>
void load(const void* from, int64_t offset, int64_t n, A scale, A* __restrict to) {
  const T* source = static_cast<const T*>(from) + offset;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    to[i] = static_cast<A>(source[i]) * scale;
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
void load(const Logits& logits, int64_t row, int64_t column, int64_t n, A scale, A* to) {
  const int64_t offset = logits.row_offset(row) + column;
  switch (logits.type) {
    case ScalarType::Double:
      return load<double>(logits.data, offset, n, scale, to);
    case ScalarType::Float:
      return load<float>(logits.data, offset, n, scale, to);
    case ScalarType::BFloat16:
      return load<torch::headeronly::BFloat16>(logits.data, offset, n, scale, to);
    default:
      return load<torch::headeronly::Half>(logits.data, offset, n, scale, to);
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
A load_one(const Logits& logits, int64_t row, int64_t column) {
  A value;
  load(logits, row, column, 1, A(1), &value);
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

// e^(x - m_x) [(x - m_x) - (y - m_y)], 0 where a is 0.
template <class A>
inline A bracket_term(A e, A x, A y) {
  const A term = e * (x - y);
  return e > A(0) ? term : A(0);
}

// log(w_x a + w_y b) from the logarithms.
template <class A>
inline A log_mixture(A log_x, A log_y) {
  const A high = log_x > log_y ? log_x : log_y;
  const A low = log_x > log_y ? log_y : log_x;
  return high + fast_log1p(fast_exp(low - high));
}

// One sweep over a row. `student_is_x` says whose T = 1 sum to take, where raw_scale (= T) is not 0.
template <class A>
Sums<A> sweep(
    const Logits& first, const Logits& second, int64_t row, A scale, A raw_scale, bool student_is_x, A* x, A* y) {
  const A lowest = std::numeric_limits<A>::lowest();
  Sums<A> sums{lowest, lowest, 0, 0, 0, 0};
  for (int64_t begin = 0; begin < first.classes; begin += kBlock) {
    const int64_t n = first.classes - begin < kBlock ? first.classes - begin : kBlock;
    load(first, row, begin, n, scale, x);
    load(second, row, begin, n, scale, y);
    const A top_x = largest(x, n), top_y = largest(y, n);
    const A max_x = top_x > sums.max_x ? top_x : sums.max_x;
    const A max_y = top_y > sums.max_y ? top_y : sums.max_y;
    const A shift_x = sums.max_x - max_x, shift_y = sums.max_y - max_y;
    const A shrink_x = fast_exp(shift_x), shrink_y = fast_exp(shift_y);
    if (sums.z_x > A(0)) {
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
      bracket += bracket_term(e_x, from_x, from_y);
    }
    sums.z_x = sums.z_x * shrink_x + z_x;
    sums.z_y = sums.z_y * shrink_y + z_y;
    sums.bracket += bracket;
    sums.max_x = max_x;
    sums.max_y = max_y;
  }
  return sums;
}

// K_a and K_b of the js form: x are the student's logits, y the teacher's, weight is beta.
template <class A>
void js_sweep(const Problem& p, int64_t row, A scale, A beta, Row<A>& result, A* x, A* y) {
  const A log_beta = fast_log(beta), log_rest = fast_log(1 - beta);
  A k_x = 0, k_y = 0;
  for (int64_t begin = 0; begin < p.classes; begin += kBlock) {
    const int64_t n = p.classes - begin < kBlock ? p.classes - begin : kBlock;
    load(p.student, row, begin, n, scale, x);
    load(p.teacher, row, begin, n, scale, y);
    A block_x = 0, block_y = 0;
#pragma omp simd reduction(+ : block_x, block_y)
    for (int64_t i = 0; i < n; ++i) {
      const A log_x = x[i] - result.lse_student, log_y = y[i] - result.lse_teacher;
      const A log_m = log_mixture(log_x + log_rest, log_y + log_beta);
      const A e_x = fast_exp(log_x), e_y = fast_exp(log_y);
      block_x += bracket_term(e_x, log_x, log_m);
      block_y += bracket_term(e_y, log_y, log_m);
    }
    k_x += block_x;
    k_y += block_y;
  }
  result.kl_student = k_x;
  result.kl_teacher = k_y;
}

// A row's five numbers, and its divergence without T^2.
template <class A>
A measure(const Problem& p, int64_t row, A* x, A* y, Row<A>& result) {
  const A t = p.temperature_of(row), scale = A(1) / t;
  const A raw_scale = p.ce_weight != 0 ? t : A(0);
  const bool student_first = p.direction != Direction::forward;  // x is the first argument of KL
  const Logits& first = student_first ? p.student : p.teacher;
  const Logits& second = student_first ? p.teacher : p.student;
  const Sums<A> sums = sweep<A>(first, second, row, scale, raw_scale, student_first, x, y);
  const A log_x = fast_log(sums.z_x), log_y = fast_log(sums.z_y);
  const A kl = sums.bracket / sums.z_x + log_y - log_x;
  const A lse_x = sums.max_x + log_x, lse_y = sums.max_y + log_y;
  result.lse_student = student_first ? lse_x : lse_y;
  result.lse_teacher = student_first ? lse_y : lse_x;
  result.lse_raw = (student_first ? sums.max_x : sums.max_y) * t + fast_log(sums.z_raw);
  result.kl_student = result.kl_teacher = kl;
  if (p.direction == Direction::js) {
    js_sweep<A>(p, row, scale, p.beta, result, x, y);
    return (1 - A(p.beta)) * result.kl_student + A(p.beta) * result.kl_teacher;
  }
  return kl;
}

// What the gradient of one row's loss needs, for the logits of the student or of the teacher.
template <class A>
struct Slope {
  const Logits *own, *other;
  A lse_own, lse_other, kl, t, scale, c, own_weight, log_own, log_other, ce, lse_raw;
  bool own_is_second;
  int64_t label;  // -1: no cross entropy

  Slope(const Problem& p, int64_t row, const Row<A>& of, A factor, bool of_student)
      : own(of_student ? &p.student : &p.teacher),
        other(of_student ? &p.teacher : &p.student),
        lse_own(of_student ? of.lse_student : of.lse_teacher),
        lse_other(of_student ? of.lse_teacher : of.lse_student),
        kl(of_student ? of.kl_student : of.kl_teacher),
        t(p.temperature_of(row)),
        scale(A(1) / t),
        c(factor * (p.scale_by_t2 ? t : scale)),
        own_weight(of_student ? A(1 - p.beta) : A(p.beta)),
        log_own(fast_log(own_weight)),
        log_other(fast_log(1 - own_weight)),
        ce(factor * A(p.ce_weight)),
        lse_raw(of.lse_raw),
        own_is_second(of_student == (p.direction == Direction::forward)),
        label(of_student && p.ce_weight != 0 ? p.label_of(row) : -1) {}
};

// Adds the gradient of a row's columns [begin, begin + n) to `out`.
template <class A>
void add_gradient(
    const Problem& p, int64_t row, const Slope<A>& slope, int64_t begin, int64_t n, A* __restrict x, A* __restrict y,
    A* __restrict out) {
  load(*slope.own, row, begin, n, slope.scale, x);
  load(*slope.other, row, begin, n, slope.scale, y);
  const A lse_own = slope.lse_own, lse_other = slope.lse_other, c = slope.c, kl = slope.kl;
  if (p.direction == Direction::js) {
    const A factor = c * slope.own_weight, log_own = slope.log_own, log_other = slope.log_other;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const A log_x = x[i] - lse_own, log_y = y[i] - lse_other;
      const A e = fast_exp(log_x);
      const A term = factor * e * (log_x - log_mixture(log_x + log_own, log_y + log_other) - kl);
      out[i] += e > A(0) ? term : A(0);
    }
  } else if (slope.own_is_second) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      out[i] += c * (fast_exp(x[i] - lse_own) - fast_exp(y[i] - lse_other));
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const A log_x = x[i] - lse_own, log_y = y[i] - lse_other;
      const A e = fast_exp(log_x);
      const A term = c * e * (log_x - log_y - kl);
      out[i] += e > A(0) ? term : A(0);
    }
  }
  if (slope.label >= 0) {
    const A ce = slope.ce, t = slope.t, lse_raw = slope.lse_raw;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      out[i] += ce * fast_exp(x[i] * t - lse_raw);
    }
    if (slope.label >= begin && slope.label < begin + n) {
      out[slope.label - begin] -= ce;
    }
  }
}

template <class A>
void fill(A* __restrict values, int64_t n, A value) {
  for (int64_t i = 0; i < n; ++i) {
    values[i] = value;
  }
}

// Losses of the rows [begin, end), and what p.save asks for.
template <class A>
void forward_rows(const Problem& p, int64_t begin, int64_t end) {
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
        loss += A(p.ce_weight) * (of.lse_raw - load_one<A>(p.student, row, p.label_of(row)));
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
