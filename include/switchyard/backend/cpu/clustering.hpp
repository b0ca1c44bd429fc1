#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/finite.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/adaptive_clustering.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

/// What `router::adaptive_clustering` needs before step 1 of `backend::cpu`: a weight for every feature of every cluster.
namespace switchyard::backend::detail {

/// Temporaries of the weights.
struct clustering_scratch {
  float* scale;           ///< [experts, hidden]: means, then deviations, then weights
  float* dispersion;      ///< [experts, hidden]: the deviations, for those who ask
  double* sums;           ///< [experts, hidden]
  std::int32_t* counts;   ///< [experts]: tokens of each cluster
  std::uint8_t* counted;  ///< [tokens]: 1 for those that count
};

/// Features per item: a line of the cache, so that workers do not write to the same one.
inline constexpr int slice_features = 16;

constexpr std::int64_t feature_slices(int hidden) { return divide_up(hidden, slice_features); }

/// Throws when an active token's cluster does not exist.
inline void check_labels(token_clusters const& clusters, std::int64_t tokens, std::uint8_t const* active, int experts) {
  for (std::int64_t token = 0; token < tokens; ++token) {
    std::int32_t const label = clusters.labels[token * clusters.choices];
    if (is_active(active, token) && (label < 0 || label >= experts)) {
      fail("layer::forward, clusters.labels", "ids from 0 to " + std::to_string(experts - 1),
           std::to_string(label) + " for token " + std::to_string(token));
    }
  }
}

/// The weights of all features by cluster, from the active tokens, but for those that cannot be routed: some feature is no
/// number, or the cluster does not exist. O(tokens * hidden); the same bits for any number of threads. Clusters that do not
/// count have weights of 1.
template <clustering_traits Form, class Element>
void make_feature_scale(view<Element const> const& rows, std::uint8_t const* active, token_clusters const& clusters,
                        int hidden, int experts, cpu_context const& where, clustering_scratch const& to) {
  std::int64_t const tokens = rows.rows;
  parallel_for(where, tokens, [&](std::int64_t token) {
    std::int32_t const label = clusters.labels[token * clusters.choices];
    bool counts = is_active(active, token) && label >= 0 && label < experts;
    Element const* const x = rows.row(token);
    for (int q = 0; counts && q < hidden; ++q) counts = is_finite(static_cast<float>(x[q]));
    to.counted[token] = counts;
  });

  std::fill(to.counts, to.counts + experts, 0);
  int known = 0;  // one more than the largest id in any column, which is where the published code ends its table
  for (std::int64_t token = 0; token < tokens; ++token) {
    if (to.counted[token] == 0) continue;
    std::int32_t const* const label = clusters.labels + token * clusters.choices;
    ++to.counts[label[0]];
    for (int k = 0; k < clusters.choices; ++k) known = std::max(known, label[k] + 1);
  }
  auto const counts = [&](int c) { return Form.counts_empty ? c < std::min(known, experts) : to.counts[c] > 0; };
  auto const add_tokens = [&](int first, int end, auto const& value) {
    for (std::int64_t c = 0; c < experts; ++c) {
      std::fill(to.sums + c * hidden + first, to.sums + c * hidden + end, 0.0);
    }
    for (std::int64_t token = 0; token < tokens; ++token) {
      if (to.counted[token] == 0) continue;
      std::int64_t const c = clusters.labels[token * clusters.choices];
      Element const* const x = rows.row(token);
      for (int q = first; q < end; ++q) to.sums[c * hidden + q] += value(static_cast<float>(x[q]), c * hidden + q);
    }
  };
  auto const mean_of = [&](std::int64_t c, int q) {
    return to.counts[c] == 0 ? 0.0f : static_cast<float>(to.sums[c * hidden + q] / to.counts[c]);
  };
  parallel_for(where, feature_slices(hidden), [&](std::int64_t slice) {
    int const first = static_cast<int>(slice) * slice_features, end = std::min(first + slice_features, hidden);
    auto const write_means = [&] {
      for (std::int64_t c = 0; c < experts; ++c) {
        for (int q = first; q < end; ++q) to.scale[c * hidden + q] = mean_of(c, q);
      }
    };
    add_tokens(first, end, [](float x, std::int64_t) { return x; });
    write_means();
    add_tokens(first, end, [&](float x, std::int64_t at) { return clustering::deviation<Form>(x - to.scale[at]); });
    write_means();
  });
  std::copy(to.scale, to.scale + std::int64_t{experts} * hidden, to.dispersion);
  clustering::make_weights<Form>(to.scale, experts, hidden, counts);
}

/// One over the length of each row of the router weight.
inline void make_inverse_lengths(float const* weight, int hidden, int experts, float* inverse) {
  for (int e = 0; e < experts; ++e) {
    double square = 0.0;
    for (int q = 0; q < hidden; ++q) {
      double const w = weight[std::int64_t{e} * hidden + q];
      square += w * w;
    }
    inverse[e] = 1.0f / std::max(static_cast<float>(std::sqrt(square)), clustering::least_row_length);
  }
}

/// Tokens times the weights of their clusters, for experts that see them so.
template <class Element>
void scale_tokens(view<Element const> const& tokens, feature_weights const& features, int hidden,
                  cpu_context const& where, Element* to) {
  constexpr std::int64_t tokens_per_item = 16;
  parallel_for(where, divide_up(tokens.rows, tokens_per_item), [&](std::int64_t item) {
    std::int64_t const end = std::min(tokens.rows, (item + 1) * tokens_per_item);
    for (std::int64_t token = item * tokens_per_item; token < end; ++token) {
      Element const* const x = tokens.row(token);
      Element* const scaled = to + token * hidden;
      float const* const weight = features.of(token, hidden);
      for (int q = 0; q < hidden; ++q) {
        scaled[q] = weight == nullptr ? x[q] : Element(static_cast<float>(x[q]) * weight[q]);
      }
    }
  });
}

}  // namespace switchyard::backend::detail
