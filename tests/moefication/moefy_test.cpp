#include <switchyard/moefication/moefy.hpp>
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"

/// Dense blocks as layers, and what their experts are worth.
namespace sy = switchyard;
namespace moefication = switchyard::moefication;

namespace {

template <class Element = float>
std::vector<Element> random_elements(std::size_t count, double deviation, unsigned seed) {
  support::random_numbers random(seed);
  std::vector<Element> values(count);
  for (Element& v : values) v = Element(static_cast<float>(deviation * random.normal()));
  return values;
}

/// The block of the hand-checked examples: its matrix has the rows (1, 0), (0.5, 0.5), (0, 1) and (-1, 0).
struct by_hand {
  std::vector<float> up{1, 0, 0.5f, 0.5f, 0, 1, -1, 0}, down = std::vector<float>(8, 1.0f), x{2, 1};
  std::vector<std::int32_t> labels{0, 0, 1, 1};

  moefication::dense_block<float> block() const { return {.up = {up.data(), 4, 2}, .down = {down.data(), 2, 4}}; }
};

/// A random block, and tokens.
template <class Element, bool Gated>
struct problem {
  static constexpr int hidden = 64, units = 256, experts = 8, tokens = 45;
  static constexpr std::size_t matrix = std::size_t{hidden} * units;
  std::vector<Element> gate = random_elements<Element>(Gated ? matrix : 0, 0.2, 1);
  std::vector<Element> up = random_elements<Element>(matrix, 0.2, 2), down = random_elements<Element>(matrix, 0.1, 3);
  std::vector<Element> x = random_elements<Element>(tokens * hidden, 1.0, 4);
  std::vector<std::int32_t> labels = std::vector<std::int32_t>(units);

  problem() {  // units of an expert are not neighbours
    for (int u = 0; u < units; ++u) labels[static_cast<std::size_t>(u)] = u * 5 % 11 % experts;
    std::vector<int> counts(experts);
    for (std::int32_t& label : labels) {
      while (counts[static_cast<std::size_t>(label)] == units / experts) label = (label + 1) % experts;
      ++counts[static_cast<std::size_t>(label)];
    }
  }
  moefication::dense_block<Element> block() const {
    moefication::dense_block<Element> b{.up = {up.data(), units, hidden}, .down = {down.data(), hidden, units}};
    if (Gated) b.gate = {gate.data(), units, hidden};
    return b;
  }
};

template <class Layer, class Element>
std::vector<float> run(typename Layer::args args, std::vector<Element> const& x, sy::cpu_context const& context = {}) {
  std::vector<Element> y(x.size());
  auto const tokens = static_cast<std::int64_t>(x.size()) / Layer::dims.hidden;
  std::vector<std::byte> scratch(Layer::workspace_bytes(tokens));
  args.tokens = Layer::rows(x.data(), tokens);
  args.output = Layer::rows(y.data(), tokens);
  args.workspace = scratch;
  Layer::forward(args, context);
  return {y.begin(), y.end()};
}

template <class Layer, class Element>
void set_weights(typename Layer::args& args, moefication::moefied_block<Element> const& experts) {
  if constexpr (Layer::expert_traits.gated) args.weights.gate_proj = experts.gate_view();
  args.weights.up_proj = experts.up_view();
  args.weights.down_proj = experts.down_view();
}

/// All experts together are the dense block, however their weights lie, and whatever the router says.
template <class Element, class Expert>
void check_all_experts(double tolerance) {
  using of = problem<Element, Expert::traits.gated>;
  of const p;
  using dense = sy::layer<sy::shape{of::hidden, of::units, 1, 1}, sy::router::switch_top1, sy::capacity::dropless,
                          Expert, sy::backend::cpu, Element>;
  std::vector<float> const router(of::hidden, 0.0f);
  typename dense::args of_dense{};
  of_dense.weights.router.weight = router.data();
  if constexpr (Expert::traits.gated) of_dense.weights.gate_proj = dense::in_proj(p.gate.data());
  of_dense.weights.up_proj = dense::in_proj(p.up.data());
  of_dense.weights.down_proj = dense::out_proj(p.down.data());
  std::vector<float> const expected = run<dense>(of_dense, p.x);

  using all = sy::layer<sy::shape{of::hidden, of::units / of::experts, of::experts, of::experts},
                        sy::router::nearest_centers, sy::capacity::dropless, Expert, sy::backend::cpu, Element>;
  std::vector<float> const centers = moefication::centers(p.block(), p.labels, of::experts);
  for (sy::storage stored : {sy::storage::input_major, sy::storage::output_major}) {
    auto const experts = moefication::moefy(p.block(), p.labels, of::experts, stored);
    typename all::args args{};
    args.weights.router.weight = centers.data();
    set_weights<all>(args, experts);
    for (auto set : {sy::instruction_set::portable, sy::instruction_set::avx2, sy::instruction_set::avx512}) {
      if (set > sy::best_instruction_set()) continue;
      std::vector<float> const one = run<all>(args, p.x, {.threads = 1, .instructions = set});
      CHECK(support::relative_error(one, expected) < tolerance);
      CHECK(support::same_bits(one, run<all>(args, p.x, {.threads = 3, .instructions = set})));
    }
  }
}

}  // namespace

