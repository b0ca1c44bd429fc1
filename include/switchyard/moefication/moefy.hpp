#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/moefication/clusters.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

/// A dense feed-forward block as a Mixture-of-Experts layer, and what its experts are worth to a token. Host code; include it by name.
///
///   auto const rows = moefication::clustered_rows(block);
///   auto const clusters = moefication::balanced_k_means({rows.data(), units, columns}, 96);
///   auto const experts = moefication::moefy(block, clusters.labels, 96);
///   using layer = sy::layer<sy::shape{768, 32, 96, 19}, sy::router::unweighted_top_k, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
///   args.weights.up_proj = experts.up_view();  // gate_view() of a gated block, too
///   args.weights.down_proj = experts.down_view();
///   auto const router = moefication::centers(block, clusters.labels, 96);
///
/// With `top_k` = `experts` the layer is the dense block, but for rounding.
/// Source: Zhang et al. 2022, MoEfication: Transformer Feed-forward Layers are Mixtures of Experts, sections 3.2 and 3.3.
namespace switchyard::moefication {

/// The weights of a dense block, down(act(up x)) or, with a gate, down(act(gate x) * up x). A bias of down stays what it is: the layer
/// adds it once per token with `expert::with_output_bias`.
template <class Element>
struct dense_block {
  view<Element const> gate = {};       ///< [units, hidden]; no data: the block is not gated
  view<Element const> up = {};         ///< [units, hidden]
  view<Element const> down = {};       ///< [hidden, units]
  Element const* gate_bias = nullptr;  ///< [units], null: none
  Element const* up_bias = nullptr;    ///< [units], null: none

  bool gated() const { return gate.data != nullptr; }
};

/// The same units, cluster by cluster: what a layer takes as its weights.
template <class Element>
struct moefied_block {
  int experts = 0, size = 0, hidden = 0;  ///< `size` units of each expert
  storage stored = storage::input_major;
  std::vector<std::int32_t>
      units;  ///< [experts, size]: the unit of the dense block at each place, in ascending order within an expert
  std::vector<Element> gate_proj,
      up_proj;  ///< [experts, hidden, size]; output_major: [experts, size, hidden]; an absent gate is empty
  std::vector<Element> down_proj;           ///< [experts, size, hidden]; output_major: [experts, hidden, size]
  std::vector<Element> gate_bias, up_bias;  ///< [experts, size], for `layer::in_bias`; empty where there are none

  weight_view<Element, projection::in> gate_view() const { return in_view(gate_proj); }
  weight_view<Element, projection::in> up_view() const { return in_view(up_proj); }
  weight_view<Element, projection::out> down_view() const {
    using out = weight_view<Element, projection::out>;
    return stored == storage::input_major ? out::transposed(down_proj.data(), hidden, size)
                                          : out::packed(down_proj.data(), hidden, size);
  }

