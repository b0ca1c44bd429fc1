#pragma once

#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <vector>

#include "support/compile.hpp"
#include "support/memory.hpp"

/// Layers whose experts are rows, chosen by product keys: a reference in double that looks at every expert, and how tests run one.
namespace support {

/// Such a layer in words, and what it is given. Matrices are row-major; an empty vector is an absent one.
struct row_problem {
  int hidden = 0, keys = 0, heads = 1, top_k = 0;
  int width = 0;  ///< of a query
  bool sums_heads = false;
  bool softmax = true;  ///< false: the positive part of the scores
  std::string_view activation = {};

  reference::numbers tokens = {};  ///< [tokens, hidden]
  reference::numbers query = {},
                     query_bias = {};  ///< [heads * width, hidden], [heads * width]; absent: the query is the token
  reference::numbers first_keys = {}, second_keys = {};  ///< [heads, keys, width / 2]
  reference::numbers up = {}, down = {};         ///< [experts, hidden]; up is absent where experts have no hidden unit
  reference::numbers gate = {}, gate_bias = {};  ///< [hidden], [1]
  reference::numbers projection_gate = {}, projection_gate_bias = {};  ///< [hidden, hidden], [hidden]
  reference::numbers projection = {}, projection_bias = {};            ///< the same
  std::vector<std::uint8_t> active = {};                               ///< [tokens]
  std::vector<int> ids = {};  ///< [tokens, top_k] of precomputed routes, with weights
  reference::numbers id_weights = {};

  int lists() const { return sums_heads ? 1 : heads; }
  std::int64_t count() const { return static_cast<std::int64_t>(tokens.size()) / hidden; }
};

struct row_outcome {
  std::vector<float> output;          ///< [tokens, hidden]
  std::vector<std::int32_t> experts;  ///< [tokens, top_k]
  std::vector<float> weights, scores;
  std::vector<std::int64_t> load;
  bool guards_intact = true;
};

/// Chosen by sorting the sums of all pairs of keys (Lample et al. 2019, Large Memory Layers with Product Keys, section 3.1).
row_outcome row_reference(row_problem const& p);

/// How often the weakest kept and the strongest other score of a list are closer than a relative margin.
int unclear_choices(row_problem const& p, double margin);

/// The words of a layer, and random numbers that its elements hold exactly.
struct row_words {
  int hidden, keys, heads, top_k, width;
  bool projected, sums_heads, softmax, gated, projects_output;
  std::string_view activation;
};
row_problem random_rows(row_words const& words, void (*round)(reference::numbers&), std::int64_t tokens, unsigned seed);

template <class Element>
void round_to(reference::numbers& values) {
  for (double& v : values) v = static_cast<double>(static_cast<float>(Element(static_cast<float>(v))));
}

template <class Layer>
row_problem random_rows(std::int64_t tokens, unsigned seed) {
  using router = typename Layer::router;
  row_words words{Layer::dims.hidden,
                  router::keys,
                  router::heads,
                  Layer::dims.top_k,
                  router::query::width(Layer::dims.hidden),
                  router::query::is_projected,
                  router::sums_heads,
                  std::is_same_v<typename router::weighting, sy::router::weighting::softmax>,
                  Layer::expert::has_output_gate,
                  Layer::expert::has_gated_projection,
                  {}};
  if constexpr (requires { typename Layer::expert::activation; }) words.activation = Layer::expert::activation::name;
  return random_rows(words, &round_to<typename Layer::element>, tokens, seed);
}

struct row_call {
  sy::cpu_context context = {};
  std::int64_t padding = 0;  ///< elements between rows
  bool in_place = false;
  bool decisions = true;
};

/// Runs a layer on its backend.
template <class Layer>
row_outcome run_rows(row_problem const& p, row_call const& how = {}) {
  using element = typename Layer::element;
  using router = typename Layer::router;
  constexpr sy::shape dims = Layer::dims;
  std::int64_t const tokens = p.count(), pairs = tokens * dims.top_k;
  auto const elements = [](reference::numbers const& values) {
    std::vector<element> stored;
    for (double v : values) stored.push_back(element(static_cast<float>(v)));
    return stored;
  };
  auto const rows_apart = [&](reference::numbers const& values, std::int64_t stride) {
    std::int64_t const rows = static_cast<std::int64_t>(values.size()) / dims.hidden;
    auto memory =
        guarded(rows == 0 ? 0 : static_cast<std::size_t>((rows - 1) * stride + dims.hidden) * sizeof(element));
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(values.size()); ++i) {
      memory.as<element>()[i / dims.hidden * stride + i % dims.hidden] =
          element(static_cast<float>(values[static_cast<std::size_t>(i)]));
    }
    return memory;
  };
  auto const floats = [](reference::numbers const& values) { return std::vector<float>(values.begin(), values.end()); };

