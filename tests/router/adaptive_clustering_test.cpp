#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "catch.hpp"
#include "support/set_arguments.hpp"

namespace sy = switchyard;
using sy::router::adaptive_clustering;

namespace {

template <class Router, int Hidden = 2, int Experts = 2, int TopK = 2>
using layer_of = sy::layer<sy::shape{.hidden = Hidden, .intermediate = 1, .experts = Experts, .top_k = TopK}, Router,
                           sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
using language = adaptive_clustering<sy::router::top_k_softmax>;
using vision = adaptive_clustering<sy::router::softmax_top_k_raw, sy::router::vision>;
using parity = adaptive_clustering<sy::router::top_k_softmax, sy::router::counting_empty(sy::router::language_model)>;

struct outcome {
  std::vector<float> scale, dispersion, logits, weights, output;
  std::vector<std::int32_t> experts;
};

/// Routes tokens; the router weight is the identity where nothing else is said.
template <class Layer>
struct call {
  static constexpr int hidden = Layer::dims.hidden, experts = Layer::dims.experts, top_k = Layer::dims.top_k;
  std::vector<float> tokens;
  std::vector<std::int32_t> labels;
  std::vector<float> router = std::vector<float>(experts * hidden);
  std::vector<float> scale = {};
  std::vector<std::uint8_t> active = {};
  int choices = 1;

  explicit call(std::vector<float> x, std::vector<std::int32_t> from = {}) : tokens(x), labels(from) {
    for (int e = 0; e < std::min(experts, hidden); ++e) router[e * hidden + e] = 1.0f;
  }

  outcome run() const {
    std::int64_t const count = static_cast<std::int64_t>(tokens.size()) / hidden;
    std::vector<float> const matrices(experts * hidden, 1.0f);
    outcome out;
    out.scale.resize(experts * hidden);
    out.dispersion.resize(experts * hidden);
    out.logits.resize(count * experts);
    out.weights.resize(count * top_k);
    out.experts.resize(count * top_k);
    out.output.resize(tokens.size());
    std::vector<std::byte> scratch(Layer::workspace_bytes(count));
    typename Layer::args args{};
    args.tokens = Layer::rows(tokens.data(), count);
    args.weights.up_proj = Layer::in_proj(matrices.data());
    args.weights.down_proj = Layer::out_proj(matrices.data());
    args.output = Layer::rows(out.output.data(), count);
    args.workspace = scratch;
    support::set_arguments(args, {.router = {{router.data()}},
                                  .clusters = {labels.data(), choices, scale.empty() ? nullptr : scale.data()}});
    if constexpr (sy::router::are_scaled_by_cluster<typename Layer::router::features>) {
      args.report.feature_scale = out.scale.data();
      if (scale.empty()) args.report.dispersion = out.dispersion.data();
    }
    args.active = active.empty() ? nullptr : active.data();
    args.decisions.experts = out.experts.data();
    args.decisions.weights = out.weights.data();
    args.report.logits = out.logits.data();
    Layer::forward(args);
    return out;
  }
};

void check_close(std::vector<float> const& got, std::vector<double> const& expected, double limit = 2e-6) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(std::abs(got[i] - expected[i]) <= limit);
}

std::vector<float> const four_tokens{1, 0, 3, 1, 0, 2, 1, 6};

/// Noise between -1 and 1, the same in every run.
std::vector<float> noise(int count, unsigned seed) {
  std::vector<float> values(count);
  for (float& v : values) {
    seed = seed * 1664525u + 1013904223u;
    v = static_cast<float>(static_cast<std::int32_t>(seed)) * 0x1p-31f;
  }
  return values;
}

template <class Call>
std::string message_of(Call run) {
  try {
    run();
  } catch (sy::error const& e) {
    return e.what();
  }
  return "nothing was thrown";
}

}  // namespace

