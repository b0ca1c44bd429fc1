#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "catch.hpp"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"
#include "support/row_layers.hpp"
#include "support/threads.hpp"

/// Product keys, and experts that are rows.
namespace sy = switchyard;
using namespace sy;
using namespace support;
using sy::router::product_keys;
using sy::router::summed_product_keys;
using sy::router::query::projected;
using sy::router::query::token;
namespace weighting = sy::router::weighting;

namespace {

template <class Router, class Expert, int Keys, int TopK, int Hidden = 40, class Element = float>
using rows = layer<shape{Hidden, 1, Keys* Keys, TopK}, Router, capacity::dropless, Expert, backend::cpu, Element>;
using expert::value_row, expert::neuron, expert::with_output_gate, expert::with_gated_projection;

using tested_rows = std::tuple<
    rows<product_keys<7, 2, token, weighting::relu>, value_row, 7, 10>,
    rows<product_keys<16, 3, projected<22>>, value_row, 16, 24, 33>,
    rows<product_keys<130, 2, projected<16>>, value_row, 130, 24>,              // most keys are no candidates
    rows<product_keys<5, 2, projected<8>, weighting::relu>, value_row, 5, 24>,  // more are kept than a half has
    rows<product_keys<9, 1, token>, with_output_gate<neuron<gelu>>, 9, 13, 70, bfloat16>,
    rows<product_keys<12, 2, projected<10>>, neuron<relu>, 12, 6, 2100, half>,  // more columns than at a time
    rows<summed_product_keys<8, 3, token>, value_row, 8, 64>,                   // the published dense form
    rows<summed_product_keys<8, 3, projected<6>, weighting::softmax>, with_output_gate<value_row>, 8, 20, 24, bfloat16>,
    rows<product_keys<3, 4, projected<6>>, value_row, 3, 20>,  // more choices than experts
    rows<product_keys<9, 2, projected<12>>, with_gated_projection<value_row>, 9, 10, 45>,
    rows<product_keys<7, 2, projected<8>>, with_output_gate<with_gated_projection<value_row>>, 7, 8, 70, bfloat16>,
    rows<product_keys<5, 1, token, weighting::relu>, with_output_gate<with_gated_projection<neuron<gelu>>>, 5, 4, 600,
         half>>;

template <class Element>
constexpr double tolerance = sizeof(Element) == 4 ? 1e-5 : 1e-2;

}  // namespace

TEMPLATE_LIST_TEST_CASE("rows chosen by product keys are those of all sums sorted", "[rows]", tested_rows) {
  using layer = TestType;
  INFO(sy::describe<layer>());
  row_problem p = random_rows<layer>(67, 4);
  row_outcome const once = run_rows<layer>(p, {.context = {.threads = 1}});
  SECTION("numbers of tokens") {
    check_rows(p, once, tolerance<typename layer::element>);
    for (std::int64_t tokens : {0, 1, 3, 131}) {
      row_problem const other = random_rows<layer>(tokens, 3);
      check_rows(other, run_rows<layer>(other), tolerance<typename layer::element>);
    }
  }
  SECTION("any number of threads, in place, apart, unasked") {
    for (int threads : {2, 3, 7}) {
      row_outcome const again =
          run_rows<layer>(p, {.context = {.threads = threads}, .padding = 5, .in_place = threads == 3});
      CHECK(same_bits(again.output, once.output));
      CHECK(same_bits(again.weights, once.weights));
      CHECK(again.experts == once.experts);
    }
    CHECK(same_bits(run_rows<layer>(p, {.decisions = false}).output, once.output));
  }
  SECTION("every instruction set") {
    for (auto set : {instruction_set::portable, instruction_set::avx2, instruction_set::avx512}) {
      if (set > best_instruction_set()) continue;
      check_rows(p, run_rows<layer>(p, {.context = {.instructions = set}}), tolerance<typename layer::element>);
    }
  }
  SECTION("a token has the same bits alone") {
    row_problem alone = p;
    alone.tokens.assign(p.tokens.begin() + 5 * p.hidden, p.tokens.begin() + 6 * p.hidden);
    std::vector<float> const row(once.output.begin() + 5 * p.hidden, once.output.begin() + 6 * p.hidden);
    CHECK(same_bits(run_rows<layer>(alone).output, row));
  }
  SECTION("padding") {
    p.active.assign(67, 1);
    for (std::size_t t : {0, 20, 66}) {
      p.active[t] = 0;
      for (int i = 0; i < p.hidden; ++i) p.tokens[t * p.hidden + i] = std::numeric_limits<double>::quiet_NaN();
    }
    check_rows(p, run_rows<layer>(p), tolerance<typename layer::element>);
  }
  SECTION("a token that is no number") {
    p.tokens[3 * p.hidden] = std::numeric_limits<double>::quiet_NaN();
    CHECK_THROWS_WITH(run_rows<layer>(p),
                      "switchyard: layer::forward, scores of router::product_keys: expected finite numbers (are "
                      "tokens, query and keys free of NaN and infinity?), got one that is not, for token 3");
    row_outcome const got = run_rows<layer>(p, {.context = {.unroutable = unroutable_tokens::give_nan}});
    for (std::size_t i = 0; i < got.output.size(); ++i) {
      bool const lost = i / p.hidden == 3;
      if (lost ? !std::isnan(got.output[i]) : got.output[i] != once.output[i]) FAIL(i);
    }
    CHECK(got.experts[3 * p.top_k] == -1);
  }
}

