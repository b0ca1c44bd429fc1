#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "catch.hpp"
#include "support/compare.hpp"

/// Experts that compute nothing, by hand. Lists of layers.hpp compare them with the reference.
namespace sy = switchyard;
using support::same_bits;

namespace {

/// The ids of a layer of two experts, of which the first gives 10 x and the second 100 x.
enum : std::int32_t { ten, hundred, constant, mixed, identity, other_identity, zero };
constexpr sy::null_experts nulls{.constant = 1, .mixed_constant = 1, .identity = 2, .zero = 1};

template <class Element, int Hidden, int TopK, class Capacity, class Router, class Expert>
using layer_of = sy::layer<sy::shape{Hidden, Hidden, 2, TopK}, Router, Capacity, Expert, sy::backend::cpu, Element>;

template <class Element, int Hidden, int TopK, class Capacity = sy::capacity::dropless,
          class Router = sy::router::precomputed,
          class Expert = sy::expert::with_null_experts<sy::expert::mlp<sy::relu>, nulls>>
struct call {
  using layer = layer_of<Element, Hidden, TopK, Capacity, Router, Expert>;
  std::vector<Element> x, y, up, down, vectors, mixing;
  std::vector<float> router;
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::vector<std::uint8_t> dropped;
  std::vector<std::int64_t> counts = std::vector<std::int64_t>(layer::all_experts, -1), load = counts;
  std::vector<std::byte> scratch;
  typename layer::args args{};

  explicit call(std::vector<float> const& tokens) : x(tokens.begin(), tokens.end()), y(x.size()) {
    auto const rows = static_cast<std::int64_t>(x.size() / Hidden);
    for (float factor : {10.0f, 100.0f}) {  // of tokens that are not negative
      for (int i = 0; i < Hidden * Hidden; ++i) {
        up.push_back(Element(i % (Hidden + 1) == 0 ? factor : 0.0f));
        down.push_back(Element(i % (Hidden + 1) == 0 ? 1.0f : 0.0f));
      }
    }
    for (int i = 0; i < 2 * Hidden; ++i) vectors.push_back(Element(0.375f * static_cast<float>(i) - 1.0f));
    for (int i = 0; i < 2 * Hidden; ++i) mixing.push_back(Element(0.25f * static_cast<float>(i % 3) - 0.5f));
    experts.resize(static_cast<std::size_t>(rows) * TopK);
    weights.resize(experts.size());
    dropped.resize(experts.size());
    scratch.resize(layer::workspace_bytes(rows));
    args.tokens = layer::rows(static_cast<Element const*>(x.data()), rows);
    args.weights.up_proj = layer::in_proj(up.data());
    args.weights.down_proj = layer::out_proj(down.data());
    args.weights.constant_experts = {.vectors = vectors.data(), .mixing = mixing.data()};
    args.output = layer::rows(y.data(), rows);
    args.workspace = scratch;
    args.decisions = {.experts = experts.data(),
                      .weights = weights.data(),
                      .dropped = dropped.data(),
                      .counts = counts.data(),
                      .load = load.data()};
  }
  void run(sy::cpu_context const& context = {.threads = 1}) { layer::forward(args, context); }
  /// The same with experts and weights of the caller's.
  void run(std::vector<std::int32_t> const& ids, std::vector<float> const& of_them) {
    args.inputs = {.experts = ids.data(), .weights = of_them.data()};
    run();
  }
};

/// More features than are summed at a time.
constexpr int wide = 300;

std::vector<float> some_tokens(int count) {
  std::vector<float> tokens;
  for (int i = 0; i < count * wide; ++i) tokens.push_back(static_cast<float>(i * 7 % 13) / 8.0f);
  return tokens;
}

}  // namespace

