#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

/// A slow Mixture-of-Experts layer in double, configured at run time and written from the papers.
///
/// It includes nothing of the library, so that the two can only agree by computing the same thing.
namespace reference {

using numbers = std::vector<double>;

/// What a router makes of its logits.
///
/// `sparsemixer` chooses one expert after the other (Liu et al. 2023, Sparse Backpropagation for MoE Training, section
/// 3, in evaluation mode); `precomputed` takes ids and weights from `inputs`.
enum class score { softmax, sigmoid, sqrt_softplus, logits, sparsemixer, precomputed };

/// Score of a group of experts: its best expert (DeepSeek-AI 2024, DeepSeek-V2, section 2.2.2), or the sum of its
/// best two (DeepSeek-AI 2024, DeepSeek-V3, section 2.1.2).
enum class group_score { max, top2_sum };

/// Norm by which the weights of one token are divided.
enum class norm { none, sum, l2 };

enum class activation { relu, relu_squared, gelu, gelu_tanh, silu, clamped_swiglu };

/// Order in which (token, expert) pairs ask for a slot.
///
/// token: pair by pair as they stand. choice: all first choices, then all second choices (Lepikhin et al. 2020, GShard,
/// algorithm 1). priority: as choice, with the tokens sorted by the score of their first choice (Riquelme et al. 2021,
/// Scaling Vision with Sparse Mixture of Experts, section 4).
enum class queue { token, choice, priority };

/// What a dropped pair adds to the output: nothing; its weight times the input (early ports of Switch); or, when all
/// pairs of a token were dropped, the input itself.
enum class dropped_output { zero, weighted_input, input };

/// What logits are made of: tokens and the router weight; minus the distances of x / |x| and the router weight's rows; or
/// selector_output tanh(router x / |x|) (Zhang et al. 2022, MoEfication, section 3.3, with its code). The direction of zero is zero.
enum class selector { none, center_distances, network };

enum class shared_expert { none, plain, sigmoid_gated };

/// What the adaptive clustering of a router is made of (Nielsen et al. 2025, Tight Clusters Make Specialized Experts).
enum class spread { mean_absolute, variance };
enum class feature_scaling { per_feature, global, none };
struct clustering {
  bool scales = false;
  spread measure = spread::mean_absolute;
  double alpha = 1e-4;
  double clip = 10;  ///< 0: no limit
  feature_scaling scaling = feature_scaling::per_feature;
  bool unit_rows = true;  ///< router rows are divided by their length, at least 1e-4
  bool experts_see_scaled = false;
  bool counts_empty = false;  ///< clusters without tokens count in the means, up to the largest id in any column
};

/// Stands for "as many slots as there are pairs".
inline constexpr std::int64_t no_limit = -1;

struct config {
  int hidden = 0;
  int intermediate = 0;
  int experts = 0;
  int top_k = 1;

  score scores = score::softmax;
  int groups = 1;       ///< of experts: consecutive and equal
  int kept_groups = 1;  ///< groups of which experts may be chosen
  group_score group_by = group_score::max;
  double masked_fill = -std::numeric_limits<double>::infinity();  ///< choice score of experts in other groups

  bool softmax_after_top_k = false;  ///< weights are the softmax over the chosen logits only
  bool sigmoid_after_top_k = false;  ///< weights are the sigmoids of the chosen logits
  norm normalise = norm::none;
  bool normalise_after_dropping = false;  ///< false: over all choices of a token; true: over those that got a slot
  double least_sum = 0x1p-23;        ///< least denominator after dropping: the float epsilon, as in fairseq and NLLB
  double scaling = 1.0;              ///< factor on the weights, after normalising
  double jitter = 0.01;              ///< sparsemixer: half the relative distance at which an expert is masked
  int balancing_iterations = 0;      ///< 0: tokens choose by themselves
  bool balancing_subtracts = false;  ///< with the signs of sigma-MoE's published code
  bool unit_weights = false;         ///< every chosen expert has the weight 1, before scaling
  selector select_by = selector::none;
  /// With score::precomputed: the given weights are probabilities, which these factors make weights of, one for each choice; or, where
  /// there are none, their sum and the first.
  bool predicted = false;
  numbers degrading_factors = {};
  bool replaces_zeros = false;  ///< an element of the sum over experts that is zero becomes that of the token
  bool given_ids = false;       ///< experts are inputs.ids, weights are those of the logits
  int router_width = 0;         ///< of inputs.router_tokens, which the router sees; 0: it sees the tokens