 private:
  weight_view<Element, projection::in> in_view(std::vector<Element> const& from) const {
    using in = weight_view<Element, projection::in>;
    return stored == storage::input_major ? in::transposed(from.data(), size, hidden)
                                          : in::packed(from.data(), size, hidden);
  }
};

namespace detail {

template <class Element>
void check_block(char const* function, dense_block<Element> const& block) {
  auto const fail_size = [&](char const* name, std::int64_t rows, std::int64_t columns,
                             view<Element const> const& got) {
    fail(std::string("moefication::") + function + ", " + name,
         std::to_string(rows) + " x " + std::to_string(columns) + " weights",
         got.data == nullptr ? "a null pointer" : std::to_string(got.rows) + " x " + std::to_string(got.columns));
  };
  auto const check = [&](char const* name, std::int64_t rows, std::int64_t columns, view<Element const> const& got) {
    if (got.data == nullptr || got.rows != rows || got.columns != columns) fail_size(name, rows, columns, got);
  };
  if (block.up.data == nullptr || block.up.rows < 1 || block.up.columns < 1) {
    fail(std::string("moefication::") + function + ", up", "a matrix [units, hidden]", "none");
  }
  check("down", block.up.columns, block.up.rows, block.down);
  if (block.gated()) check("gate", block.up.rows, block.up.columns, block.gate);
}

inline void check_labels(char const* function, std::vector<std::int32_t> const& labels, std::int64_t units,
                         int experts) {
  check_split(function, units, experts);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(experts), 0);
  auto const what = [&] { return std::string("moefication::") + function + ", labels"; };
  if (static_cast<std::int64_t>(labels.size()) != units) {
    fail(what(), std::to_string(units) + " of them, one for each unit", std::to_string(labels.size()));
  }
  for (std::int32_t label : labels) {
    if (label < 0 || label >= experts) {
      fail(what(), "numbers from 0 to " + std::to_string(experts - 1), std::to_string(label));
    }
    ++counts[static_cast<std::size_t>(label)];
  }
  for (std::int64_t count : counts) {
    if (count != units / experts) {
      fail(what(), "clusters of " + std::to_string(units / experts) + " units each", std::to_string(count));
    }
  }
}

}  // namespace detail

/// The rows by which units are clustered, [units, columns], normalised: those of up, with columns = hidden. Of a gated block a unit has the
/// rows of gate and of up one after the other, 2 hidden columns, normalised together (our extension: the publication has no gated block).
template <class Element>
std::vector<float> clustered_rows(dense_block<Element> const& block) {
  detail::check_block("clustered_rows", block);
  if (!block.gated()) return normalised_rows(block.up);
  std::int64_t const width = block.up.columns;
  std::vector<float> both(static_cast<std::size_t>(2 * block.up.rows * width));
  for (std::int64_t i = 0; i < block.up.rows; ++i) {
    for (std::int64_t c = 0; c < width; ++c) {
      both[static_cast<std::size_t>(2 * i * width + c)] = static_cast<float>(block.gate.row(i)[c]);
      both[static_cast<std::size_t>((2 * i + 1) * width + c)] = static_cast<float>(block.up.row(i)[c]);
    }
  }
  return normalised_rows(view<float const>{both.data(), block.up.rows, 2 * width});
}

/// The centers of clusters, [experts, hidden]: the means of the normalised rows that say whether a unit is active, which are up's, and
/// gate's in a gated block (our extension). The weight of `router::nearest_centers`, and W_a of an `mlp_selector` before its training.
/// Throws where clusters are not all of one size.
template <class Element>
std::vector<float> centers(dense_block<Element> const& block, std::vector<std::int32_t> const& labels, int experts) {
  detail::check_block("centers", block);
  detail::check_labels("centers", labels, block.up.rows, experts);
  std::vector<float> const rows = normalised_rows(block.gated() ? block.gate : block.up);
  return cluster_means({rows.data(), block.up.rows, block.up.columns}, labels, experts);
}

/// Rows of a router weight, [experts, hidden], scaled to one norm; a row of zeros stays one. With the centers as rows this is the linear
/// router of the faster code of MoEfication, `router::unweighted_top_k` here; it takes the norm of the first row of expert 0, and
/// which norm it is changes no choice.
inline std::vector<float> with_common_norm(std::vector<float> rows, int experts, double norm = 1.0) {
  if (experts < 1 || rows.size() % static_cast<std::size_t>(experts) != 0) {
    fail("moefication::with_common_norm", "rows of as many experts", std::to_string(experts) + " experts");
  }
  std::size_t const width = rows.size() / static_cast<std::size_t>(experts);
  for (std::size_t begin = 0; begin < rows.size(); begin += width) {
    double square = 0.0;
    for (std::size_t c = 0; c < width; ++c) {
      square += static_cast<double>(rows[begin + c]) * static_cast<double>(rows[begin + c]);
    }
    if (!(square > 0.0)) continue;
    for (std::size_t c = 0; c < width; ++c) {
      rows[begin + c] = static_cast<float>(static_cast<double>(rows[begin + c]) * (norm / std::sqrt(square)));
    }
  }
  return rows;
}

