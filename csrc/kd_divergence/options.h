// The options of the divergence, their enumerations and bounds, for every device.
#pragma once

#include <cstdint>

#include "../checks.h"

namespace merc::kd_divergence {

enum class Direction : int { forward = 0, reverse = 1, js = 2 };
enum class Save : int { nothing = 0, stats = 1, gradient = 2 };  // of the forward pass for the backward pass

constexpr int64_t kStats = 7;              // numbers saved of a row: the RowStats of a device
constexpr int64_t kMostClasses = 1 << 30;  // columns of a row are counted in 32 bits on a GPU

// In the order of the schema. A is double as they come, or what a kernel computes in.
template <class A>
struct Options {
  A temperature;
  Direction direction;
  A beta, ce_weight;
  bool scale_by_t2;
  int64_t ignore_index;

  template <class Reader>
  static Options read(Reader& from) {
    return {
        .temperature = from.number(),
        .direction = checked("direction", from.integer(), {Direction::forward, Direction::reverse, Direction::js}),
        .beta = from.number(),
        .ce_weight = from.number(),
        .scale_by_t2 = from.flag(),
        .ignore_index = from.integer()};
  }

  template <class B>
  Options<B> in() const {
    return {B(temperature), direction, B(beta), B(ce_weight), scale_by_t2, ignore_index};
  }
};

}  // namespace merc::kd_divergence