TEST_CASE("four tokens in two clusters have the feature weights computed by hand", "[router]") {
  outcome const lm = call<layer_of<language>>(four_tokens, {0, 0, 1, 1}).run();
  check_close(lm.dispersion, {1, 0.5, 0.5, 2});
  check_close(lm.scale, {0.666711, 1.599952, 1.333289, 0.400048});
  check_close({lm.logits.begin() + 2, lm.logits.begin() + 6}, {2.000133, 1.599952, 0, 0.800096});
  check_close({lm.weights.begin() + 2, lm.weights.begin() + 6}, {0.598731, 0.401269, 0.689995, 0.310005});
  check_close(call<layer_of<vision>>(four_tokens, {0, 0, 1, 1}).run().scale, {0.727322, 1.454499, 1.454499, 0.363679});
  // Without the method, token (3, 1) has these.
  outcome const base = call<layer_of<sy::router::top_k_softmax>>(four_tokens).run();
  check_close({base.weights.begin() + 2, base.weights.begin() + 4}, {0.880797, 0.119203});
}

TEST_CASE("empty clusters are left out of every mean, and count in the form for parity", "[router]") {
  outcome const left_out = call<layer_of<language, 2, 4>>(four_tokens, {0, 0, 2, 2}).run();
  check_close(left_out.scale, {0.666711, 1.599952, 1, 1, 1.333289, 0.400048, 1, 1});
  outcome const counted = call<layer_of<parity, 2, 4>>(four_tokens, {0, 0, 2, 2}).run();
  check_close({counted.scale.begin(), counted.scale.begin() + 2}, {0.00029988, 0.00059973}, 1e-8);
  check_close({counted.scale.begin() + 4, counted.scale.begin() + 6}, {0.00059970, 0.00014996}, 1e-8);
  // The published table ends at the largest id among all choices: naming expert 3 second adds another empty cluster.
  call<layer_of<parity, 2, 4>> wider(four_tokens, {0, 3, 0, 1, 2, 1, 2, 0});
  wider.choices = 2;
  CHECK(wider.run().scale[0] < 0.7f * counted.scale[0]);
}

TEST_CASE("one token alone, and clusters of one token, are routed by the base router", "[router]") {
  outcome const one = call<layer_of<language>>({3, 1}, {1}).run();
  check_close({one.scale.begin() + 2, one.scale.end()}, {1, 1}, 0);
  outcome const singles = call<layer_of<language>>({3, 1, 0, 5}, {0, 1}).run();
  outcome const base = call<layer_of<sy::router::top_k_softmax>>({3, 1, 0, 5}).run();
  check_close(singles.scale, {1, 1, 1, 1}, 0);
  CHECK(singles.weights == base.weights);
  CHECK(singles.experts == base.experts);
}

TEST_CASE("the largest weight of the vision form is 1.5, and each feature's mean of the language-model form is 1",
          "[router]") {
  std::vector<float> x = noise(64 * 8, 3);
  for (int t = 0; t < 64; ++t) x[t * 8] *= 1e-3f;  // tight along the first feature
  std::vector<std::int32_t> labels(64);
  for (int t = 0; t < 64; ++t) labels[t] = t % 3;
  outcome const v = call<layer_of<vision, 8, 4>>(x, labels).run();
  CHECK(*std::max_element(v.scale.begin(), v.scale.begin() + 24) == Approx(1.5).epsilon(1e-6));
  outcome const lm = call<layer_of<language, 8, 4>>(x, labels).run();
  for (int q = 0; q < 8; ++q) {
    CHECK((lm.scale[q] + lm.scale[8 + q] + lm.scale[16 + q]) / 3 == Approx(1.0).epsilon(1e-6));
  }
}

TEST_CASE("weights of features do not move with the tokens, nor grow with them", "[router]") {
  std::vector<float> const x = noise(50 * 4, 5);
  std::vector<std::int32_t> labels(50);
  for (int t = 0; t < 50; ++t) labels[t] = t * 7 % 4;
  std::vector<float> const scale = call<layer_of<language, 4, 4>>(x, labels).run().scale;
  std::vector<float> moved = x, grown = x;
  for (std::size_t i = 0; i < x.size(); ++i) {
    moved[i] += static_cast<float>(i % 4) - 1.5f;
    grown[i] *= 8.0f;
  }
  std::vector<double> const expected(scale.begin(), scale.end());
  check_close(call<layer_of<language, 4, 4>>(moved, labels).run().scale, expected, 1e-5);
  check_close(call<layer_of<language, 4, 4>>(grown, labels).run().scale, expected, 2e-3);  // alpha does not grow
}