TEST_CASE("product keys by hand", "[rows]") {
  // u = (1, 3), v = (2, -1): sums 3, 0, 5, 2 of experts 0 to 3.
  using layer = sy::layer<shape{2, 1, 4, 2}, product_keys<2, 1, token, weighting::relu>, capacity::dropless, value_row>;
  row_problem p;
  p.hidden = p.width = 2;
  p.keys = 2;
  p.top_k = 2;
  p.softmax = false;
  p.tokens = {1.0, 1.0};
  p.first_keys = {1.0, 3.0};
  p.second_keys = {2.0, -1.0};
  p.down = {1, 0, 7, 7, 0, 1, 7, 7};
  row_outcome const got = run_rows<layer>(p);
  CHECK(got.experts == std::vector<std::int32_t>{2, 0});
  CHECK(got.scores == std::vector<float>{5.0f, 3.0f});
  CHECK(got.output == std::vector<float>{3.0f, 5.0f});
  CHECK(sy::describe<layer>() == "product_keys<2,1,token,relu>:2of4/dropless/value_row/2x1/cpu/float");
  CHECK(sy::costs<layer>(1).parameters == 4 + 8);
}

namespace {

std::vector<instruction_set> sets_here() {
  std::vector<instruction_set> sets;
  for (auto set : {instruction_set::portable, instruction_set::avx2, instruction_set::avx512}) {
    if (set <= best_instruction_set()) sets.push_back(set);
  }
  return sets;
}

/// Numbers of many kinds: normal ones, few different ones, only one, in order, far apart, one above all, and such that vanish.
constexpr int kinds_of_numbers = 9;
float number_of_kind(int kind, int i, random_numbers& random) {
  auto const x = static_cast<float>(random.normal());
  float const by_kind[kinds_of_numbers] = {x,
                                           static_cast<float>(random.below(5)),
                                           1.0f,
                                           static_cast<float>(i),
                                           static_cast<float>(-i),
                                           std::exp(12.0f * x) * (i % 2 == 0 ? 1.0f : -1.0f),
                                           i % 64 == 0 ? 1e30f : -1e30f,
                                           i == 3 ? 1e20f : x,
                                           x * 1e-40f};
  return by_kind[kind];
}

/// Ids of the best sums, by sorting them all.
std::vector<std::int32_t> sorted_pairs(std::vector<float> const& first, std::vector<float> const& second, int kept) {
  std::size_t const keys = first.size();
  std::vector<product_key::scored> all;
  for (std::size_t i = 0; i < keys * keys; ++i)
    all.push_back({product_key::score_of(first[i / keys], second[i % keys]), static_cast<int>(i)});
  std::partial_sort(all.begin(), all.begin() + kept, all.end(),
                    [](auto const& a, auto const& b) { return product_key::precedes(a, b); });
  std::vector<std::int32_t> ids;
  for (int k = 0; k < kept; ++k) ids.push_back(all[static_cast<std::size_t>(k)].id);
  return ids;
}

}  // namespace