TEST_CASE("the ground truth of a token is what each expert's units sum up to", "[moefication]") {
  by_hand const of;
  std::vector<float> const active =
      moefication::unit_activations<sy::relu>(of.block(), sy::view<float const>{of.x.data(), 1, 2});
  CHECK(active == std::vector<float>{2, 1.5f, 1, 0});
  std::vector<float> const masses = moefication::expert_masses({active.data(), 1, 4}, of.labels, 2);
  CHECK(masses == std::vector<float>{3.5f, 1});
  auto const chosen = moefication::best_experts({masses.data(), 1, 2}, 1);
  CHECK(chosen.experts == std::vector<std::int32_t>{0});
  CHECK(chosen.weights == std::vector<float>{1.0f});
  CHECK(moefication::captured_mass({masses.data(), 1, 2}, chosen.experts, 1) == Catch::Approx(3.5 / 4.5));
  std::vector<float> const equal(6, 2.0f), idle(4, 0.0f);
  CHECK(moefication::best_experts({equal.data(), 2, 3}, 2).experts == std::vector<std::int32_t>{0, 1, 0, 1});
  CHECK(moefication::captured_mass({idle.data(), 2, 2}, {0, 1}, 1) == 1.0);
  CHECK_THROWS_AS(moefication::best_experts({equal.data(), 2, 3}, 4), sy::error);
  CHECK_THROWS_AS(moefication::captured_mass({equal.data(), 2, 3}, {0}, 1), sy::error);
}

TEST_CASE("centers are means of normalised rows, and the nearest ones are chosen", "[moefication][router]") {
  by_hand const of;
  std::vector<float> const centers = moefication::centers(of.block(), of.labels, 2);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(centers[i] == Catch::Approx(std::vector<double>{0.853553, 0.353553, -0.5, 0.5}[i]).epsilon(1e-5));
  }
  using layer =
      sy::layer<sy::shape{2, 2, 2, 1}, sy::router::nearest_centers, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  auto const experts = moefication::moefy(of.block(), of.labels, 2);
  layer::args args{};
  args.weights.router.weight = centers.data();
  set_weights<layer>(args, experts);
  std::vector<float> logits(8), weights(4);
  std::vector<std::int32_t> ids(4);
  args.report.logits = logits.data();
  args.decisions = {.experts = ids.data(), .weights = weights.data()};
  // The second token has the same direction, and the third one none.
  std::vector<float> const y = run<layer>(args, std::vector<float>{2, 1, 200, 100, 0, 0, -1, 1e-3f});
  for (std::size_t t : {0, 1}) {
    CHECK(logits[2 * t] == Catch::Approx(-0.102191).epsilon(1e-4));
    CHECK(logits[2 * t + 1] == Catch::Approx(-1.395426).epsilon(1e-4));
  }
  CHECK(logits[4] == Catch::Approx(-std::hypot(0.853553, 0.353553)).epsilon(1e-5));
  CHECK(logits[5] == Catch::Approx(-std::sqrt(0.5)).epsilon(1e-5));
  CHECK(ids == std::vector<std::int32_t>{0, 0, 1, 1});
  CHECK(weights == std::vector<float>(4, 1.0f));
  CHECK(y[0] == Catch::Approx(3.5));
  CHECK(y[6] == Catch::Approx(1e-3 + 1.0));
}