TEST_CASE("equal spreads leave the base router, and padding rows count in no statistic", "[router]") {
  // Two tokens a cluster, one away from each other in every feature.
  std::vector<float> const equal{0, 0, 1, 1, 5, 7, 6, 8};
  check_close(call<layer_of<language>>(equal, {0, 0, 1, 1}).run().scale, {1, 1, 1, 1}, 1e-6);

  call<layer_of<language>> padded(four_tokens, {0, 0, 1, 1, 1});
  padded.tokens.insert(padded.tokens.begin() + 4, {std::numeric_limits<float>::quiet_NaN(), 1e30f});
  padded.labels = {0, 0, -1, 1, 1};
  padded.active = {1, 1, 0, 1, 1};
  CHECK(padded.run().scale == call<layer_of<language>>(four_tokens, {0, 0, 1, 1}).run().scale);
}

TEST_CASE("tokens in another order have the same logits in that order", "[router]") {
  std::vector<float> const x = noise(40 * 4, 9);
  std::vector<float> turned;
  std::vector<std::int32_t> labels(40), turned_labels(40);
  for (int t = 0; t < 40; ++t) labels[t] = t * 3 % 4;
  for (int t = 0; t < 40; ++t) {
    turned.insert(turned.end(), x.begin() + (39 - t) * 4, x.begin() + (40 - t) * 4);
    turned_labels[t] = labels[39 - t];
  }
  outcome const a = call<layer_of<language, 4, 4>>(x, labels).run();
  outcome const b = call<layer_of<language, 4, 4>>(turned, turned_labels).run();
  for (int t = 0; t < 40; ++t) {
    for (int e = 0; e < 4; ++e) CHECK(b.logits[(39 - t) * 4 + e] == Approx(a.logits[t * 4 + e]).margin(1e-6));
  }
}

TEST_CASE("a table collected before routes one token as its batch was routed", "[router]") {
  using layer = layer_of<language, 4, 4>;
  call<layer> batch(noise(40 * 4, 11), std::vector<std::int32_t>(40));
  for (int t = 0; t < 40; ++t) batch.labels[t] = t % 4;
  outcome const all = batch.run();
  for (int t : {0, 13, 39}) {
    call<layer> one({batch.tokens.begin() + t * 4, batch.tokens.begin() + (t + 1) * 4}, {batch.labels[t]});
    one.scale = all.scale;
    outcome const alone = one.run();
    CHECK(alone.scale == all.scale);
    for (int e = 0; e < 4; ++e) CHECK(alone.logits[e] == all.logits[t * 4 + e]);
  }
}

TEST_CASE("a layer may write its choices over the labels that it reads", "[router]") {
  using layer = layer_of<language, 4, 4>;
  call<layer> apart(noise(30 * 4, 17), std::vector<std::int32_t>(60));
  apart.choices = 2;
  for (int i = 0; i < 60; ++i) apart.labels[i] = i * 5 % 4;
  outcome const expected = apart.run();
  std::vector<std::int32_t> choices = apart.labels;
  std::vector<float> const matrices(16, 1.0f);
  std::vector<float> output(30 * 4);
  std::vector<std::byte> scratch(layer::workspace_bytes(30));
  layer::forward({.tokens = layer::rows(apart.tokens.data(), 30),
                  .weights = {.router = {.weight = apart.router.data()},
                              .up_proj = layer::in_proj(matrices.data()),
                              .down_proj = layer::out_proj(matrices.data())},
                  .output = layer::rows(output.data(), 30),
                  .workspace = scratch,
                  .inputs = {.labels = choices.data(), .choices = 2},
                  .decisions = {.experts = choices.data()}});
  CHECK(choices == expected.experts);
  CHECK(output == expected.output);
}

