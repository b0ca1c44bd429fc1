#pragma once

#include <switchyard/router/by_inputs.hpp>

#include <cstdint>
#include <string_view>

namespace switchyard {

/// What `router::hash_layer` decides by. A token id that is not in the table leaves its token without a route.
struct hashed_tokens {
  std::int32_t const* token_ids = nullptr;  ///< [tokens], ids from 0 to vocabulary - 1
  std::int32_t const* experts = nullptr;    ///< [vocabulary, top_k], ids of experts
  std::int32_t vocabulary = 0;              ///< rows of the table
};

namespace router {

/// Experts by a fixed table over the words of the vocabulary, without a router weight; each has the combine weight 1.
/// Source: Roller et al. 2021, Hash Layers For Large Sparse Models, section 3.1, there with one expert.
struct hash_layer : by_inputs {
  static constexpr std::string_view name = "hash_layer";
  static constexpr char const* experts_name =
      "inputs.experts of a token id (-2 stands for an id outside of the vocabulary)";

  template <class Layer>
  using inputs = hashed_tokens;

  SWITCHYARD_HD static routed_pair pair(hashed_tokens const& from, std::int64_t token, int top_k, int choice) {
    std::int32_t const word = from.token_ids[token];
    if (word < 0 || word >= from.vocabulary) return {no_such_word, 1.0f};
    return {from.experts[std::int64_t{word} * top_k + choice], 1.0f};
  }

  template <class Layer>
  static void check(forward_args<Layer> const& args) {
    if (args.tokens.rows == 0) return;
    checks::check_pointer(args.inputs.token_ids, "inputs.token_ids", "[tokens] int32");
    checks::check_pointer(args.inputs.experts, "inputs.experts", "[vocabulary, top_k] int32");
    if (args.inputs.vocabulary < 1) {
      fail("layer::forward, inputs.vocabulary", "the rows of inputs.experts, at least 1",
           std::to_string(args.inputs.vocabulary));
    }
  }
  template <class Layer>
  static void list_read(forward_args<Layer> const& args, checks::written_memory const& memory) {
    memory.read("inputs.token_ids", args.inputs.token_ids, args.tokens.rows);
    memory.read("inputs.experts", args.inputs.experts, std::int64_t{args.inputs.vocabulary} * Layer::dims.top_k);
  }

 private:
  static constexpr std::int32_t no_such_word = -2;
};

}  // namespace router
}  // namespace switchyard
