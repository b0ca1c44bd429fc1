#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/adaptive_clustering.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

/// Collects the weights of the features for a layer of `router::adaptive_clustering` from batches, to be given to later
/// calls as `.inputs.feature_scale`: decoding token by token then keeps the method, which statistics of one token
/// would switch off, and what one token gets does not depend on the others. This is our extension of the method.
///
/// A cluster's deviation is the mean of its deviations in the batches, weighted by its tokens; weights are then made as
/// in a batch, clusters that never had a token left out. Host memory; on a GPU copy `report.dispersion` back first.
template <class Layer>
class feature_scale_calibration {
  static_assert(router::are_scaled_by_cluster<typename Layer::router::features>,
                "switchyard: feature_scale_calibration is for layers of router::adaptive_clustering. Calibrate one of "
                "those.");
  static constexpr int experts = Layer::dims.experts, hidden = Layer::dims.hidden;

 public:
  /// Adds a batch. `dispersion` is what the call wrote to `report.dispersion`, `clusters` and `active` are what it got.
  /// Throws `error` when a label of an active token is no expert.
  void add(float const* dispersion, token_clusters const& clusters, std::int64_t tokens,
           std::uint8_t const* active = nullptr) {
    std::vector<double> counts(experts);
    for (std::int64_t token = 0; token < tokens; ++token) {
      if (active != nullptr && active[token] == 0) continue;
      std::int32_t const label = clusters.labels[token * clusters.choices];
      if (label < 0 || label >= experts) {
        fail("feature_scale_calibration::add, clusters.labels", "ids from 0 to " + std::to_string(experts - 1),
             std::to_string(label) + " for token " + std::to_string(token));
      }
      counts[label] += 1.0;
    }
    for (int c = 0; c < experts; ++c) {
      tokens_[c] += counts[c];
      for (int q = 0; q < hidden; ++q) sums_[index(c, q)] += counts[c] * dispersion[index(c, q)];
    }
  }

  /// The table for `.inputs.feature_scale`, [experts, hidden].
  std::vector<float> table() const {
    std::vector<float> result(sums_.size());
    for (int c = 0; c < experts; ++c) {
      for (int q = 0; q < hidden; ++q) {
        result[index(c, q)] = tokens_[c] == 0.0 ? 0.0f : static_cast<float>(sums_[index(c, q)] / tokens_[c]);
      }
    }
    clustering::make_weights<Layer::router::features::form>(result.data(), experts, hidden,
                                                            [&](int c) { return tokens_[c] > 0.0; });
    return result;
  }

 private:
  static constexpr std::int64_t index(int cluster, int feature) { return std::int64_t{cluster} * hidden + feature; }

  std::vector<double> sums_ = std::vector<double>(std::int64_t{experts} * hidden),
                      tokens_ = std::vector<double>(experts);
};

}  // namespace switchyard
