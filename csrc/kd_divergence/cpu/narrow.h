// The forward pass of rows of few classes, for one instruction set; included inside its namespace after logits.h, hence
// no include guard. kLanes rows at once, a lane a row, [class][lane] in memory; every loop over lanes is vector code.
//
//   x, y      logits of student and teacher over T, less their maxima;  z_x, z_y sums of e^x, e^y;  e_x = q, e_y = p
//   log q - log p = x - y - shift,  shift = log z_x - log z_y
//   value     kl_y = sum p (log p - log q);  kl_x = sum q (log q - log p);  js: kl_x = sum q log(q / m), kl_y likewise
//   gradient  c (q - p);  c q (log q - log p - kl_x);  js: c (1 - beta) q (log q - log m - kl_x);  plus that of ce

constexpr int64_t kLanes = 32;
constexpr int64_t kNarrow = 64;

template <class A>
struct LaneRows {
  alignas(64) A x[kNarrow * kLanes], y[kNarrow * kLanes], e_x[kNarrow * kLanes], e_y[kNarrow * kLanes];
  alignas(64) A row[kNarrow * kLanes];
  alignas(64) int32_t start[kLanes];  // where a lane's row starts in `row`
  alignas(64) A scale[kLanes], t[kLanes], weight[kLanes], max_x[kLanes], max_y[kLanes], z_x[kLanes], z_y[kLanes];
  alignas(64) A kl_x[kLanes], kl_y[kLanes], z_raw[kLanes], label[kLanes], ce[kLanes], loss[kLanes];
  alignas(64) A shift[kLanes];  // log q - log p = x - y - shift
  alignas(64) A zero[kLanes];   // what a class of probability 0 gets of the gradient
};

// The logits of rows [begin, begin + n) over T; rows that do not count, and lanes beyond n, are 0.
template <class A>
void load_tile(const Rows& p, const Logits& logits, int64_t begin, int64_t n, LaneRows<A>& tile, A* __restrict to) {
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
void measure_tile(const Rows& p, int64_t begin, int64_t n, LaneRows<A>& tile) {
  const int64_t classes = p.classes;
  fill(tile.t, kLanes, A(p.options.temperature));
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
  if (p.options.ce_weight != 0) {
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
  const Mixture<A> mixture(1 - p.options.beta);
  A* kl_x = tile.kl_x;
  A* kl_y = tile.kl_y;
  fill(kl_x, kLanes, A(0));
  fill(kl_y, kLanes, A(0));
  for (int64_t c = 0; c < classes; ++c) {
    const A *x = tile.x + c * kLanes, *y = tile.y + c * kLanes;
    const A *e_x = tile.e_x + c * kLanes, *e_y = tile.e_y + c * kLanes, *shift = tile.shift;
    if (p.options.direction == Direction::forward) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        kl_y[lane] += times(e_y[lane], (y[lane] - x[lane]) + shift[lane]);
      }
    } else if (p.options.direction == Direction::reverse) {
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
  const A weight_x = p.options.direction == Direction::js ? A(1 - p.options.beta) : A(1);
  const A weight_y = p.options.direction == Direction::js ? A(p.options.beta) : A(1);
  const A ce_weight = A(p.options.ce_weight);
  const bool scale_by_t2 = p.options.scale_by_t2;
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const A kl = weight_x * kl_x[lane] + weight_y * kl_y[lane];
    const A t2 = scale_by_t2 ? tile.t[lane] * tile.t[lane] : A(1);
    tile.zero[lane] = zero_of(kl);
    tile.loss[lane] = tile.weight[lane] * (kl * t2 + ce_weight * tile.ce[lane]);
  }
}

// The student's gradient of the measured rows [begin, begin + n), for a gradient of 1.
template <class A>
void tile_gradient(const Rows& p, int64_t begin, int64_t n, LaneRows<A>& tile) {
  const int64_t classes = p.classes;
  A c_lane[kLanes], ce_lane[kLanes];
  const A divided = A(1) / A(p.divisor), ce_weight = A(p.options.ce_weight);
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const A factor = tile.weight[lane] * divided;
    c_lane[lane] = factor * (p.options.scale_by_t2 ? tile.t[lane] : tile.scale[lane]);
    ce_lane[lane] = factor * ce_weight;
  }
  const Mixture<A> mixture(1 - p.options.beta);
  const A weight = A(1 - p.options.beta);
  for (int64_t c = 0; c < classes; ++c) {
    const A *x = tile.x + c * kLanes, *y = tile.y + c * kLanes, *e_y = tile.e_y + c * kLanes;
    A* out = tile.e_x + c * kLanes;
    A e[kLanes];
    if (p.options.ce_weight != 0) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        e[lane] = ce_lane[lane] * fast_exp(x[lane] * tile.t[lane]) / tile.z_raw[lane];
      }
    } else {
      fill(e, kLanes, A(0));
    }
    if (p.options.direction == Direction::forward) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        out[lane] = c_lane[lane] * (out[lane] - e_y[lane]) + e[lane];
      }
    } else if (p.options.direction == Direction::reverse) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const A term = c_lane[lane] * out[lane] * ((x[lane] - y[lane]) - (tile.shift[lane] + tile.kl_x[lane]));
        out[lane] = (out[lane] == A(0) ? tile.zero[lane] : term) + e[lane];
      }
    } else {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const A gap = (y[lane] - x[lane]) + tile.shift[lane];
        const A term = c_lane[lane] * weight * out[lane] * (mixture.over_a(gap) + tile.kl_x[lane]);
        out[lane] = (out[lane] == A(0) ? tile.zero[lane] : -term) + e[lane];
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
  for (int64_t lane = 0; lane < n && p.options.ce_weight != 0; ++lane) {
    if (p.kept(begin + lane)) {
      tile.row[lane * classes + p.label_of(begin + lane)] -= ce_lane[lane];
    }
  }
  store(p.grad_student, begin * classes, n * classes, tile.row);
}

// Losses of the rows [begin, end), and what p.save asks for.
template <class A>
void forward_tiles(const Rows& p, int64_t begin, int64_t end) {
  LaneRows<A> tile;
  for (int32_t lane = 0; lane < kLanes; ++lane) {
    tile.start[lane] = lane * static_cast<int32_t>(p.classes);
  }
  for (int64_t row = begin; row < end; row += kLanes) {
    const int64_t n = end - row < kLanes ? end - row : kLanes;
    measure_tile(p, row, n, tile);
    store<A>(p.losses, row, n, tile.loss);
    for (int64_t lane = 0; lane < n && p.save == Save::stats; ++lane) {
      const A shift = p.options.direction == Direction::js ? A(0) : tile.shift[lane];
      static_cast<RowStats<A>*>(p.stats)[row + lane] = {
          tile.max_x[lane],        tile.max_y[lane],        tile.z_x[lane],  tile.z_y[lane],
          tile.kl_x[lane] + shift, tile.kl_y[lane] - shift, tile.z_raw[lane]};
    }
    if (p.save == Save::gradient) {
      tile_gradient(p, row, n, tile);
    }
  }
}