TEMPLATE_TEST_CASE("a token whose choices compute nothing gets exactly 0, w x or w v", "[expert]", float, sy::bfloat16,
                   sy::half) {
  call<TestType, wide, 2> c(some_tokens(5));
  std::vector<std::int32_t> const ids{zero, zero,     zero,           identity, constant,
                                      zero, identity, other_identity, mixed,    zero};
  std::vector<float> const w{0.3f, 0.7f, 0.1f, 0.9f, 1.7f, 0.2f, 0.3f, 0.11f, 0.6f, 0.4f};
  c.run(ids, w);
  double difference = 0.0;
  for (int i = 0; i < wide; ++i)
    difference += double(float(c.x[4 * wide + i])) * (float(c.mixing[i]) - float(c.mixing[wide + i]));
  double const share = 1.0 / (1.0 + std::exp(-difference));
  for (int i = 0; i < wide; ++i) {
    auto const x = [&](int token) { return static_cast<float>(c.x[token * wide + i]); };
    float const v = static_cast<float>(c.vectors[i]), of_mixed = static_cast<float>(c.vectors[wide + i]);
    CHECK(float(c.y[i]) == 0.0f);
    CHECK(float(c.y[wide + i]) == float(TestType(0.9f * x(1))));
    CHECK(float(c.y[2 * wide + i]) == float(TestType(1.7f * v)));
    CHECK(float(c.y[3 * wide + i]) == float(TestType((0.3f + 0.11f) * x(3))));
    double const expected = 0.6 * (share * x(4) + (1.0 - share) * of_mixed);
    CHECK(float(c.y[4 * wide + i]) ==
          Catch::Approx(expected).epsilon(sizeof(TestType) == 4 ? 1e-5 : 1e-2).margin(1e-3));
  }
  CHECK(c.experts == ids);
  CHECK(c.weights == w);
  CHECK(c.dropped == std::vector<std::uint8_t>(10));
  CHECK(c.counts == std::vector<std::int64_t>(7));
  CHECK(c.load == std::vector<std::int64_t>{0, 0, 1, 1, 2, 1, 5});
}

TEST_CASE("what computes nothing is added to the rows of a token's other experts", "[expert]") {
  call<float, 2, 3> c({1.0f, 2.0f, 3.0f, 0.5f});
  c.run({ten, identity, constant, other_identity, hundred, zero}, {0.5f, 0.25f, 2.0f, 0.125f, 1.0f, 4.0f});
  CHECK(c.y ==
        std::vector<float>{5.0f + 0.25f - 2.0f, 10.0f + 0.5f + 2.0f * -0.625f, 300.0f + 0.375f, 50.0f + 0.0625f});
  CHECK(c.counts == std::vector<std::int64_t>{1, 1, 0, 0, 0, 0, 0});
  CHECK(c.load == std::vector<std::int64_t>{1, 1, 1, 0, 1, 1, 1});

  // In the place of the tokens, and with padding, which gets zeros whatever its ids say.
  std::vector<std::uint8_t> const active{1, 0};
  c.args.active = active.data();
  c.args.output = sy::view<float>(c.x.data(), 2, 2);
  std::vector<std::int32_t> const ids{ten, identity, constant, identity, identity, identity};
  c.run(ids, {0.5f, 0.25f, 2.0f, 1.0f, 1.0f, 1.0f});
  CHECK(c.x == std::vector<float>{5.0f + 0.25f - 2.0f, 10.0f + 0.5f - 1.25f, 0.0f, 0.0f});
  CHECK(c.load == std::vector<std::int64_t>{1, 0, 1, 0, 1, 0, 0});
}