TEST_CASE("the name of the router says what differs from the published forms", "[router]") {
  using sy::router::switch_top1;
  CHECK(adaptive_clustering<switch_top1>::name == "adaptive_clustering<switch_top1>");
  CHECK(adaptive_clustering<switch_top1, sy::router::vision>::name == "adaptive_clustering<switch_top1,vision>");
  CHECK(parity::name == "adaptive_clustering<top_k_softmax,counting_empty>");
  constexpr sy::clustering_traits own{.scales = true,
                                      .measure = sy::dispersion::variance,
                                      .alpha_denominator = 10,
                                      .clip_numerator = 0,
                                      .scaling = sy::feature_scaling::none,
                                      .unit_rows = false,
                                      .experts_see_scaled = true};
  CHECK(adaptive_clustering<switch_top1, own>::name ==
        "adaptive_clustering<switch_top1,variance,alpha:1:10,clip:0,unscaled,plain_rows,scaled_experts>");
}

TEST_CASE("calibration on one batch gives its weights, and on two those of the deviations' mean", "[router]") {
  using layer = layer_of<language, 4, 4>;
  call<layer> batch(noise(30 * 4, 13), std::vector<std::int32_t>(30));
  for (int t = 0; t < 30; ++t) batch.labels[t] = t % 3;  // cluster 3 has no token
  outcome const first = batch.run();
  sy::feature_scale_calibration<layer> calibration;
  calibration.add(first.dispersion.data(), {.labels = batch.labels.data()}, 30);
  CHECK(calibration.table() == first.scale);

  std::vector<float> wider = first.dispersion;
  for (float& s : wider) s *= 3.0f;
  calibration.add(wider.data(), {.labels = batch.labels.data()}, 30);  // the mean is twice the first
  sy::feature_scale_calibration<layer> doubled;
  for (std::size_t i = 0; i < wider.size(); ++i) wider[i] = 2.0f * first.dispersion[i];
  doubled.add(wider.data(), {.labels = batch.labels.data()}, 30);
  std::vector<float> const expected = doubled.table();
  check_close(calibration.table(), {expected.begin(), expected.end()});
  batch.labels[7] = 4;
  CHECK(message_of([&] { calibration.add(wider.data(), {.labels = batch.labels.data()}, 30); }) ==
        "switchyard: feature_scale_calibration::add, clusters.labels: expected ids from 0 to 3, got 4 for token 7");
}

TEST_CASE("a cluster that does not exist is refused, and so are inputs that do not go together", "[router]") {
  call<layer_of<language>> wrong(four_tokens, {0, 0, 2, 1});
  CHECK(message_of([&] { wrong.run(); }) ==
        "switchyard: layer::forward, inputs.labels: expected ids from 0 to 1, got 2 for token 2");
  wrong.labels = {0, 0, 1, 1};
  wrong.choices = 0;
  CHECK(message_of([&] { wrong.run(); }) == "switchyard: layer::forward, inputs.choices: expected at least 1, got 0");

  using layer = layer_of<language>;
  float const x[2] = {1, 2}, w[4] = {1, 0, 0, 1};
  float y[2], table[4];
  std::vector<std::byte> scratch(layer::workspace_bytes(1));
  layer::args args{.tokens = layer::rows(x, 1),
                   .weights = {.router = {.weight = w}, .up_proj = layer::in_proj(w), .down_proj = layer::out_proj(w)},
                   .output = layer::rows(y, 1),
                   .workspace = scratch};
  CHECK(message_of([&] {
          layer::forward(args);
        }).find("inputs.labels: expected [tokens, choices] int32, the previous MoE layer's decisions.experts") !=
        std::string::npos);
  std::int32_t const label = 0;
  args.inputs = {.labels = &label, .feature_scale = w};
  args.report.dispersion = table;
  CHECK(message_of([&] { layer::forward(args); }) ==
        "switchyard: layer::forward, report.dispersion: expected a null pointer, for inputs.feature_scale is given, "
        "got a pointer");
}