  activation act = activation::silu;
  bool gated = true;
  int kept_units = 0;  ///< of an expert's inner values, the largest; those equal to the last one, too; 0: all
  bool norm_compensated = false;  ///< they are ranked times the norm of their column of down
  double clamp_limit = 7.0;       ///< clamped_swiglu
  double clamp_shift = 1.0;
  double clamp_alpha = 1.702;
  bool weight_on_input = false;  ///< the weight multiplies the token before the expert, not the result
  double expert_output_scale = 1.0;
  bool output_bias = false;  ///< a vector is added to the sum over a token's experts
  /// Of `experts`, the last ones, in this order: they take no row and no slot (Jin et al. 2024, MoE++, section 3.2).
  int constant_experts = 0;        ///< add a vector
  int mixed_constant_experts = 0;  ///< add a softmax-weighted sum of the token and a vector
  int identity_experts = 0;        ///< add the token
  int zero_experts = 0;            ///< add nothing
  shared_expert shared = shared_expert::none;
  int shared_intermediate = 0;

  std::int64_t slots = no_limit;  ///< rows that an expert takes from one group of tokens
  /// Where set, slots for a group of so many tokens of such a layer.
  std::int64_t (*slot_rule)(config const&, std::int64_t) = nullptr;
  double share = 1.0;                 ///< of the tokens of a group, for `share_of_tokens`
  bool counts_padding = false;        ///< rows that are not active count among the tokens that a rule is given
  std::int64_t tokens_per_group = 0;  ///< 0: all tokens are one group; the last group may be smaller
  queue order = queue::choice;
  dropped_output dropped = dropped_output::zero;
  clustering clusters = {};

  std::vector<int> strata = {};  ///< experts of each; empty: the layer is not stratified
  bool stratum_norms = true;
  bool normalised_residual = true;  ///< the residual of a later pass is the token after the norm, not before it
  double norm_epsilon = 1e-5;
};

/// Experts with weights of their own, which come first.
inline int experts_with_rows(config const& c) {
  return c.experts - c.zero_experts - c.identity_experts - c.constant_experts - c.mixed_constant_experts;
}

/// Rows of a router weight: the gate of stratum i has experts of that stratum and all above it.
inline int router_rows(config const& c) {
  if (c.strata.empty()) return c.experts;
  int rows = 0, closed = 0;
  for (int size : c.strata) {
    rows += c.experts - closed;
    closed += size;
  }
  return rows;
}

/// All matrices row-major; an empty vector is an absent one.
struct weights {
  numbers router = {};            ///< [experts, hidden]; with strata all gates one after the other
  numbers selector_output = {};   ///< [experts, experts], for selector::network
  numbers router_bias = {};       ///< [experts]
  numbers correction_bias = {};   ///< [experts], added to the scores for choosing only
  numbers gate_proj = {};         ///< [experts, intermediate, hidden]
  numbers up_proj = {};           ///< [experts, intermediate, hidden]
  numbers down_proj = {};         ///< [experts, hidden, intermediate]
  numbers gate_bias = {};         ///< [experts, intermediate]
  numbers up_bias = {};           ///< [experts, intermediate]
  numbers down_bias = {};         ///< [experts, hidden]
  numbers shared_gate_proj = {};  ///< [shared_intermediate, hidden]
  numbers shared_up_proj = {};    ///< [shared_intermediate, hidden]
  numbers shared_down_proj = {};  ///< [hidden, shared_intermediate]
  numbers shared_gate = {};       ///< [hidden], for shared_expert::sigmoid_gated
  numbers output_bias = {};       ///< [hidden]
  numbers constant_vectors = {};  ///< [constant + mixed constant experts, hidden]
  numbers constant_mixing = {};   ///< [mixed constant experts, 2, hidden]
  numbers norm_weight = {};       ///< [strata, hidden]
  numbers norm_bias = {};         ///< [strata, hidden]
};

/// What may come with the tokens; empty vectors are absent.
struct inputs {
  std::vector<std::uint8_t> active = {};  ///< [tokens], 0 for padding
  std::vector<int> ids = {};              ///< [tokens, top_k], for score::precomputed and given_ids
  numbers id_weights = {};                ///< [tokens, top_k], for score::precomputed
  numbers router_tokens = {};             ///< [tokens, router_width]
  std::vector<int> labels = {};           ///< [tokens, label_choices]: the first of a token is its cluster
  int label_choices = 1;
  numbers feature_scale = {};             ///< [experts, hidden] by cluster; empty: from the tokens
  numbers residual = {};                  ///< [tokens, hidden], with strata
  std::vector<std::uint8_t> masked = {};  ///< [tokens, experts], 1 where an expert is chosen after all others
};

/// Auxiliary values without coefficient. Balance values are means over the groups of tokens that have an active token,
/// except balance_all_choices, for which all tokens are one group.
/// With precomputed routes there are no logits, and only load_variation is set.
struct auxiliary {
  double balance_first_choice = 0;
  double balance_all_choices = 0;
  double balance_kept_choice = 0;
  double balance_combine_weight = 0;
  double z_loss = 0;
  double load_variation = 0;
  double negative_entropy = 0;
};

struct result {
  numbers y;                          ///< [tokens, hidden]
  std::vector<int> ids;               ///< [tokens, top_k], descending by the score used for choosing; -1 for padding
  numbers weights;                    ///< [tokens, top_k] as applied, 0 where dropped
  std::vector<std::uint8_t> dropped;  ///< [tokens, top_k]
  numbers logits;                     ///< [tokens, experts]
  std::vector<std::int64_t> counts;   ///< [experts], pairs that got a slot
  std::vector<std::int64_t> load;     ///< [experts], pairs before dropping
  numbers feature_scale;              ///< [experts, hidden] by cluster, with clustering
  numbers dispersion;                 ///< [experts, hidden] by cluster, with clustering and no given scale
  auxiliary aux;

