#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/finite.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/adaptive_clustering.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

/// What `router::adaptive_clustering` needs before step 1 of `backend::cpu`: a weight for every feature of every cluster.
namespace switchyard::cpu {

/// Temporaries of the weights.
struct clustering_memory {
  float* scale = nullptr;           ///< [experts, hidden]: means, then deviations, then weights
  float* dispersion = nullptr;      ///< [experts, hidden]: the deviations, for those who ask
  double* sums = nullptr;           ///< [experts, hidden]
  std::int32_t* counts = nullptr;   ///< [experts]: tokens of each cluster
  std::uint8_t* counted = nullptr;  ///< [tokens]: 1 for those that count
};

/// Features per item: a line of the cache, so that workers do not write to the same one.
inline constexpr int slice_features = 16;

constexpr std::int64_t feature_slices(int hidden) { return divide_up(hidden, slice_features); }

/// Throws when an active token's cluster does not exist.
inline void check_labels(token_clusters const& clusters, std::int64_t tokens, std::uint8_t const* active, int experts) {
  for (std::int64_t token = 0; token < tokens; ++token) {
    std::int32_t const label = clusters.labels[token * clusters.choices];
    if (is_active(active, token) && (label < 0 || label >= experts)) {
      fail("layer::forward, inputs.labels", "ids from 0 to " + std::to_string(experts - 1),
           std::to_string(label) + " for token " + std::to_string(token));
    }
  }
}

/// Which tokens count: the active ones, but for those that cannot be routed, because some feature is no number, or the cluster does not
/// exist.
template <class Element>
void count_tokens(view<Element const> const& rows, std::uint8_t const* active, token_clusters const& clusters,
                  int hidden, int experts, cpu_context const& context, std::uint8_t* counted) {
  parallel_for(context, rows.rows, [&](std::int64_t token) {
    std::int32_t const label = clusters.labels[token * clusters.choices];
    bool counts = is_active(active, token) && label >= 0 && label < experts;
    Element const* const x = rows.row(token);
    for (int q = 0; counts && q < hidden; ++q) counts = is_finite(static_cast<float>(x[q]));
    counted[token] = counts;
  });
}

/// `to.counts` from the tokens that count. Returns one more than the largest id in any column, which is where the published code ends its
/// table.
inline int count_clusters(std::int64_t tokens, token_clusters const& clusters, int experts,
                          clustering_memory const& to) {
  std::fill(to.counts, to.counts + experts, 0);
  int known = 0;
  for (std::int64_t token = 0; token < tokens; ++token) {
    if (to.counted[token] == 0) continue;
    std::int32_t const* const label = clusters.labels + token * clusters.choices;
    ++to.counts[label[0]];
    for (int k = 0; k < clusters.choices; ++k) known = std::max(known, label[k] + 1);
  }
  return known;
}

/// scale[c][q] = the deviation of feature q in cluster c, of `hidden` features that are all there are or some of them. A feature's sums are
/// taken in the order of tokens, whatever stands beside it.
template <clustering_traits Form, class Element>
void make_deviations(view<Element const> const& rows, token_clusters const& clusters, int hidden, int experts,
                     cpu_context const& context, clustering_memory const& to) {
  std::int64_t const tokens = rows.rows;
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
  parallel_for(context, feature_slices(hidden), [&](std::int64_t slice) {
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
}

/// The weights of all features by cluster from the deviations in `to.scale`. Clusters that do not count have weights of 1.
template <clustering_traits Form>
void deviations_to_weights(int known, int hidden, int experts, clustering_memory const& to) {
  auto const counts = [&](int c) { return Form.counts_empty ? c < std::min(known, experts) : to.counts[c] > 0; };
  std::copy(to.scale, to.scale + std::int64_t{experts} * hidden, to.dispersion);
  clustering::make_weights<Form>(to.scale, experts, hidden, counts);
}

/// The weights of all features by cluster, from the tokens that count. O(tokens * hidden); the same bits for any number of threads.
template <clustering_traits Form, class Element>
void make_feature_scale(view<Element const> const& rows, std::uint8_t const* active, token_clusters const& clusters,
                        int hidden, int experts, cpu_context const& context, clustering_memory const& to) {
  count_tokens(rows, active, clusters, hidden, experts, context, to.counted);
  int const known = count_clusters(rows.rows, clusters, experts, to);
  make_deviations<Form>(rows, clusters, hidden, experts, context, to);
  deviations_to_weights<Form>(known, hidden, experts, to);
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
                  cpu_context const& context, Element* to) {
  constexpr std::int64_t tokens_per_item = 16;
  parallel_for(context, divide_up(tokens.rows, tokens_per_item), [&](std::int64_t item) {
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

/// The weights of the features: the caller's, or those of the tokens at hand.
template <clustering_traits Form>
struct feature_step<router::features_scaled_by_cluster<Form>> {
  template <class Layer>
  struct memory {
    clustering_memory clusters;
    float* inverse_lengths = nullptr;                  // [experts]
    typename Layer::element* scaled_tokens = nullptr;  // [tokens, hidden]

    constexpr memory(carver& from, std::int64_t tokens) {
      constexpr std::int64_t experts = Layer::dims.experts, table = experts * Layer::dims.hidden;
      clusters.scale = from.take<float>(table);
      clusters.dispersion = from.take<float>(table);
      clusters.counted = from.take<std::uint8_t>(tokens);
      clusters.sums = from.take<double>(table);
      clusters.counts = from.take<std::int32_t>(experts);
      if constexpr (Form.unit_rows) inverse_lengths = from.take<float>(experts);
      if constexpr (Form.experts_see_scaled) {
        scaled_tokens = from.take<typename Layer::element>(tokens * Layer::dims.hidden);
      }
    }
  };

  template <class Layer, class Product>
  static void prepare(forward_args<Layer> const& args, cpu_context const& context, memory<Layer> const& m,
                      Product& product) {
    constexpr int hidden = Layer::dims.hidden, experts = Layer::dims.experts;
    if (context.unroutable == unroutable_tokens::throw_error) {
      check_labels(args.inputs, args.tokens.rows, args.active, experts);
    }
    float const* scale = args.inputs.feature_scale;
    if (scale == nullptr) {
      make_feature_scale<Form>(args.tokens, args.active, args.inputs, hidden, experts, context, m.clusters);
      scale = m.clusters.scale;
    }
    product.features = {scale, args.inputs.labels, args.inputs.choices, experts, args.active};
    if constexpr (Form.unit_rows) {
      make_inverse_lengths(product.weight, hidden, experts, m.inverse_lengths);
      product.inverse_lengths = m.inverse_lengths;
    }
    if constexpr (Form.experts_see_scaled)
      scale_tokens(args.tokens, product.features, hidden, context, m.scaled_tokens);
  }

  template <class Layer>
  static void report(forward_args<Layer> const& args, memory<Layer> const& m) {
    constexpr std::int64_t table = std::int64_t{Layer::dims.experts} * Layer::dims.hidden;
    float const* const scale = args.inputs.feature_scale != nullptr ? args.inputs.feature_scale : m.clusters.scale;
    if (args.report.feature_scale != nullptr) std::copy(scale, scale + table, args.report.feature_scale);
    if (args.report.dispersion != nullptr) {
      std::copy(m.clusters.dispersion, m.clusters.dispersion + table, args.report.dispersion);
    }
  }

  template <class Layer>
  static view<typename Layer::element const> tokens_of_experts(forward_args<Layer> const& args,
                                                               memory<Layer> const& m) {
    if constexpr (Form.experts_see_scaled) {
      return {m.scaled_tokens, args.tokens.rows, Layer::dims.hidden};
    } else {
      return args.tokens;
    }
  }
};

}  // namespace switchyard::cpu