  placement placed(reached<typename Layer::backend>::memory());
  std::int64_t const stride = dims.hidden + how.padding;
  guarded x = rows_apart(p.tokens, stride), y(x.size()), up = rows_apart(p.up, stride),
          down = rows_apart(p.down, stride);
  std::vector<float> const first = floats(p.first_keys), second = floats(p.second_keys), query = floats(p.query),
                           query_bias = floats(p.query_bias), id_weights = floats(p.id_weights);
  std::vector<std::int32_t> const ids(p.ids.begin(), p.ids.end());
  std::vector<element> const gate = elements(p.gate), gate_bias = elements(p.gate_bias),
                             projection_gate = elements(p.projection_gate),
                             projection_gate_bias = elements(p.projection_gate_bias),
                             projection = elements(p.projection), projection_bias = elements(p.projection_bias);
  guarded workspace(Layer::workspace_bytes(tokens), sy::workspace_alignment);
  guarded experts(static_cast<std::size_t>(pairs) * 4), weights(experts.size()), scores(experts.size());
  guarded load(static_cast<std::size_t>(dims.experts) * 8), dropped(static_cast<std::size_t>(pairs));

  typename Layer::args args{};
  auto* const x_at = reinterpret_cast<element*>(placed.place(x));
  args.tokens = {x_at, tokens, dims.hidden, stride};
  args.output = {how.in_place ? x_at : reinterpret_cast<element*>(placed.place(y)), tokens, dims.hidden, stride};
  args.workspace = {placed.place(workspace, false), workspace.size()};
  sy::view<element const> const down_rows{reinterpret_cast<element const*>(placed.place(down)), dims.experts,
                                          dims.hidden, stride};
  if constexpr (requires { args.weights.values; }) {
    args.weights.values = down_rows;
  } else {
    args.weights.up = {reinterpret_cast<element const*>(placed.place(up)), dims.experts, dims.hidden, stride};
    args.weights.down = down_rows;
  }
  if constexpr (Layer::expert::has_output_gate) {
    args.weights.output_gate = placed.place(gate);
    args.weights.output_gate_bias = gate_bias.empty() ? nullptr : placed.place(gate_bias);
  }
  if constexpr (Layer::expert::has_gated_projection) {
    args.weights.projection_gate = placed.place(projection_gate);
    args.weights.projection_gate_bias = projection_gate_bias.empty() ? nullptr : placed.place(projection_gate_bias);
    args.weights.projection = placed.place(projection);
    args.weights.projection_bias = projection_bias.empty() ? nullptr : placed.place(projection_bias);
  }
  if constexpr (requires { router::keys; }) {
    args.weights.router.first_keys = placed.place(first);
    args.weights.router.second_keys = placed.place(second);
    if constexpr (router::query::is_projected) {
      args.weights.router.query = placed.place(query);
      args.weights.router.query_bias = query_bias.empty() ? nullptr : placed.place(query_bias);
    }
    if (how.decisions) args.report.scores = reinterpret_cast<float*>(placed.place(scores));
  } else {
    args.inputs.experts = placed.place(ids);
    args.inputs.weights = placed.place(id_weights);
  }
  if (!p.active.empty()) args.active = placed.place(p.active);
  if (how.decisions) {
    args.decisions.experts = reinterpret_cast<std::int32_t*>(placed.place(experts));
    args.decisions.weights = reinterpret_cast<float*>(placed.place(weights));
    args.decisions.dropped = reinterpret_cast<std::uint8_t*>(placed.place(dropped));
    args.decisions.load = reinterpret_cast<std::int64_t*>(placed.place(load));
  }
  reached<typename Layer::backend>::template forward<Layer>(args, how.context);
  placed.fetch();

  row_outcome out;
  element const* const written = (how.in_place ? x : y).template as<element>();
  for (std::int64_t i = 0; i < tokens * dims.hidden; ++i) {
    out.output.push_back(static_cast<float>(written[i / dims.hidden * stride + i % dims.hidden]));
  }
  if (how.decisions) {
    out.experts.assign(experts.as<std::int32_t>(), experts.as<std::int32_t>() + pairs);
    out.weights.assign(weights.as<float>(), weights.as<float>() + pairs);
    out.load.assign(load.as<std::int64_t>(), load.as<std::int64_t>() + dims.experts);
    for (std::int64_t i = 0; i < pairs; ++i)
      out.guards_intact = out.guards_intact && dropped.as<std::uint8_t>()[i] == 0;
    if constexpr (requires { router::keys; }) out.scores.assign(scores.as<float>(), scores.as<float>() + pairs);
  }
  for (guarded* g : {&x, &y, &workspace, &experts, &weights, &scores, &load, &dropped}) {
    out.guards_intact = out.guards_intact && g->guards_intact();
  }
  return out;
}

/// `run_rows` of a layer.
using row_runner = row_outcome (*)(row_problem const& p, row_call const& how);

/// Runs a layer and compares it with the reference, by CHECK.
void check_rows(row_problem const& p, row_outcome const& got, double tolerance);

}  // namespace support