TEST_CASE("choices that compute nothing take no slot, and are never dropped", "[expert]") {
  std::vector<std::int32_t> const ids{identity, ten, ten, identity, ten, zero, other_identity, ten};
  std::vector<float> const w{0.5f, 0.25f, 0.25f, 0.5f, 0.25f, 0.5f, 2.0f, 0.125f};
  std::vector<float> const x{1.0f, 2.0f, 4.0f, 8.0f};
  {
    // Two slots: first choices come first.
    call<float, 1, 2, sy::capacity::fixed<2>> c(x);
    c.run(ids, w);
    CHECK(c.dropped == std::vector<std::uint8_t>{0, 1, 0, 0, 0, 0, 0, 1});
    CHECK(c.y == std::vector<float>{0.5f, 5.0f + 1.0f, 10.0f, 16.0f});
    CHECK(c.weights == std::vector<float>{0.5f, 0.0f, 0.25f, 0.5f, 0.25f, 0.5f, 2.0f, 0.0f});
    CHECK(c.counts == std::vector<std::int64_t>{2, 0, 0, 0, 0, 0, 0});
    CHECK(c.load == std::vector<std::int64_t>{4, 0, 0, 0, 2, 1, 1});
  }
  {
    // A token with a choice that was not dropped is not handed through.
    call<float, 1, 2, sy::capacity::on_drop<sy::capacity::fixed<0>, sy::dropped::input>> c(x);
    c.run(ids, w);
    CHECK(c.y == std::vector<float>{0.5f, 1.0f, 0.0f, 16.0f});
    c.run({ten, hundred, zero, ten, identity, ten, ten, ten}, w);
    CHECK(c.y == std::vector<float>{1.0f, 0.0f, 1.0f, 8.0f});
  }
  {
    call<float, 1, 2, sy::capacity::on_drop<sy::capacity::fixed<0>, sy::dropped::weighted_input>> c(x);
    c.run(ids, w);
    CHECK(c.y == std::vector<float>{0.75f, 1.5f, 1.0f, 17.0f});
  }
  {
    call<float, 1, 2, sy::capacity::renormalised<sy::capacity::fixed<0>>> c(x);
    c.run(ids, w);
    CHECK(c.y == std::vector<float>{1.0f, 2.0f, 0.0f, 8.0f});
    CHECK(c.weights == std::vector<float>{1.0f, 0.0f, 0.0f, 1.0f, 0.0f, 1.0f, 1.0f, 0.0f});
  }
  {
    // Slots are a share by the experts of the shape: ceil(4 tokens * 2 / 2 experts / 2).
    call<float, 1, 2, sy::capacity::factor<1, 2>> c(x);
    c.run({ten, zero, ten, zero, ten, zero, ten, zero}, w);
    CHECK(c.counts[ten] == 2);
  }
}

TEST_CASE("weights are made over all that was chosen, and balance is that of all experts", "[expert]") {
  // Logits are ln 1 to ln 7 for a token of 1.
  call<float, 1, 3, sy::capacity::dropless, sy::router::softmax_top_k> c({1.0f});
  for (float share : {1.0f, 5.0f, 7.0f, 4.0f, 6.0f, 3.0f, 2.0f}) c.router.push_back(std::log(share));
  c.args.weights.router.weight = c.router.data();
  sy::auxiliary_values values;
  c.args.auxiliary = &values;
  std::vector<float> logits(7);
  c.args.report.logits = logits.data();
  c.run();
  CHECK(logits == c.router);
  CHECK(c.experts == std::vector<std::int32_t>{constant, identity, hundred});
  CHECK(c.weights[0] == Catch::Approx(7.0 / 18));
  CHECK(c.weights[1] == Catch::Approx(6.0 / 18));
  CHECK(c.weights[2] == Catch::Approx(5.0 / 18));
  CHECK(c.y[0] == Catch::Approx(-7.0 / 18 + 6.0 / 18 + 500.0 / 18));
  CHECK(values.balance_first_choice == Catch::Approx(7 * 7.0 / 28));
  CHECK(values.balance_all_choices == Catch::Approx(7 * 18.0 / 28));
  CHECK(values.load_variation == Catch::Approx(std::sqrt((3 * 16.0 + 4 * 9.0) / 7) / 3));

  // More choices than experts of the shape.
  call<float, 1, 7, sy::capacity::dropless, sy::router::softmax_top_k_raw> all({1.0f});
  all.router.assign(7, 0.0f);
  all.args.weights.router.weight = all.router.data();
  all.run();
  CHECK(all.counts == std::vector<std::int64_t>{1, 1, 0, 0, 0, 0, 0});
  CHECK(all.load == std::vector<std::int64_t>(7, 1));
}

TEST_CASE("routers that are given experts may be given ones that compute nothing", "[expert]") {
  call<float, 1, 2, sy::capacity::dropless, sy::router::replayed<sy::router::softmax_top_k>> again({2.0f});
  again.router = {0.0f, 0.0f, 0.0f, 0.0f, std::log(3.0f) / 2.0f, 0.0f, 0.0f};
  again.args.weights.router.weight = again.router.data();
  std::vector<std::int32_t> const ids{identity, ten};
  again.args.inputs.experts = ids.data();
  again.run();
  CHECK(again.weights[0] == Catch::Approx(0.75));
  CHECK(again.y[0] == Catch::Approx(0.75 * 2 + 0.25 * 20));

  call<float, 1, 2, sy::capacity::dropless, sy::router::hash_layer> hashed({2.0f, 3.0f});
  std::vector<std::int32_t> const words{1, 0}, table{zero, zero, ten, other_identity};
  hashed.args.inputs = {.token_ids = words.data(), .experts = table.data(), .vocabulary = 2};
  hashed.run();
  CHECK(hashed.y == std::vector<float>{22.0f, 0.0f});

  call<float, 1, 2> beyond({2.0f});
  CHECK_THROWS_WITH(beyond.run({ten, 7}, {1.0f, 1.0f}),
                    "switchyard: layer::forward, inputs.experts: expected ids from 0 to 6, or -1 for none, got 7 for "
                    "token 0, choice 1");
}