TEST_CASE("equal sums go to the lowest ids, and roundings decide nothing", "[rows]") {
  constexpr int keys = 24, kept = 19;
  random_numbers random(2);
  for (int round = 0; round < 2000; ++round) {
    std::vector<float> first(keys), second(keys);
    for (float& v : first) v = static_cast<float>(random.below(6)) / 4.0f;
    // Sums that round to the same number, though they are not the same.
    for (float& v : second)
      v = round % 2 == 0 ? static_cast<float>(random.below(6)) / 4.0f : static_cast<float>(random.below(9)) * 0x1p-26f;
    std::vector<std::int32_t> order(keys * keys);
    for (int i = 0; i < keys * keys; ++i) order[static_cast<std::size_t>(i)] = i;
    auto const sum = [&](int id) {
      return static_cast<double>(first[static_cast<std::size_t>(id / keys)]) +
             static_cast<double>(second[static_cast<std::size_t>(id % keys)]);
    };
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return sum(a) > sum(b); });
    order.resize(kept);
    for (instruction_set set : sets_here()) {
      std::vector<std::int32_t> experts(kept);
      std::vector<float> scores(kept);
      REQUIRE(cpu::product_key_kernels_of<float>(set).choose(first.data(), second.data(), keys, kept, experts.data(),
                                                             scores.data()));
      REQUIRE(experts == order);
    }
  }
}

TEST_CASE("pairs are those of all sums sorted, whatever the halves", "[rows]") {
  random_numbers random(7);
  for (int keys : {1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 100, 300}) {
    for (int kept : {1, 2, 5, 15, 16, 17, 31, 33, 100, 512}) {
      if (kept > keys * keys) continue;
      for (int kind = 0; kind<kinds_of_numbers * kinds_of_numbers; kind += keys> 33 ? 7 : 1) {
        std::vector<float> first, second;
        for (int i = 0; i < keys; ++i) {
          first.push_back(number_of_kind(kind % kinds_of_numbers, i, random));
          second.push_back(number_of_kind(kind / kinds_of_numbers, i, random));
        }
        std::vector<std::int32_t> const right = sorted_pairs(first, second, kept);
        for (instruction_set set : sets_here()) {
          INFO(keys << " keys, " << kept << " kept, kind " << kind << ", " << name_of(set));
          std::vector<std::int32_t> experts(static_cast<std::size_t>(kept));
          std::vector<float> scores(experts.size());
          REQUIRE(cpu::product_key_kernels_of<float>(set).choose(first.data(), second.data(), keys, kept,
                                                                 experts.data(), scores.data()));
          REQUIRE(experts == right);
          for (std::size_t k = 0; k < scores.size(); ++k) {
            REQUIRE(scores[k] == first[static_cast<std::size_t>(right[k] / keys)] +
                                     second[static_cast<std::size_t>(right[k] % keys)]);
          }
        }
      }
    }
  }
}

TEST_CASE("halves and sums that are not finite are not chosen", "[rows]") {
  for (instruction_set set : sets_here()) {
    auto const choose = cpu::product_key_kernels_of<float>(set).choose;
    for (int keys : {3, 16, 37}) {
      std::vector<std::int32_t> experts(4);
      std::vector<float> scores(4);
      std::vector<float> const ones(static_cast<std::size_t>(keys), 1.0f);
      for (float bad : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
        for (std::size_t i = 0; i < ones.size(); ++i) {
          std::vector<float> half = ones;
          half[i] = bad;
          CHECK(!choose(half.data(), ones.data(), keys, 4, experts.data(), scores.data()));
          CHECK(!choose(ones.data(), half.data(), keys, 4, experts.data(), scores.data()));
        }
      }
      std::vector<float> large = ones;
      large[1] = 3e38f;
      CHECK(!choose(large.data(), large.data(), keys, 4, experts.data(), scores.data()));
      for (float& v : large) v = -3e38f;
      CHECK(!choose(large.data(), large.data(), keys, 4, experts.data(), scores.data()));
      large[0] = large[1] = 0.0f;  // the sums that overflow are not among the best
      CHECK(choose(large.data(), large.data(), keys, 4, experts.data(), scores.data()));
    }
  }
}