  /// With strata: ids, weights and dropped are [strata, tokens, top_k], counts are sums, and there are no `logits`.
  std::vector<std::uint8_t> passes;  ///< [tokens] that each made
  struct pass {
    int stratum;
    std::vector<std::int64_t> tokens;
    numbers logits;  ///< [tokens of the pass, experts of its gate]
  };
  std::vector<pass> made;  ///< one for each stratum that had tokens
};

double sigmoid(double x);

/// exp(x - max) / sum. Entries of minus infinity get 0.
numbers softmax(numbers const& x);

/// Positions of the `count` largest entries, largest first; a tie goes to the lower position.
std::vector<int> largest(numbers const& x, int count);

struct choice {
  std::vector<int> ids;
  numbers weights;
  double priority = 0;  ///< place in a prioritised queue: the score of the first choice
};

inline std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b; }
inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// ceil(factor tokens top_k / experts), the factor being numerator / denominator
/// (Fedus et al. 2021, Switch Transformers, section 2.2, rounded up once).
inline std::int64_t slots_ceil(std::int64_t tokens, int experts, int top_k, std::int64_t numerator,
                               std::int64_t denominator) {
  return ceil_div(numerator * tokens * top_k, denominator * experts);
}

/// max(min(tokens, floor(factor tokens / experts)), minimum): Mesh TensorFlow, the code that Switch Transformers was
/// trained with.
inline std::int64_t slots_mesh(std::int64_t tokens, int experts, std::int64_t numerator, std::int64_t denominator,
                               std::int64_t minimum = 4) {
  return std::max(std::min(tokens, floor_div(numerator * tokens, denominator * experts)), minimum);
}

/// floor(factor ceil(tokens / experts)): the top-1 gate of fairseq in training.
inline std::int64_t slots_fairseq(std::int64_t tokens, int experts, std::int64_t numerator, std::int64_t denominator) {
  return floor_div(numerator * ceil_div(tokens, experts), denominator);
}

/// top_k floor(factor ceil(tokens / experts)), up to a multiple of the alignment: Tutel.
inline std::int64_t slots_tutel(std::int64_t tokens, int experts, int top_k, std::int64_t numerator,
                                std::int64_t denominator, std::int64_t alignment = 1) {
  return ceil_div(top_k * floor_div(numerator * ceil_div(tokens, experts), denominator), alignment) * alignment;
}

/// ceil(share tokens), whatever the number of experts: fairseq and NLLB in evaluation.
inline std::int64_t slots_share(std::int64_t tokens, std::int64_t numerator, std::int64_t denominator) {
  return ceil_div(numerator * tokens, denominator);
}

/// ceil(config::share tokens), for `config::slot_rule`; a share like 0.17 is not exact.
inline std::int64_t share_of_tokens(config const& c, std::int64_t tokens) {
  return static_cast<std::int64_t>(std::ceil(c.share * static_cast<double>(tokens) - 1e-9));
}

