#include "support/unroutable.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "backend/check.hpp"
#include "catch.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"

namespace support {
namespace {

constexpr int tested_tokens = 40;
/// As a float, too, it has all bits set, as those have that a GPU's arithmetic makes.
constexpr double not_a_number = std::bit_cast<double>(std::uint64_t{0x7fffffffffffffff});
constexpr call giving_nan{.context = {.threads = 1, .unroutable = sy::unroutable_tokens::give_nan}};

}  // namespace

void make_unroutable(problem& p, std::size_t token) {
  if (p.layer->router.precomputed) {
    p.inputs.ids[token * p.config.top_k] = p.layer->reference.experts;
  } else if (p.config.router_width > 0) {
    p.inputs.router_tokens[token * p.config.router_width] = p.tokens[token * p.config.hidden] = not_a_number;
  } else {
    p.tokens[token * p.config.hidden] = not_a_number;
  }
}

namespace {

/// `spoil` makes the token `lost` of a problem one that cannot be routed.
template <class Spoil>
void check_unroutable_token(any_layer const& layer, std::size_t lost, Spoil const& spoil) {
  problem p = random_problem(layer, tested_tokens, routing::free, 7);
  if (p.config.strata.empty()) p.config.tokens_per_group = 17;
  std::size_t const hidden = p.config.hidden, top_k = p.config.top_k;
  problem padded = p;
  padded.inputs.active.assign(tested_tokens, 1);
  padded.inputs.active[lost] = 0;
  outcome const without = run(padded, giving_nan);
  spoil(p);
  outcome const got = run(p, giving_nan);
  CHECK(got.guards_intact);
  // A share of the tokens counts this one, which is active; the others' slots are other ones then.
  bool const same_slots = !layer.capacity.drops || p.config.slot_rule == nullptr;
  for (std::size_t i = 0; i < got.output.size(); ++i) {
    bool const nan = std::isnan(got.output[i]), other = got.output[i] != without.output[i];
    if (i / hidden == lost ? !nan : nan || (same_slots && other)) FAIL("row " << i / hidden);
  }
  std::size_t const pairs = tested_tokens * top_k;
  for (std::size_t pair = 0; pair < got.experts.size(); ++pair) {
    std::size_t const token = pair % pairs / top_k, choice = pair % top_k;
    if (token != lost) {
      if (!same_slots) continue;
      if (got.experts[pair] != without.experts[pair]) FAIL("an expert of token " << token);
      if (got.weights[pair] != without.weights[pair]) FAIL("a weight of token " << token);
    } else if (layer.router.precomputed) {
      if (choice == 0 && (got.experts[pair] != -1 || !std::isnan(got.weights[pair]))) FAIL("not reported");
    } else {
      bool const first_pass = pair < pairs;
      bool const reported = got.experts[pair] == -1 && std::isnan(got.weights[pair]) == first_pass;
      if (!reported) FAIL("choice " << choice << " is not reported");
    }
  }
  if (layer.router.precomputed || !same_slots) return;
  CHECK(same_bits(got.counts, without.counts));
  CHECK(same_bits(got.load, without.load));
  CHECK(same_bits(got.feature_scale, without.feature_scale));
  CHECK(same_bits(got.dispersion, without.dispersion));
  CHECK(got.auxiliary.balance_all_choices == without.auxiliary.balance_all_choices);
  CHECK(got.auxiliary.z_loss == without.auxiliary.z_loss);
}

}  // namespace

void check_unroutable_token(any_layer const& layer) {
  constexpr std::size_t lost = 33;
  check_unroutable_token(layer, lost, [](problem& p) { make_unroutable(p, lost); });
  if (layer.router.given_experts) {
    for (int id : {-1, layer.reference.experts})
      check_unroutable_token(layer, lost, [&](problem& p) { p.inputs.ids[(lost + 1) * p.config.top_k - 1] = id; });
  }
  if (!layer.router.scales_features) return;
  // One whose cluster does not exist, as after a layer that could not route it either.
  check_unroutable_token(layer, lost, [](problem& p) { p.inputs.labels[lost * p.inputs.label_choices] = -1; });
}

bool check_closed_expert(any_layer const& layer) {
  problem p = random_problem(layer, tested_tokens, routing::free, 9);
  reference::config const& c = p.config;
  reference::numbers& bias = layer.router.bias ? p.weights.router_bias : p.weights.correction_bias;
  bool const enough = c.experts / c.groups * c.kept_groups > c.top_k;
  if (bias.empty() || !enough || !c.strata.empty() || c.given_ids) return false;
  for (int closed : {0, c.experts - 1}) {
    double const before = bias[closed];
    bias[closed] = -std::numeric_limits<double>::infinity();
    outcome const got = run(p);
    reference::result const expected = reference::forward(p.config, p.weights, p.tokens, p.inputs);
    check_decisions(got, expected, decision_tolerance(layer));
    check_auxiliary(got.auxiliary, expected.aux, decision_tolerance(layer));
    CHECK(relative_error(got.output, expected.y) <= output_tolerance(layer));
    CHECK(got.load[closed] == 0);
    bias[closed] = before;
  }
  return true;
}

bool check_routes_elsewhere(any_layer const& layer) {
  if (!layer.router.precomputed) return false;
  problem p = random_problem(layer, tested_tokens, routing::free, 9);
  random_numbers random(5);
  std::size_t const top_k = p.config.top_k;
  for (std::size_t pair = 0; pair < p.inputs.ids.size(); ++pair) {
    bool const whole_token = pair / top_k == 4;
    if (whole_token || random.below(3) == 0) p.inputs.ids[pair] = -1;
    // Nobody reads it, but for a first one, and where weights are made of all probabilities of a token.
    if (p.inputs.ids[pair] < 0 && pair % top_k > 0 && !p.config.predicted) p.inputs.id_weights[pair] = not_a_number;
  }
  outcome const got = run(p);
  reference::result const expected = reference::forward(p.config, p.weights, p.tokens, p.inputs);
  check_decisions(got, expected, decision_tolerance(layer));
  CHECK(relative_error(got.output, expected.y) <= output_tolerance(layer));
  CHECK(got.guards_intact);
  return true;
}

}  // namespace support