TEST_CASE("half scores are the same whatever tokens stand beside, and near those in double", "[rows]") {
  random_numbers random(3);
  struct {
    int tokens, half_width, keys, heads;
    bool apart;
  } const cases[] = {
      {1, 1, 1, 1, false}, {3, 7, 5, 2, true}, {16, 33, 65, 1, false}, {21, 64, 100, 3, true}, {35, 515, 33, 1, false}};
  for (auto const& c : cases) {
    int const width = 2 * c.half_width, columns = c.apart ? c.heads * width : width;
    std::vector<bfloat16> queries;
    std::vector<float> keys[2], scores[2];
    for (int i = 0; i < c.tokens * columns; ++i) queries.push_back(bfloat16(static_cast<float>(random.normal())));
    for (int half : {0, 1}) {
      for (int i = 0; i < c.heads * c.keys * c.half_width; ++i)
        keys[half].push_back(static_cast<float>(random.normal()));
      scores[half].resize(static_cast<std::size_t>(c.heads * c.tokens * c.keys));
    }
    auto const run = [&](instruction_set set, int first, int tokens) {
      cpu::score_halves<bfloat16>({{queries.data() + first * columns, tokens, columns},
                                   c.apart ? width : 0,
                                   c.half_width,
                                   c.keys,
                                   c.heads,
                                   {keys[0].data(), keys[1].data()},
                                   {scores[0].data(), scores[1].data()}},
                                  cpu::resolved({.instructions = set}));
    };
    for (instruction_set set : sets_here()) {
      run(set, 0, c.tokens);
      std::vector<float> const all[2] = {scores[0], scores[1]};
      for (int t = 0; t < c.tokens; ++t) {
        run(set, t, 1);
        for (int half : {0, 1}) {
          for (int h = 0; h < c.heads; ++h) {
            for (int i = 0; i < c.keys; ++i) {
              float const got = all[half][static_cast<std::size_t>((h * c.tokens + t) * c.keys + i)];
              double right = 0.0, size = 0.0;
              for (int k = 0; k < c.half_width; ++k) {
                double const x = static_cast<float>(queries[static_cast<std::size_t>(
                    t * columns + (c.apart ? h * width : 0) + half * c.half_width + k)]);
                double const term = x * keys[half][static_cast<std::size_t>((h * c.keys + i) * c.half_width + k)];
                right += term;
                size += std::abs(term);
              }
              if (std::abs(got - right) > 2e-6 * size ||
                  got != scores[half][static_cast<std::size_t>(h * c.keys + i)]) {
                FAIL(name_of(set) << ", token " << t << ", half " << half << ", head " << h << ", key " << i);
              }
            }
          }
        }
      }
    }
  }
}

TEST_CASE("a gated projection multiplies by silu, and the output gate comes last", "[rows]") {
  using layer = sy::layer<shape{2, 1, 1, 1}, product_keys<1, 1, token>, capacity::dropless,
                          with_output_gate<with_gated_projection<value_row>>>;
  row_problem p;
  p.hidden = p.width = 2;
  p.keys = p.top_k = 1;
  p.tokens = {1.0, 2.0};
  p.first_keys = p.second_keys = {1.0};
  p.down = {4.0, 8.0};
  p.projection_gate = {1, 0, 0, 0};
  p.projection = {0, 1, 1, 0};
  p.gate = {0, 0};
  double const s = 1.0 / (1.0 + std::exp(-1.0));
  SECTION("without biases") {
    row_outcome const got = run_rows<layer>(p);
    CHECK(got.output[0] == 0.0f);
    CHECK(std::abs(got.output[1] - 0.5 * 4.0 * s) < 1e-6);
  }
  SECTION("with biases") {
    p.projection_gate_bias = {0, 1};
    p.projection_bias = {2, 4};
    row_outcome const got = run_rows<layer>(p);
    CHECK(std::abs(got.output[0] - 0.5 * (8.0 * s + 2.0)) < 1e-6);
    CHECK(std::abs(got.output[1] - 0.5 * (4.0 * s + 4.0)) < 1e-6);
  }
  CHECK(
      sy::describe<layer>() ==
      "product_keys<1,1,token,softmax>:1of1/dropless/with_output_gate<with_gated_projection<value_row>>/2x1/cpu/float");
  CHECK(sy::costs<layer>(1).parameters == 2 + 2 + 3 + 2 * (4 + 2));
  CHECK(sy::expected_experts<rows<product_keys<3, 4, token>, value_row, 3, 20>>(1) ==
        Catch::Approx(9.0 * (1.0 - std::pow(4.0 / 9.0, 4))));
  CHECK(sy::costs<layer>(3).flops == 2.0 * 3 * (2 + 2 + 2 * 4));
}

TEST_CASE("the dense form of one head is the sum over all experts", "[rows]") {
  using dense = rows<summed_product_keys<6, 4, token>, value_row, 6, 36, 16>;
  row_problem const p = random_rows<dense>(9, 5);
  row_outcome const got = run_rows<dense>(p);
  for (int k = 0; k < 36; ++k) CHECK(got.experts[static_cast<std::size_t>(k)] == k);
  check_rows(p, got, 1e-5);
}

