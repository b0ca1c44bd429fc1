#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/core/exponential.hpp>
#include <switchyard/core/finite.hpp>
#include <switchyard/core/lanes.hpp>
#include <switchyard/router/predicted.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace switchyard::sida {

/// What a group of sequences will need: for every layer and token the `top_k` experts that were predicted, best first, with their
/// probabilities, and for every layer the set of all of them. Tokens are those of the group, sequence after sequence; the last group of a
/// stream has fewer.
/// Source: Du et al. 2024, SiDA-MoE: Sparsity-Inspired Data-Aware Serving.
struct hash_table {
  int layers = 0, experts = 0, top_k = 0;
  std::int64_t tokens = 0;
  std::vector<std::int32_t> ids = {};           ///< [layers, tokens, top_k]
  std::vector<float> probabilities = {};        ///< [layers, tokens, top_k], of the softmax over all experts
  std::vector<std::int32_t> needed_ids = {};    ///< of each layer the experts that occur, ascending, layer after layer
  std::vector<std::int64_t> needed_begin = {};  ///< [layers + 1]: where those of a layer begin

  /// The experts that a layer needs, ascending: what `expert_cache::expect` takes.
  std::span<std::int32_t const> needed(int layer) const {
    auto const at = static_cast<std::size_t>(layer);
    auto const begin = static_cast<std::size_t>(needed_begin[at]), end = static_cast<std::size_t>(needed_begin[at + 1]);
    return {needed_ids.data() + begin, end - begin};
  }
  /// The routes of a layer's tokens from `first_token` on: `.inputs` of `router::predicted`.
  predicted_experts routes(int layer, std::int64_t first_token = 0) const {
    std::int64_t const at = (layer * tokens + first_token) * top_k;
    return {ids.data() + at, probabilities.data() + at};
  }
};

/// Finds the experts that each layer needs, where sizes and ids were put together by hand, such as those of a recorded call. Throws `error`
/// for an id that is no expert, and where there are more or fewer of them than the sizes say.
inline void find_needed(hash_table& table) {
  std::int64_t const pairs = table.layers * table.tokens * table.top_k;
  if (static_cast<std::int64_t>(table.ids.size()) != pairs) {
    fail("sida::find_needed, ids", std::to_string(pairs) + " of them, [layers, tokens, top_k]",
         std::to_string(table.ids.size()));
  }
  std::vector<std::uint8_t> occurs(static_cast<std::size_t>(table.experts));
  table.needed_ids.clear();
  table.needed_begin.assign(1, 0);
  std::int32_t const* id = table.ids.data();
  for (int layer = 0; layer < table.layers; ++layer) {
    std::fill(occurs.begin(), occurs.end(), std::uint8_t{0});
    for (std::int64_t pair = 0; pair < table.tokens * table.top_k; ++pair, ++id) {
      if (*id < 0 || *id >= table.experts) {
        fail("sida::find_needed, ids", "0 to " + std::to_string(table.experts - 1),
             std::to_string(*id) + " for layer " + std::to_string(layer) + ", token " +
                 std::to_string(pair / table.top_k));
      }
      occurs[static_cast<std::size_t>(*id)] = 1;
    }
    for (int e = 0; e < table.experts; ++e) {
      if (occurs[static_cast<std::size_t>(e)] != 0) table.needed_ids.push_back(e);
    }
    table.needed_begin.push_back(static_cast<std::int64_t>(table.needed_ids.size()));
  }
}

/// Makes the table of `logits`, [layers, tokens, experts]. Of equal logits the lower id is better. A table that has been used before keeps
/// its memory. Throws `error` for sizes that do not fit, and for a logit that is no number or infinite.
inline void build_hash_table(float const* logits, int layers, std::int64_t tokens, int experts, int top_k,
                             hash_table& to) {
  if (layers < 1) fail("sida::build_hash_table, layers", "at least 1", std::to_string(layers));
  if (tokens < 0) fail("sida::build_hash_table, tokens", "0 or more", std::to_string(tokens));
  if (experts < 1) fail("sida::build_hash_table, experts", "at least 1", std::to_string(experts));
  if (top_k < 1 || top_k > experts) {
    fail("sida::build_hash_table, top_k", "1 to " + std::to_string(experts) + ", the experts", std::to_string(top_k));
  }
  if (logits == nullptr && tokens > 0) {
    fail("sida::build_hash_table, logits", "[layers, tokens, experts]", "a null pointer");
  }
  to.layers = layers;
  to.experts = experts;
  to.top_k = top_k;
  to.tokens = tokens;
  to.ids.resize(static_cast<std::size_t>(layers * tokens * top_k));
  to.probabilities.resize(to.ids.size());
  std::int32_t* ids = to.ids.data();
  float* probabilities = to.probabilities.data();
  for (std::int64_t row = 0; row < layers * tokens; ++row, ids += top_k, probabilities += top_k) {
    float const* const of_token = logits + row * experts;
    int kept = 0;
    for (int e = 0; e < experts; ++e) {
      if (!is_finite(of_token[e])) {
        fail("sida::build_hash_table, logits", "finite numbers",
             std::to_string(of_token[e]) + " for layer " + std::to_string(row / tokens) + ", token " +
                 std::to_string(row % tokens) + ", expert " + std::to_string(e));
      }
      if (kept == top_k && !(of_token[e] > of_token[ids[kept - 1]])) continue;
      int at = kept < top_k ? kept++ : kept - 1;
      for (; at > 0 && of_token[e] > of_token[ids[at - 1]]; --at) ids[at] = ids[at - 1];
      ids[at] = e;
    }
    float const largest = of_token[ids[0]];
    double total = 0.0;
    for (int first = 0; first < experts; first += 32) {
      float powers[32], sum = 0.0f;
      for (int i = 0; i < 32; ++i) powers[i] = first + i < experts ? of_token[first + i] - largest : -infinity;
      exponentials(powers);
      for (float power : powers) sum += power;
      total += static_cast<double>(sum);
    }
    for (int i = 0; i < top_k; ++i) {
      probabilities[i] = static_cast<float>(static_cast<double>(exponential(of_token[ids[i]] - largest)) / total);
    }
  }
  find_needed(to);
}

/// How many of the experts that each layer needs fit into a budget, as the published code counts where memory is limited: in the order of
/// layers, and of ids in a layer, experts are admitted until one does not fit; all after it run elsewhere. Throws `error` for a size below 1
/// and a negative budget.
inline std::vector<std::int64_t> admitted_experts(hash_table const& table, std::int64_t expert_bytes,
                                                  std::int64_t budget_bytes) {
  if (expert_bytes < 1) fail("sida::admitted_experts, expert_bytes", "at least 1", std::to_string(expert_bytes));
  if (budget_bytes < 0) fail("sida::admitted_experts, budget_bytes", "0 or more", std::to_string(budget_bytes));
  std::int64_t room = budget_bytes / expert_bytes;
  std::vector<std::int64_t> admitted;
  for (int layer = 0; layer < table.layers; ++layer) {
    admitted.push_back(std::min(room, static_cast<std::int64_t>(table.needed(layer).size())));
    room -= admitted.back();
  }
  return admitted;
}

}  // namespace switchyard::sida
