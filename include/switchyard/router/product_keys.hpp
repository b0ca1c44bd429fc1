#pragma once

#include <switchyard/core/absent.hpp>
#include <switchyard/core/checks.hpp>
#include <switchyard/core/host_device.hpp>
#include <switchyard/core/lanes.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/router/by_inputs.hpp>
#include <switchyard/router/by_logits.hpp>
#include <switchyard/router/weighting.hpp>

#include <concepts>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace switchyard::router {

/// Experts that are addressed by pairs of keys, named as `source`.
struct from_product_keys {};

struct the_query_is_the_token {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: this router's query is the token itself, so it has no query projection. Leave .query "
                  "and .query_bias out, or "
                  "give router::product_keys a router::query::projected<Width>.");
  }
};
struct product_keys_make_no_logits {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: router::product_keys never makes the scores of all its experts, so there are no logits "
                  "to report and no "
                  "auxiliary values. The scores of the chosen ones are .report.scores.");
  }
};

/// What the keys of `product_keys` are compared with.
namespace query {

/// The token itself, for every head: its first half with the first keys, its second half with the second ones.
/// Source: Csordas et al. 2023, Approximating Two-Layer Feedforward Networks for Efficient Transformers, appendix A.
struct token {
  static constexpr auto label = text("token");
  static constexpr bool is_projected = false;
  static constexpr int width(int hidden) { return hidden; }
};

/// A projection of the token to `Width` numbers for each head.
/// Source: Lample et al. 2019, Large Memory Layers with Product Keys, section 3.1.
template <int Width>
struct projected {
  static_assert(
      Width >= 2 && Width % 2 == 0,
      "switchyard: router::query::projected has two halves, one for each key. Give it an even width of at least 2.");
  static constexpr auto label = decimal<Width>();
  static constexpr bool is_projected = true;
  static constexpr int width(int) { return Width; }
};

}  // namespace query

/// The keys of `product_keys`, all float, row-major.
struct product_key_weights {
  float const* first_keys = nullptr;   ///< [heads, keys, query width / 2]
  float const* second_keys = nullptr;  ///< the same
  float const* query = nullptr;        ///< [heads * query width, hidden]
  float const* query_bias = nullptr;   ///< [heads * query width], null: none
};
/// Those of a router whose query is the token.
struct product_key_weights_without_query {
  float const* first_keys = nullptr;
  float const* second_keys = nullptr;
  [[no_unique_address]] absent<the_query_is_the_token> query = {};
  [[no_unique_address]] absent<the_query_is_the_token> query_bias = {};

  constexpr operator product_key_weights() const { return {first_keys, second_keys, nullptr, nullptr}; }
};

/// What `product_keys` reports.
struct product_keys_report {
  float* scores = nullptr;  ///< [tokens, top_k], sums of two half scores, before the weighting
  [[no_unique_address]] absent<product_keys_make_no_logits> logits = {};
};

/// n x n experts by two tables of n half keys for each head. With the query's halves q1 and q2 and u = K1 q1, v = K2 q2, expert i n + j
/// has the score u_i + v_j; a head takes the best top_k / Heads of all, exactly, and equal scores go to the lowest id. Only those
/// (i, j) are looked at of which at most that many sums are no less by the order of the two halves: (rank of i) (rank of j) <= kept.
/// A head's scores become combine weights by `Weighting`; what several heads choose adds up.
///
/// Pairs stand head by head, best first. A token with a half score that is not finite is one that cannot be routed: on a GPU the pairs of
/// that head are NaN.
/// Source: Lample et al. 2019, Large Memory Layers with Product Keys, section 3.1 (softmax); Csordas et al. 2023, Approximating Two-Layer
/// Feedforward Networks for Efficient Transformers, section 3.2 (ReLU).
template <int Keys, int Heads = 1, class Query = query::token, class Weighting = weighting::softmax>
struct product_keys : by_inputs {
  static_assert(Keys >= 1 && Keys <= 8192,
                "switchyard: router::product_keys takes the number of half keys first, 1 to 8192: it has the square of "
                "it as experts.");
  static_assert(Heads >= 1, "switchyard: router::product_keys needs at least 1 head.");
  static constexpr auto label =
      "product_keys<" + decimal<Keys>() + "," + decimal<Heads>() + "," + Query::label + "," + Weighting::label + ">";
  static constexpr std::string_view name = label;

  using source = from_product_keys;
  using query = Query;
  using weighting = Weighting;
  static constexpr int keys = Keys, heads = Heads;
  static constexpr bool sums_heads = false;  ///< before the choice, which is one for all heads then
  static constexpr int choices = Heads;      ///< an expert may stand in several lists

  /// How many experts a choice keeps.
  template <class Layer>
  static constexpr int kept = Layer::dims.top_k / Layer::router::choices;