TEST_CASE("rows by precomputed routes", "[rows]") {
  using layer =
      sy::layer<shape{24, 1, 50, 4}, router::precomputed, capacity::dropless, value_row, backend::cpu, bfloat16>;
  row_problem p = random_rows<rows<product_keys<8, 1, token>, value_row, 8, 4, 24, bfloat16>>(11, 5);
  p.down.resize(50 * 24);
  random_numbers random(5);
  for (int i = 0; i < 44; ++i) {
    p.ids.push_back(random.below(51) - 1);
    p.id_weights.push_back(static_cast<float>(random.normal()));
  }
  row_outcome const got = run_rows<layer>(p);
  check_rows(p, got, 1e-2);
}

TEST_CASE("product keys may choose feed-forward experts", "[rows]") {
  using layer = sy::layer<shape{8, 6, 9, 4}, product_keys<3, 2, token>, capacity::dropless, expert::mlp<relu>>;
  using given = sy::layer<shape{8, 6, 9, 4}, router::precomputed, capacity::dropless, expert::mlp<relu>>;
  row_problem const p = random_rows<rows<product_keys<3, 2, token>, value_row, 3, 4, 8>>(5, 6);
  auto const floats = [](reference::numbers const& v) { return std::vector<float>(v.begin(), v.end()); };
  std::vector<float> const x = floats(p.tokens), first = floats(p.first_keys), second = floats(p.second_keys);
  random_numbers random(8);
  std::vector<float> up(9 * 48), down(9 * 48), y(40), z(40), weights(20);
  for (float& v : up) v = static_cast<float>(random.normal());
  for (float& v : down) v = static_cast<float>(random.normal());
  std::vector<std::int32_t> experts(20);
  std::vector<std::byte> scratch(std::max(layer::workspace_bytes(5), given::workspace_bytes(5)));
  layer::args a;
  a.tokens = layer::rows(x.data(), 5);
  a.weights.router.first_keys = first.data();
  a.weights.router.second_keys = second.data();
  a.weights.up_proj = layer::in_proj(up.data());
  a.weights.down_proj = layer::out_proj(down.data());
  a.output = layer::rows(y.data(), 5);
  a.workspace = scratch;
  a.decisions.experts = experts.data();
  a.decisions.weights = weights.data();
  layer::forward(a);
  CHECK(experts == row_reference(p).experts);
  given::args b;
  b.tokens = a.tokens;
  b.weights.up_proj = given::in_proj(up.data());
  b.weights.down_proj = given::out_proj(down.data());
  b.output = given::rows(z.data(), 5);
  b.workspace = scratch;
  b.inputs = {experts.data(), weights.data()};
  given::forward(b);
  CHECK(z == y);
}

TEST_CASE("wrong rows are refused", "[rows][errors]") {
  using layer = rows<product_keys<3, 1, projected<4>>, with_output_gate<value_row>, 3, 2, 6>;
  row_problem const right = random_rows<layer>(2, 5);
  auto const refuses = [](row_problem const& p, std::string const& sentence) {
    CHECK_THROWS_WITH(run_rows<layer>(p), "switchyard: layer::forward, " + sentence);
  };
  row_problem p = right;
  p.first_keys.clear();
  refuses(p, "weights.router.first_keys: expected [heads, keys, half of the query] float, got a null pointer");
  p = right;
  p.query.clear();
  refuses(p, "weights.router.query: expected [heads * query width, hidden] float, got a null pointer");
  p = right;
  p.gate.clear();
  refuses(p, "weights.output_gate: expected [hidden], got a null pointer");
  using projecting = rows<product_keys<3, 1, token>, with_gated_projection<value_row>, 3, 2, 6>;
  p = random_rows<projecting>(2, 5);
  p.projection_gate.clear();
  CHECK_THROWS_WITH(
      run_rows<projecting>(p),
      "switchyard: layer::forward, weights.projection_gate: expected [hidden, hidden], got a null pointer");
  p = random_rows<projecting>(2, 5);
  p.projection.clear();
  CHECK_THROWS_WITH(run_rows<projecting>(p),
                    "switchyard: layer::forward, weights.projection: expected [hidden, hidden], got a null pointer");
}