/// The units of a dense block moved to experts; no number changes. Input-major storage is what the CPU backend multiplies fastest: weights
/// of neighbouring output features stand beside each other. Throws where matrices do not fit each other, and where clusters are not all of
/// one size.
template <class Element>
moefied_block<Element> moefy(dense_block<Element> const& block, std::vector<std::int32_t> const& labels, int experts,
                             storage stored = storage::input_major) {
  detail::check_block("moefy", block);
  std::int64_t const units = block.up.rows, hidden = block.up.columns;
  detail::check_labels("moefy", labels, units, experts);
  moefied_block<Element> result;
  result.experts = experts;
  result.size = static_cast<int>(units / experts);
  result.units.resize(static_cast<std::size_t>(units));
  std::iota(result.units.begin(), result.units.end(), 0);
  std::stable_sort(result.units.begin(), result.units.end(), [&](std::int32_t a, std::int32_t b) {
    return labels[static_cast<std::size_t>(a)] < labels[static_cast<std::size_t>(b)];
  });
  result.hidden = static_cast<int>(hidden);
  result.stored = stored;
  bool const by_input = stored == storage::input_major;
  std::int64_t const size = result.size, matrix = size * hidden;
  // Unit i of an expert and feature h of a token stand where a unit's features are together, or a feature's units.
  auto const fill = [&](std::vector<Element>& to, bool units_first, auto const& weight) {
    to.resize(static_cast<std::size_t>(units * hidden));
    for (std::int64_t place = 0; place < units; ++place) {
      std::int64_t const i = place % size, first = place / size * matrix;
      std::int32_t const unit = result.units[static_cast<std::size_t>(place)];
      for (std::int64_t h = 0; h < hidden; ++h) {
        to[static_cast<std::size_t>(first + (units_first ? i * hidden + h : h * size + i))] = weight(unit, h);
      }
    }
  };
  if (block.gated()) fill(result.gate_proj, !by_input, [&](auto unit, auto h) { return block.gate.row(unit)[h]; });
  fill(result.up_proj, !by_input, [&](auto unit, auto h) { return block.up.row(unit)[h]; });
  fill(result.down_proj, by_input, [&](auto unit, auto h) { return block.down.row(h)[unit]; });
  for (std::int32_t unit : result.units) {
    if (block.gate_bias != nullptr) result.gate_bias.push_back(block.gate_bias[unit]);
    if (block.up_bias != nullptr) result.up_bias.push_back(block.up_bias[unit]);
  }
  return result;
}

/// What hidden units are worth to tokens, [tokens, units]: act(up x), which relu makes not negative; the magnitude |act(gate x) * up x| in
/// a gated block, and |act(up x)| of other activations (our extension). `tokens` is [tokens, hidden].
template <class Activation, class Element, class Token>
std::vector<float> unit_activations(dense_block<Element> const& block, view<Token const> const& tokens) {
  detail::check_block("unit_activations", block);
  std::int64_t const units = block.up.rows, hidden = block.up.columns;
  if (tokens.columns != hidden) {
    fail("moefication::unit_activations, tokens", std::to_string(hidden) + " columns", std::to_string(tokens.columns));
  }
  auto const floats = [&](auto const& matrix) {
    std::vector<float> result;
    for (std::int64_t i = 0; i < matrix.rows; ++i) {
      for (std::int64_t c = 0; c < matrix.columns; ++c) result.push_back(static_cast<float>(matrix.row(i)[c]));
    }
    return result;
  };
  std::vector<float> const x = floats(tokens), up = floats(block.up);
  std::vector<float> result = detail::row_products({x.data(), tokens.rows, hidden}, {up.data(), units, hidden}), gates;
  if (block.gated()) {
    std::vector<float> const gate = floats(block.gate);
    gates = detail::row_products({x.data(), tokens.rows, hidden}, {gate.data(), units, hidden});
  }
  for (std::size_t at = 0; at < result.size(); ++at) {
    std::size_t const unit = at % static_cast<std::size_t>(units);
    if (block.up_bias != nullptr) result[at] += static_cast<float>(block.up_bias[unit]);
    if (block.gated()) {
      if (block.gate_bias != nullptr) gates[at] += static_cast<float>(block.gate_bias[unit]);
      result[at] = std::abs(Activation::apply(gates[at], result[at]));
    } else {
      result[at] = std::abs(Activation::apply(result[at]));
    }
  }
  return result;
}

