#pragma once

#include <switchyard/core/counter_random.hpp>
#include <switchyard/offload/trace.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

/// Traces that are made, not recorded.
namespace switchyard::bench {

struct trace_shape {
  int layers, experts, top_k;
  std::int64_t tokens;  ///< of each call
  std::int64_t calls;   ///< of the layers in turn
};

/// Tokens that choose `top_k` experts without replacement, with probabilities in proportion to 1 / rank^skew: 0 is uniform, 1 is Zipf's
/// law. Which expert has which rank is drawn for each layer from `model`, and the choices from `text`: two texts of one model have
/// the same popular experts. The choices of a layer say nothing about those of the next.
inline offload::trace made_trace(trace_shape of, double skew, std::uint64_t model, std::uint64_t text) {
  offload::trace result(of.layers, of.experts);
  counter_random const ranks{model, 1}, choices{text, 2};
  std::vector<std::vector<double>> popularity;  // its logarithm, of each layer's experts
  for (int layer = 0; layer < of.layers; ++layer) {
    std::vector<std::pair<float, int>> order;
    for (int e = 0; e < of.experts; ++e) {
      order.push_back({ranks.uniform(static_cast<std::uint64_t>(layer * of.experts + e)), e});
    }
    std::sort(order.begin(), order.end());
    auto& logs = popularity.emplace_back(static_cast<std::size_t>(of.experts));
    for (int rank = 0; rank < of.experts; ++rank) {
      logs[static_cast<std::size_t>(order[static_cast<std::size_t>(rank)].second)] = -skew * std::log(rank + 1.0);
    }
  }
  // The k largest of log(p) plus Gumbel noise are k draws without replacement.
  std::uint64_t number = 0;
  std::vector<std::pair<double, int>> keys(static_cast<std::size_t>(of.experts));
  std::vector<std::int64_t> counts(keys.size());
  for (std::int64_t call = 0; call < of.calls; ++call) {
    int const layer = static_cast<int>(call % of.layers);
    std::fill(counts.begin(), counts.end(), 0);
    for (std::int64_t token = 0; token < of.tokens; ++token) {
      for (int e = 0; e < of.experts; ++e) {
        double const uniform = choices.uniform(number++) + 0x1p-25;
        keys[static_cast<std::size_t>(e)] = {
            popularity[static_cast<std::size_t>(layer)][static_cast<std::size_t>(e)] - std::log(-std::log(uniform)), e};
      }
      std::partial_sort(keys.begin(), keys.begin() + of.top_k, keys.end(), std::greater<>());
      for (int k = 0; k < of.top_k; ++k) ++counts[static_cast<std::size_t>(keys[static_cast<std::size_t>(k)].second)];
    }
    result.record(layer, counts);
  }
  return result;
}

/// Calls `begin` to `end` of a trace.
inline offload::trace part_of(offload::trace const& of, std::int64_t begin, std::int64_t end) {
  offload::trace result(of.layers(), of.experts());
  std::vector<std::int64_t> counts(static_cast<std::size_t>(of.experts()));
  for (std::int64_t i = begin; i < std::min(end, of.calls()); ++i) {
    offload::traced_call const call = of[i];
    std::fill(counts.begin(), counts.end(), 0);
    for (std::size_t k = 0; k < call.experts.size(); ++k) {
      counts[static_cast<std::size_t>(call.experts[k])] = call.rows[k];
    }
    result.record(call.layer, counts);
  }
  return result;
}

/// Which experts each token chooses, [tokens, top_k], so that the experts of a call have its rows: with the pairs in the order of experts,
/// a token takes every tokens-th one. An expert has at most as many rows as there are tokens, so no token chooses it twice.
inline std::vector<std::int32_t> routes_of(offload::traced_call const& call, int top_k) {
  std::vector<std::int32_t> pairs, routes;
  for (std::size_t k = 0; k < call.experts.size(); ++k) {
    pairs.insert(pairs.end(), static_cast<std::size_t>(call.rows[k]), call.experts[k]);
  }
  std::size_t const tokens = pairs.size() / static_cast<std::size_t>(top_k);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t k = 0; k < static_cast<std::size_t>(top_k); ++k) routes.push_back(pairs[k * tokens + t]);
  }
  return routes;
}

}  // namespace switchyard::bench
