// The options of the focal contrastive loss, their enumerations and bounds, for every device.
#pragma once

#include <cstdint>

#include "../checks.h"

namespace merc::focal_contrastive {

enum class Focal : int { similarity = 0, probability = 1 };

// e^(s - 1/tau) of unit rows keeps the smallest and the largest term of a sum in float32's range while 2/tau <= 80:
// from this temperature on 1/tau stands for the maximum of a row.
constexpr double kLeastBounded = 0.025;
constexpr int64_t kStats = 4;                           // numbers saved of an anchor: the RowStats of a device
constexpr int64_t kMostRows = (int64_t{1} << 31) - 64;  // of a group; counted in 32 bits
constexpr int64_t kMostColumns = 1 << 24;

// In the order of the schema. A is double as they come, or what a kernel computes in.
template <class A>
struct Options {
  A temperature, gamma;
  Focal focal;
  bool detach_focal, prototype_anchors, ref_only, normalize;
  int64_t ignore_index;

  template <class Reader>
  static Options read(Reader& from) {
    return {
        .temperature = from.number(),
        .gamma = from.number(),
        .focal = checked("focal", from.integer(), {Focal::similarity, Focal::probability}),
        .detach_focal = from.flag(),
        .prototype_anchors = from.flag(),
        .ref_only = from.flag(),
        .normalize = from.flag(),
        .ignore_index = from.integer()};
  }

  template <class B>
  Options<B> in() const {
    return {B(temperature), B(gamma), focal, detach_focal, prototype_anchors, ref_only, normalize, ignore_index};
  }

  // Whether a row's sum of exponentials needs no maximum of its own.
  bool bounded() const { return normalize && temperature >= kLeastBounded; }
};

}  // namespace merc::focal_contrastive