TEST_CASE("a direction is defined for every token that is a number", "[moefication][router]") {
  using layer =
      sy::layer<sy::shape{2, 2, 2, 1}, sy::router::mlp_selector, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  by_hand const of;
  auto const experts = moefication::moefy(of.block(), of.labels, 2);
  std::vector<float> const first{0.5f, 0, 0, 2}, second{1, 0.25f, -1, 1};
  layer::args args{};
  args.weights.router = {.weight = first.data(), .output_weight = second.data()};
  set_weights<layer>(args, experts);
  std::vector<float> logits(12);
  args.report.logits = logits.data();
  run<layer>(args, std::vector<float>{3, 4, 0, 0, 1e-30f, 0, 1e30f, 0, 0, -1e-42f, 3e30f, 4e30f});
  double const a = std::tanh(0.3), b = std::tanh(1.6);
  for (std::size_t t : {0, 5}) {
    CHECK(logits[2 * t] == Catch::Approx(a + 0.25 * b).epsilon(1e-5));
    CHECK(logits[2 * t + 1] == Catch::Approx(b - a).epsilon(1e-5));
  }
  for (std::size_t t : {1, 4}) {  // no direction
    CHECK(logits[2 * t] == 0.0f);
    CHECK(logits[2 * t + 1] == 0.0f);
  }
  for (std::size_t t : {2, 3}) CHECK(logits[2 * t] == Catch::Approx(std::tanh(0.5)).epsilon(1e-5));
  CHECK_THROWS_AS(run<layer>(args, std::vector<float>{sy::infinity, 0}), sy::error);
  args.weights.router.output_weight = nullptr;
  CHECK_THROWS_WITH(
      run<layer>(args, std::vector<float>{1, 1}),
      Catch::Matchers::ContainsSubstring("weights.router.output_weight: expected [experts, experts] float"));
}

TEST_CASE("a MoEfied block has each unit once, those of an expert in ascending order", "[moefication]") {
  problem<float, true> const p;
  using of = problem<float, true>;
  constexpr int size = of::units / of::experts;
  for (sy::storage stored : {sy::storage::input_major, sy::storage::output_major}) {
    auto const got = moefication::moefy(p.block(), p.labels, of::experts, stored);
    std::vector<std::int32_t> units = got.units;
    for (int e = 0; e < of::experts; ++e) {
      CHECK(std::is_sorted(units.begin() + e * size, units.begin() + (e + 1) * size));
      for (int i = 0; i < size; ++i) {
        std::int32_t const unit = got.units[static_cast<std::size_t>(e * size + i)];
        CHECK(p.labels[static_cast<std::size_t>(unit)] == e);
        for (int h = 0; h < of::hidden; h += 7) {
          CHECK(*got.gate_view().at(e, i, h) == p.gate[static_cast<std::size_t>(unit * of::hidden + h)]);
          CHECK(*got.up_view().at(e, i, h) == p.up[static_cast<std::size_t>(unit * of::hidden + h)]);
          CHECK(*got.down_view().at(e, h, i) == p.down[static_cast<std::size_t>(h * of::units + unit)]);
        }
      }
    }
    std::sort(units.begin(), units.end());
    for (int u = 0; u < of::units; ++u) CHECK(units[static_cast<std::size_t>(u)] == u);
  }
}

TEST_CASE("all experts together are the dense block", "[moefication]") {
  check_all_experts<float, sy::expert::mlp<sy::relu>>(1e-6);
  check_all_experts<sy::bfloat16, sy::expert::gated_mlp<sy::silu>>(1e-2);
}

TEST_CASE("the ground truth captures most mass of all choices, and more with more experts", "[moefication]") {
  using of = problem<float, false>;
  of const p;
  std::vector<float> const active =
      moefication::unit_activations<sy::relu>(p.block(), sy::view<float const>{p.x.data(), of::tokens, of::hidden});
  std::vector<float> const masses =
      moefication::expert_masses({active.data(), of::tokens, of::units}, p.labels, of::experts);
  sy::view<float const> const all{masses.data(), of::tokens, of::experts};
  double before = 0.0;
  for (int k = 1; k <= of::experts; ++k) {
    auto const chosen = moefication::best_experts(all, k);
    double const captured = moefication::captured_mass(all, chosen.experts, k);
    CHECK(captured > before);
    before = captured;
    for (int t = 0; t < of::tokens; ++t) {
      double of_chosen = 0.0;
      for (int i = 0; i < k; ++i) of_chosen += double(all.row(t)[chosen.experts[static_cast<std::size_t>(t * k + i)]]);
      for (int subset = 0; subset < 1 << of::experts; ++subset) {
        if (__builtin_popcount(static_cast<unsigned>(subset)) != k) continue;
        double of_subset = 0.0;
        for (int e = 0; e < of::experts; ++e) of_subset += (subset >> e & 1) != 0 ? double(all.row(t)[e]) : 0.0;
        if (of_subset > of_chosen + 1e-4) FAIL("a subset of " << k << " experts has more mass than those chosen");
      }
    }
  }
  CHECK(before == Catch::Approx(1.0));
}