/// Closes all experts that are not in one of the best groups (DeepSeek-AI 2024, DeepSeek-V2, section 2.2.2).
void close_groups(config const& c, numbers& choice_scores);

/// Experts and weights of one token, before any dropping and without normalising after it.
///
/// Sources: Fedus et al. 2021, Switch Transformers, section 2.1 (one expert, its probability); Jiang et al. 2024,
/// Mixtral of Experts, section 2.1 (softmax over the chosen logits); DeepSeek-AI 2024, DeepSeek-V3, section 2.1.2
/// (sigmoid scores, a bias for choosing only); Csordas et al. 2023, Approximating Two-Layer Feedforward Networks for
/// Efficient Transformers, section 5 (masked experts; of those, the best scores with a weight of 0 where there are too few
/// others). `masked` is empty or has one for each expert.
choice route(config const& c, numbers const& logits, numbers const& correction_bias,
             std::vector<std::uint8_t> const& masked = {});

/// The weights of predicted experts, [choices], by their probabilities p: factor_i p_i, or p_i / sum(p) * p_0 (Du et al. 2024, SiDA-MoE,
/// and our form of it).
numbers weights_of_predictions(config const& c, numbers const& p);

/// The weights of these experts by the logits of a token.
choice weigh(config const& c, numbers const& logits, std::vector<int> const& ids);

/// What one expert has between its two products: act(up x), or act(gate x) * up x with a gate.
numbers inner_values(config const& c, weights const& w, int expert, numbers const& x);

/// The L2 norms of the columns of down, [experts, intermediate].
numbers unit_norms(config const& c, weights const& w);

/// What the inner values of an expert are ranked by: themselves, or with `norm_compensated` times those norms.
numbers unit_ranks(config const& c, weights const& w, int expert, numbers const& inner);

/// What the choice adds to each expert's logit so that the experts of all tokens that are active are balanced, [experts]; zeros for one
/// token. Sinkhorn's iterations, in logarithms: every row of exp(logits + u + v) is made to sum to 1 by u, then every column to
/// tokens / experts by v; the last v is returned. (Clark et al. 2022, Unified Scaling Laws for Routed Language Models.) The
/// published code of sigma-MoE has u = -log sum exp(logits - v) and v = -log sum exp(logits - u), but for constants. A column of minus
/// infinities gets 0.
numbers balancing_bias(config const& c, numbers const& logits, std::vector<std::uint8_t> const& active = {});

/// Mean of two squared coefficients of variation (unbiased variance / (mean^2 + 1e-10)) over experts: of the summed
/// probabilities, and of the summed chance that an expert stays among the best top_k when its score gets normal noise
/// of standard deviation gate_noise / experts. p: [tokens, experts].
/// Source: Riquelme et al. 2021, Scaling Vision with Sparse Mixture of Experts, appendix A, as Tutel computes it.
double load_importance(numbers const& p, int experts, int top_k, double gate_noise);

/// The spread of every cluster along every feature, and the weight that the feature gets, both [experts, hidden].
/// Weights of clusters that do not count are 1.
struct cluster_table {
  numbers dispersion, scale;
};
cluster_table cluster_features(config const& c, numbers const& x, inputs const& in);

/// Tokens times the weights of their clusters' features.
numbers scaled_tokens(config const& c, numbers x, inputs const& in, numbers const& scale);

/// Logits x W^T + b of all tokens, [tokens, experts].
numbers router_logits(config const& c, weights const& w, numbers const& x);

/// Routes, weights, dropped pairs, counts and auxiliary values from logits alone; `y` stays empty.
result decide(config const& c, numbers logits, numbers const& correction_bias, std::int64_t tokens,
              inputs const& in = {});

/// One layer on x [tokens, hidden]. The residual connection is outside, but with strata.
///
/// y_t = sum over kept choices of weight * expert(x_t) + shared(x_t) (Fedus et al. 2021, Switch
/// Transformers, equation 2; DeepSeek-AI 2024, DeepSeek-V2, equation 20, for the shared expert) + output bias (Csordas et
/// al. 2023, Approximating Two-Layer Feedforward Networks for Efficient Transformers, its layer). A padding row gives 0. Experts without
/// rows (Jin et al. 2024, MoE++, equations 3 to 6): 0, x, v, or a1 x + a2 v with (a1, a2) = softmax(mixing x).
result forward(config const& c, weights const& w, numbers const& tokens_in, inputs const& in = {});

}  // namespace reference
