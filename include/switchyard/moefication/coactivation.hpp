#pragma once

#include <switchyard/core/counter_random.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/moefication/balanced_assignment.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

/// The graph of hidden units that are active together, for a partition into experts (moefication/metis_partition.hpp). Host code;
/// include it by name.
///
/// Source: Zhang et al. 2022, MoEfication, section 3.2 (co-activation graph split), with its code.
namespace switchyard::moefication {

/// A graph whose edges stand twice, once at each end: those of unit i are `neighbour` and `weight` from `first[i]` to `first[i + 1]`.
struct unit_graph {
  std::vector<std::int64_t> first;      ///< [units + 1]
  std::vector<std::int32_t> neighbour;  ///< in ascending order for each unit
  std::vector<std::int32_t> weight;     ///< at least 1
  double threshold = 0.0;               ///< by which co-activations were divided
};

/// How often units are active together: G[i][j] += min(1, sum over a batch of inputs of a_i a_j). The limit holds for the sum of the
/// products of a batch, as in the published code, whose batches have 8 inputs. Activations are not negative: relu's, or magnitudes. It
/// takes units x units floats.
class coactivation {
 public:
  static constexpr int batch_inputs = 8;

  explicit coactivation(int units) : units_(units), together_(square(units), 0.0f), of_batch_(square(units)) {
    if (units < 1) fail("moefication::coactivation", "at least 1 unit", std::to_string(units));
  }

  /// Adds inputs, [inputs, units], in batches of 8; what is left over is a batch of its own, so hand in multiples of 8.
  void add(view<float const> const& activations) {
    if (activations.columns != units_) {
      fail("moefication::coactivation::add", std::to_string(units_) + " units", std::to_string(activations.columns));
    }
    auto const units = static_cast<std::size_t>(units_);
    for (std::int64_t begin = 0; begin < activations.rows; begin += batch_inputs) {
      std::int64_t const end = std::min<std::int64_t>(begin + batch_inputs, activations.rows);
      std::fill(of_batch_.begin(), of_batch_.end(), 0.0f);
      for (std::int64_t t = begin; t < end; ++t) {
        float const* const active = activations.row(t);
        for (std::size_t i = 0; i < units; ++i) {
          if (active[i] == 0.0f) continue;
          float* const row = of_batch_.data() + i * units;
          for (std::size_t j = 0; j < units; ++j) row[j] += active[i] * active[j];
        }
      }
      for (std::size_t at = 0; at < together_.size(); ++at) together_[at] += std::min(1.0f, of_batch_[at]);
    }
  }

  /// [units, units]
  std::vector<float> const& values() const { return together_; }

  /// The edges: co-activations divided by 0.99 times the first percentile of all entries, of 10, 20, ... 100 (with linear
  /// interpolation), that is not zero; their integer parts, where these are at least 1, and none from a unit to itself. Throws where no
  /// two units were active together.
  unit_graph graph() const {
    std::vector<float> sorted = together_;
    std::sort(sorted.begin(), sorted.end());
    double threshold = 0.0;
    for (int percent = 10; percent <= 100 && threshold == 0.0; percent += 10) {
      double const place = static_cast<double>(sorted.size() - 1) * percent / 100.0;
      auto const below = static_cast<std::size_t>(place);
      double const low = static_cast<double>(sorted[below]);
      double const high = static_cast<double>(sorted[std::min(below + 1, sorted.size() - 1)]);
      threshold = low + (high - low) * (place - static_cast<double>(below));
    }
    if (!(threshold > 0.0)) {
      fail("moefication::coactivation::graph", "units that are active together", "none in all inputs");
    }
    unit_graph result;
    result.threshold = 0.99 * threshold;
    result.first.push_back(0);
    auto const units = static_cast<std::size_t>(units_);
    constexpr double most = std::numeric_limits<std::int32_t>::max();
    for (std::size_t i = 0; i < units; ++i) {
      for (std::size_t j = 0; j < units; ++j) {
        double const weight = std::floor(static_cast<double>(together_[i * units + j]) / result.threshold);
        if (i == j || weight < 1.0) continue;
        result.neighbour.push_back(static_cast<std::int32_t>(j));
        result.weight.push_back(static_cast<std::int32_t>(std::min(weight, most)));
      }
      result.first.push_back(static_cast<std::int64_t>(result.neighbour.size()));
    }
    return result;
  }

 private:
  static std::size_t square(int units) {
    auto const count = static_cast<std::size_t>(std::max(units, 0));
    return count * count;
  }

  int units_;
  std::vector<float> together_, of_batch_;
};

/// Moves random units of parts that have too many to those that have too few, so that all have as many: what the published code does with
/// a partition that is not balanced. Throws where experts do not divide units.
inline void rebalance(std::vector<std::int32_t>& labels, int experts, std::uint64_t seed = 0) {
  auto const units = static_cast<std::int64_t>(labels.size());
  detail::check_split("rebalance", units, experts);
  auto const size = static_cast<std::size_t>(units / experts);
  std::vector<std::vector<std::size_t>> members(static_cast<std::size_t>(experts));
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] < 0 || labels[i] >= experts) {
      fail("moefication::rebalance, labels", "numbers from 0 to " + std::to_string(experts - 1),
           std::to_string(labels[i]));
    }
    members[static_cast<std::size_t>(labels[i])].push_back(i);
  }
  std::vector<std::size_t> surplus;
  std::uint64_t drawn = 0;
  counter_random const random{.seed = seed, .stream = 0};
  for (auto& of_part : members) {
    while (of_part.size() > size) {
      auto const at =
          static_cast<std::size_t>(static_cast<double>(random.uniform(drawn++)) * static_cast<double>(of_part.size()));
      surplus.push_back(of_part[at]);
      of_part[at] = of_part.back();
      of_part.pop_back();
    }
  }
  for (std::size_t part = 0; part < members.size(); ++part) {
    while (members[part].size() < size) {
      labels[surplus.back()] = static_cast<std::int32_t>(part);
      members[part].push_back(surplus.back());
      surplus.pop_back();
    }
  }
}

}  // namespace switchyard::moefication