TEST_CASE("the order of units within an expert changes nothing but roundings", "[moefication]") {
  using of = problem<float, false>;
  of const p;
  using layer = sy::layer<sy::shape{of::hidden, of::units / of::experts, of::experts, 4}, sy::router::unweighted_top_k,
                          sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  std::vector<float> const router =
      moefication::with_common_norm(moefication::centers(p.block(), p.labels, of::experts), of::experts, 2.0);
  for (std::size_t e = 0; e < of::experts; ++e) {
    double square = 0.0;
    for (std::size_t h = 0; h < of::hidden; ++h) square += std::pow(double(router[e * of::hidden + h]), 2);
    CHECK(std::sqrt(square) == Catch::Approx(2.0));
  }
  auto experts = moefication::moefy(p.block(), p.labels, of::experts);
  layer::args args{};
  args.weights.router.weight = router.data();
  set_weights<layer>(args, experts);
  std::vector<float> const y = run<layer>(args, p.x);
  for (std::size_t at = 0; at < experts.up_proj.size(); at += 32) {  // a feature's units of an expert
    std::reverse(experts.up_proj.begin() + static_cast<std::ptrdiff_t>(at),
                 experts.up_proj.begin() + static_cast<std::ptrdiff_t>(at) + 32);
  }
  std::vector<float> const down = experts.down_proj;
  for (std::size_t unit = 0; unit < of::units; ++unit) {
    std::size_t const from = unit / 32 * 32 + 31 - unit % 32;
    std::copy_n(down.begin() + static_cast<std::ptrdiff_t>(from * of::hidden), of::hidden,
                experts.down_proj.begin() + static_cast<std::ptrdiff_t>(unit * of::hidden));
  }
  std::vector<float> const reversed = run<layer>(args, p.x);
  CHECK(!support::same_bits(y, reversed));
  CHECK(support::relative_error(reversed, y) < 1e-6);
}

TEST_CASE("an expert of few units that a token visits twice adds both times", "[moefication]") {
  using of = problem<float, false>;
  of const p;
  using layer = sy::layer<sy::shape{of::hidden, of::units / of::experts, of::experts, 2}, sy::router::precomputed,
                          sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  auto const experts = moefication::moefy(p.block(), p.labels, of::experts);
  layer::args args{};
  set_weights<layer>(args, experts);
  auto const outputs = [&](std::vector<std::int32_t> const& ids, std::vector<float> const& weights) {
    args.inputs = {.experts = ids.data(), .weights = weights.data()};
    return run<layer>(args, p.x);
  };
  std::vector<std::int32_t> twice, once;
  std::vector<float> halves, one;
  for (int t = 0; t < of::tokens; ++t) {
    twice.insert(twice.end(), {t % of::experts, t % of::experts});
    halves.insert(halves.end(), {0.25f, 0.75f});
    once.insert(once.end(), {t % of::experts, -1});
    one.insert(one.end(), {1.0f, 0.0f});
  }
  CHECK(support::relative_error(outputs(twice, halves), outputs(once, one)) < 1e-6);
}

TEST_CASE("MoEfication refuses what does not fit", "[moefication]") {
  by_hand const of;
  auto const refused = [&](moefication::dense_block<float> const& block, std::vector<std::int32_t> const& labels,
                           int experts) {
    CHECK_THROWS_AS(moefication::moefy(block, labels, experts), sy::error);
    CHECK_THROWS_AS(moefication::centers(block, labels, experts), sy::error);
  };
  CHECK_NOTHROW(moefication::moefy(of.block(), of.labels, 2));
  refused({}, of.labels, 2);
  refused({.up = of.block().up}, of.labels, 2);
  refused({.up = of.block().up, .down = of.block().up}, of.labels, 2);
  refused({.gate = of.block().down, .up = of.block().up, .down = of.block().down}, of.labels, 2);
  refused(of.block(), {0, 0, 1}, 2);
  refused(of.block(), {0, 0, 1, 2}, 2);
  refused(of.block(), {0, 0, 0, 1}, 2);
  refused(of.block(), of.labels, 3);
  CHECK_THROWS_AS(moefication::unit_activations<sy::relu>(of.block(), sy::view<float const>{of.x.data(), 2, 1}),
                  sy::error);
  CHECK_THROWS_AS(moefication::with_common_norm({1, 2, 3}, 2), sy::error);
}
