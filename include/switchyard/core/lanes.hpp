#pragma once

#include <switchyard/core/host_device.hpp>

#include <limits>

namespace switchyard {

/// An expert and the value it is judged by.
struct candidate {
  float value;
  int id;
};

inline constexpr float infinity = std::numeric_limits<float>::infinity();
inline constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

/// Candidates that come before and after every expert in the order of choice.
inline constexpr candidate before_all{infinity, -1};
inline constexpr candidate after_all{-infinity, std::numeric_limits<int>::max()};

/// The order of choice: larger value first, and of equal values the lower id.
/// It is total for numbers, so every backend picks the same expert.
SWITCHYARD_HD constexpr bool precedes(candidate a, candidate b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

/// The lane group of the CPU: one lane that holds every expert.
///
/// Routing policies are written for a group of `size` lanes that together hold one value per expert. On a GPU
/// a warp is such a group, and the four functions are shuffles.
struct serial_lanes {
  static constexpr int size = 1;
  SWITCHYARD_HD constexpr int rank() const { return 0; }                                 ///< this lane's number
  SWITCHYARD_HD constexpr float sum(float value) const { return value; }                 ///< over all lanes
  SWITCHYARD_HD constexpr float max(float value) const { return value; }                 ///< over all lanes
  SWITCHYARD_HD constexpr candidate best(candidate c) const { return c; }                ///< first by `precedes`
  SWITCHYARD_HD constexpr float from(float value, int /*lane*/) const { return value; }  ///< that lane's value
};

/// A lane's share of one float per expert: value `i` belongs to expert `lanes.rank() + i * Lanes::size`.
/// Entries past the last expert, and experts that are closed to a token, hold minus infinity.
template <int Experts, class Lanes>
struct per_expert {
  static constexpr int size = (Experts + Lanes::size - 1) / Lanes::size;
  static constexpr float closed = -infinity;

  float value[size];

  SWITCHYARD_HD static constexpr int expert(Lanes lanes, int i) { return lanes.rank() + i * Lanes::size; }

  /// The value of one expert, on every lane.
  SWITCHYARD_HD constexpr float at(Lanes lanes, int id) const {
    // A fixed loop keeps the share in registers on a GPU, where a variable index would spill it.
    if constexpr (Lanes::size == 1) {
      return value[id];
    } else {
      float mine = 0.0f;
      for (int i = 0; i < size; ++i) {
        if (i == id / Lanes::size) mine = value[i];
      }
      return lanes.from(mine, id % Lanes::size);
    }
  }
};

}  // namespace switchyard