  template <class Layer>
  using weights = std::conditional_t<Query::is_projected, product_key_weights, product_key_weights_without_query>;
  template <class Layer>
  using no_shared_weights = absent_weights<the_layer_owns_the_router>;
  template <class Layer>
  using inputs = absent_inputs<the_router_takes_no_inputs>;
  template <class Layer>
  using report = product_keys_report;
  template <class Layer>
  using auxiliary = absent<product_keys_make_no_logits>;

  template <class Self, shape Dims, class Capacity, class Expert>
  static constexpr bool fits() {
    static_assert(Dims.experts == Keys * Keys,
                  "switchyard: router::product_keys addresses as many experts as there are pairs of its half keys. Set "
                  "shape.experts to the "
                  "square of its first argument.");
    static_assert(Dims.top_k % Self::choices == 0,
                  "switchyard: every head of router::product_keys chooses as many experts. Set shape.top_k to a "
                  "multiple of its heads.");
    static_assert(Query::is_projected || Dims.hidden % 2 == 0,
                  "switchyard: router::query::token cuts a token in two halves. Make shape.hidden even, or take "
                  "router::query::projected.");
    static_assert(
        Dims.top_k / Self::choices <= 512 || (Dims.top_k / Self::choices == Dims.experts && Dims.experts <= 8192),
        "switchyard: router::product_keys keeps at most 512 experts of a head, or all of up to 8192. Lower "
        "shape.top_k.");
    return true;
  }

  template <class Layer>
  static void check(forward_args<Layer> const& args) {
    product_key_weights const w = args.weights.router;
    checks::owner const of{"weights.router."};
    checks::check_pointer(w.first_keys, "first_keys", "[heads, keys, half of the query] float", of);
    checks::check_pointer(w.second_keys, "second_keys", "[heads, keys, half of the query] float", of);
    if constexpr (Query::is_projected)
      checks::check_pointer(w.query, "query", "[heads * query width, hidden] float", of);
  }
  template <class Layer>
  static void list_written(forward_args<Layer> const& args, checks::written_memory& memory) {
    memory.write("report.scores", args.report.scores, args.tokens.rows * Layer::dims.top_k);
  }
  template <class Layer>
  static void list_read(forward_args<Layer> const& args, checks::written_memory const& memory) {
    product_key_weights const w = args.weights.router;
    constexpr std::int64_t width = Query::width(Layer::dims.hidden), table = std::int64_t{Heads} * Keys * (width / 2);
    memory.read("weights.router.first_keys", w.first_keys, table);
    memory.read("weights.router.second_keys", w.second_keys, table);
    memory.read("weights.router.query", w.query, Heads * width * Layer::dims.hidden);
    memory.read("weights.router.query_bias", w.query_bias, Heads * width);
  }

  template <class Layer>
  static constexpr router_costs costs() {
    constexpr std::int64_t width = Query::width(Layer::dims.hidden);
    router_costs result;
    result.matrix = Heads * Keys * width + (Query::is_projected ? Heads * width * Layer::dims.hidden : 0);
    result.vectors = Query::is_projected ? Heads * width : 0;
    result.all = result.matrix + result.vectors;
    return result;
  }
};

/// `product_keys` whose heads' scores are added before one choice, and its weights, of them all. With `shape.top_k` as large as
/// `shape.experts` nothing is left out, which is what the published code computes where it keeps at least as many keys as a half has.
/// Source: Csordas et al. 2023, as above, its published code (the dense form).
template <int Keys, int Heads = 1, class Query = query::token, class Weighting = weighting::relu>
struct summed_product_keys : product_keys<Keys, Heads, Query, Weighting> {
  static constexpr auto label = "summed_product_keys<" + decimal<Keys>() + "," + decimal<Heads>() + "," + Query::label +
                                "," + Weighting::label + ">";
  static constexpr std::string_view name = label;
  static constexpr bool sums_heads = true;
  static constexpr int choices = 1;
};

}  // namespace switchyard::router

/// The mathematics of choosing by two half scores, for every backend.
namespace switchyard::product_key {

/// u + v without rounding, as two floats: the order of choice is that of the sums, not of their roundings.
struct score {
  float sum, rest;
};
SWITCHYARD_HD inline score score_of(float u, float v) {
  float const sum = u + v, of_v = sum - u;
  return {sum, (u - (sum - of_v)) + (v - of_v)};
}

/// An expert with its score.
struct scored {
  score of;
  int id;
};
SWITCHYARD_HD constexpr bool precedes(scored const& a, scored const& b) {
  if (a.of.sum != b.of.sum) return a.of.sum > b.of.sum;
  if (a.of.rest != b.of.rest) return a.of.rest > b.of.rest;
  return a.id < b.id;
}

/// How many second keys may go with a first key of this rank (from 0) where so many experts are kept.
SWITCHYARD_HD constexpr int partners(int rank, int kept, int keys) {
  int const most = kept / (rank + 1);
  return most < keys ? most : keys;
}

}  // namespace switchyard::product_key