TEST_CASE("a router that weighs the input may choose the identity", "[expert]") {
  using expert =
      sy::expert::with_null_experts<sy::expert::mlp<sy::relu_squared>, sy::null_experts{.identity = 1, .zero = 1}>;
  using layer = layer_of<float, 1, 2, sy::capacity::dropless, sy::router::on_input<sy::router::precomputed>, expert>;
  std::vector<float> const x{3.0f}, ones(2, 1.0f), w{2.0f, 0.5f};
  std::vector<float> y(1);
  std::vector<std::int32_t> const ids{0, 2};
  std::vector<std::byte> scratch(layer::workspace_bytes(1));
  layer::forward({.tokens = layer::rows(x.data(), 1),
                  .weights = {.up_proj = layer::in_proj(ones.data()), .down_proj = layer::out_proj(ones.data())},
                  .output = layer::rows(y.data(), 1),
                  .workspace = scratch,
                  .inputs = {.experts = ids.data(), .weights = w.data()}});
  CHECK(y[0] == 36.0f + 1.5f);
}

TEST_CASE("experts that compute nothing are in the name, and cost what is read of them", "[expert]") {
  using expert = sy::expert::mlp<sy::relu>;  // 2 * 3 * 3 = 18 parameters each
  using plain = layer_of<float, 3, 2, sy::capacity::dropless, sy::router::softmax_top_k, expert>;
  using more = layer_of<float, 3, 2, sy::capacity::dropless, sy::router::softmax_top_k,
                        sy::expert::with_null_experts<expert, nulls>>;
  CHECK(more::all_experts == 7);
  CHECK(plain::all_experts == 2);
  CHECK(sy::describe<more>() ==
        "softmax_top_k:2of2/dropless/"
        "with_null_experts<mlp<relu>,constant:1,mixed_constant:1,identity:2,zero:1>/3x3/cpu/float");
  CHECK(sy::costs<more>(0).parameters == 2 * 18 + 7 * 3 + (2 + 2) * 3);
  CHECK(sy::costs<more>(0).active_parameters == 2 * 18 + 7 * 3);
  // Two choices of seven alike, of which two are experts.
  CHECK(sy::costs<more>(7).flops == Catch::Approx(7 * 2.0 * (21 + 2 * 18 * 2.0 / 7)));
  CHECK(sy::costs<more>(7, 1).bytes == 4.0 * (18 + 12 + 21 + 2 * 7 * 3));
  CHECK(sy::expected_experts<more>(1) == Catch::Approx(4.0 / 7));
  // No row of memory for any of them: a logit, and the counts of a plan.
  for (std::int64_t tokens : {1, 100}) {
    std::size_t const logits = static_cast<std::size_t>(tokens) * 5 * sizeof(float), of_experts = 5 * 80 + 64;
    CHECK(more::workspace_bytes(tokens) <= plain::workspace_bytes(tokens) + logits + of_experts);
  }
}

TEST_CASE("what constant experts need is checked", "[expert]") {
  call<float, 2, 1> c({1.0f, 2.0f});
  std::string const begin = "switchyard: layer::forward, weights.constant_experts.";
  c.args.weights.constant_experts.vectors = nullptr;
  CHECK_THROWS_WITH(c.run({ten}, {1.0f}), begin + "vectors: expected [constant experts, hidden], got a null pointer");
  c.args.weights.constant_experts = {.vectors = c.vectors.data(), .mixing = nullptr};
  CHECK_THROWS_WITH(c.run({ten}, {1.0f}),
                    begin + "mixing: expected [constant experts that mix, 2, hidden], got a null pointer");
  c.args.weights.constant_experts = {.vectors = c.vectors.data(), .mixing = c.y.data()};
  CHECK_THROWS_WITH(c.run({ten}, {1.0f}),
                    "switchyard: layer::forward, output: expected memory apart from all else that the call reads and "
                    "writes, got memory that overlaps weights.constant_experts.mixing");
}