/// The mass of each expert, [tokens, experts]: the sum of the activations of its units, [tokens, units].
inline std::vector<float> expert_masses(view<float const> const& activations, std::vector<std::int32_t> const& labels,
                                        int experts) {
  detail::check_labels("expert_masses", labels, activations.columns, experts);
  auto const width = static_cast<std::size_t>(experts);
  std::vector<float> result(static_cast<std::size_t>(activations.rows) * width);
  std::vector<double> sums(width);
  for (std::int64_t t = 0; t < activations.rows; ++t) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (std::size_t i = 0; i < labels.size(); ++i) {
      sums[static_cast<std::size_t>(labels[i])] += static_cast<double>(activations.row(t)[i]);
    }
    for (std::size_t e = 0; e < width; ++e) {
      result[static_cast<std::size_t>(t) * width + e] = static_cast<float>(sums[e]);
    }
  }
  return result;
}

/// Routes for `router::precomputed`.
struct chosen_experts {
  std::vector<std::int32_t> experts;  ///< [tokens, top_k], best first
  std::vector<float> weights;         ///< [tokens, top_k], ones
};

/// The `top_k` best experts of each token by scores [tokens, experts]; equal ones go to the lower id. With `expert_masses` as scores this
/// is MoEfication's ground truth: it needs the whole first product, and says how well a selector can do at best.
inline chosen_experts best_experts(view<float const> const& scores, int top_k) {
  if (top_k < 1 || top_k > scores.columns) {
    fail("moefication::best_experts, top_k", "1 to " + std::to_string(scores.columns), std::to_string(top_k));
  }
  chosen_experts result;
  std::vector<std::int32_t> order(static_cast<std::size_t>(scores.columns));
  for (std::int64_t t = 0; t < scores.rows; ++t) {
    float const* const row = scores.row(t);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + top_k, order.end(),
                      [&](std::int32_t a, std::int32_t b) { return row[a] > row[b] || (row[a] == row[b] && a < b); });
    result.experts.insert(result.experts.end(), order.begin(), order.begin() + top_k);
  }
  result.weights.assign(result.experts.size(), 1.0f);
  return result;
}

/// The share of the mass [tokens, experts] that chosen experts [tokens, top_k] have: the mean over the tokens whose mass is positive, and 1
/// where no token's is.
inline double captured_mass(view<float const> const& masses, std::vector<std::int32_t> const& chosen, int top_k) {
  if (static_cast<std::int64_t>(chosen.size()) != masses.rows * top_k) {
    fail("moefication::captured_mass, chosen", std::to_string(masses.rows * top_k) + " experts",
         std::to_string(chosen.size()));
  }
  double captured = 0.0;
  std::int64_t counted = 0;
  for (std::int64_t t = 0; t < masses.rows; ++t) {
    double all = 0.0, of_chosen = 0.0;
    for (std::int64_t e = 0; e < masses.columns; ++e) all += static_cast<double>(masses.row(t)[e]);
    if (!(all > 0.0)) continue;
    for (int k = 0; k < top_k; ++k) {
      of_chosen += static_cast<double>(masses.row(t)[chosen[static_cast<std::size_t>(t * top_k + k)]]);
    }
    captured += of_chosen / all;
    ++counted;
  }
  return counted == 0 ? 1.0 : captured / static_cast<double>(counted);
}

}  // namespace switchyard::moefication
