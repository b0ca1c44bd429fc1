#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "safetensors.hpp"
#include "support/compare.hpp"
#include "support/low_rank.hpp"

/// Low rank by language: by hand, by what has to hold, and against outputs of the published code.
using namespace support;

namespace {

using two = sy::language_pairs<2>;
using pairs_of_two = low_rank_layer<2, 2, two, 1, sy::router::by_language_pair<2>>;

/// Both maps are the identity, so that the tokens that the activation does not touch come out as they went in, but for factors.
low_rank_problem identity(std::vector<float> x, std::int32_t source, std::int32_t target) {
  low_rank_map const map{2, 2, 1, {1, 0, 0, 1}, std::vector<float>(6), std::vector<float>(6), {0, 0}};
  return {map, map, std::move(x), {source}, {target}};
}

using paths = sy::language_pairs<3>;
template <class Router>
using mixed = low_rank_layer<24, 40, paths, 3, Router>;
using by_pair = mixed<sy::router::by_language_pair<3>>;

low_rank_problem mixed_problem(int tokens = 90) { return random_low_rank(tokens, 24, 40, 3, 3); }

std::vector<float> in_float(std::vector<double> const& values) { return {values.begin(), values.end()}; }

/// W x + A (F x) + b, in double.
std::vector<double> factored(low_rank_map const& map, std::vector<double> const& x, int source, int target) {
  std::vector<double> y(map.bias.begin(), map.bias.end());
  for (int row = 0; row < map.rows; ++row) {
    for (int column = 0; column < map.columns; ++column) y[row] += map.weight[row * map.columns + column] * x[column];
  }
  for (int r = 0; r < map.rank; ++r) {
    double sum = 0;
    for (int column = 0; column < map.columns; ++column) {
      sum += map.flat[(target * map.rank + r) * map.columns + column] * x[column];
    }
    for (int row = 0; row < map.rows; ++row) y[row] += map.vertical[(source * map.rows + row) * map.rank + r] * sum;
  }
  return y;
}

/// The rank of a matrix by elimination with full pivoting, where everything below `least` is 0.
int rank_of(std::vector<double> m, int rows, int columns, double least) {
  for (int rank = 0; rank < rows && rank < columns; ++rank) {
    int at = rank * columns + rank;
    for (int i = rank * columns; i < rows * columns; ++i) {
      if (i % columns >= rank && std::fabs(m[i]) > std::fabs(m[at])) at = i;
    }
    if (std::fabs(m[at]) < least) return rank;
    for (int c = 0; c < columns; ++c) std::swap(m[rank * columns + c], m[at / columns * columns + c]);
    for (int r = 0; r < rows; ++r) std::swap(m[r * columns + rank], m[r * columns + at % columns]);
    for (int r = rank + 1; r < rows; ++r) {
      double const factor = m[r * columns + rank] / m[rank * columns + rank];
      for (int c = rank; c < columns; ++c) m[r * columns + c] -= factor * m[rank * columns + c];
    }
  }
  return rows < columns ? rows : columns;
}

double farthest(std::vector<float> const& got, std::vector<float> const& expected) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference = std::fmax(difference, std::fabs(double(got[i]) - double(expected[i])));
    size = std::fmax(size, std::fabs(double(expected[i])));
  }
  return got.size() == expected.size() ? difference / size : 1.0;
}

safetensors::file golden(std::string const& name) {
  return safetensors::read(std::string(SWITCHYARD_TEST_DATA "/") + name + ".safetensors");
}
low_rank_map map_of(safetensors::file const& file, std::string const& name) {
  auto const& shape = file.at(name + ".weight").shape;
  return {static_cast<int>(shape[0]),
          static_cast<int>(shape[1]),
          static_cast<int>(file.at(name + ".w1").shape[2]),
          file.values<float>(name + ".weight"),
          file.values<float>(name + ".w1"),
          file.values<float>(name + ".w2"),
          file.values<float>(name + ".bias")};
}
low_rank_problem problem_of(safetensors::file const& file) {
  return {map_of(file, "up"), map_of(file, "down"), file.values<float>("x"), file.values<std::int32_t>("lang_src"),
          file.values<std::int32_t>("lang_tgt")};
}

}  // namespace

TEST_CASE("low rank by language by hand", "[low_rank]") {
  // A = (1, 2) of language 1 and F = (3, 0) of language 0: [[4, 0], [6, 1]] (1, 1) = (4, 7).
  low_rank_problem p = identity({1, 1}, 1, 0);
  CHECK(run_low_rank<pairs_of_two>(p) == std::vector<float>{1, 1});
  p.up.vertical = {0, 0, 1, 2, 0, 0};
  CHECK(run_low_rank<pairs_of_two>(p) == std::vector<float>{1, 1});  // all factors F are 0 at first
  p.up.flat = {3, 0, 0, 0, 0, 0};
  CHECK(run_low_rank<pairs_of_two>(p) == std::vector<float>{4, 7});
  p.down.vertical = p.up.vertical;
  p.down.flat = p.up.flat;
  CHECK(run_low_rank<pairs_of_two>(p) == std::vector<float>{16, 31});  // [[4, 0], [6, 1]] (4, 7)
  p.up.bias = {-5, 0};
  p.down.bias = {0.5f, 1};
  CHECK(run_low_rank<pairs_of_two>(p) == std::vector<float>{0.5f, 8});  // relu(-1, 7)
  p.target = {1};
  CHECK(run_low_rank<pairs_of_two>(p) == std::vector<float>{0.5f, 2});
}

TEST_CASE("paths are numbered by source, then by target, and the shared one is the last", "[low_rank]") {
  static_assert(two::count == 9 && two::path(0, 0) == 0 && two::path(1, 2) == 5);
  static_assert(two::path(two::shared, two::shared) == 8);
  static_assert(two::path(3, 0) == -2 && two::path(0, 3) == -2 && two::path(-1, 0) == -2 && two::path(0, -1) == -2);
  static_assert(sy::languages<4>::count == 5 && sy::languages<4>::path(3) == 3 && sy::languages<4>::path(5) == -2);
  low_rank_problem const p = mixed_problem();
  low_rank_call<by_pair> call(p);
  call.run();
  std::vector<std::int32_t> expected;
  for (int t = 0; t < p.tokens(); ++t) expected.push_back(paths::path(p.source[t], p.target[t]));
  CHECK(call.experts() == expected);
}

TEST_CASE("each token has the factors of its languages, few or many", "[low_rank]") {
  for (int tokens : {1, 7, 90}) {
    low_rank_problem const p = mixed_problem(tokens);
    CHECK(farthest(run_low_rank<by_pair>(p), in_float(p.reference())) <= 1e-5);
    CHECK(same_bits(run_low_rank<by_pair>(p, {.threads = 2}), run_low_rank<by_pair>(p)));
    for (auto set : {sy::instruction_set::portable, sy::instruction_set::avx2, sy::instruction_set::avx512}) {
      if (set > sy::best_instruction_set()) continue;
      CHECK(farthest(run_low_rank<by_pair>(p, {.threads = 1, .instructions = set}), in_float(p.reference())) <= 1e-5);
    }
  }
}

TEST_CASE("factors of two bytes are multiplied in float", "[low_rank]") {
  using layer = low_rank_layer<24, 40, paths, 3, sy::router::by_language_pair<3>, sy::backend::cpu, sy::bfloat16>;
  low_rank_problem const p = mixed_problem();
  // Tokens, weights and factors are exact: what is rounded is what stands between the products, and the output.
  CHECK(relative_error(run_low_rank<layer>(p), p.reference()) <= 4e-3);
}

TEST_CASE("both forms give what the formula does", "[low_rank]") {
  using restored = low_rank_layer<24, 40, paths, 3, sy::router::by_language_pair<3>, sy::backend::cpu, float,
                                  sy::low_rank_form::restored>;
  CHECK(
      sy::describe<restored>() ==
      "by_language_pair<3>:1of16/dropless/low_rank<language_pairs<3>,3,with_bias<mlp<relu>>,restored>/24x40/cpu/float");
  low_rank_problem const p = mixed_problem();
  std::vector<float> expected;
  for (int t = 0; t < p.tokens(); ++t) {
    std::vector<double> inner =
        factored(p.up, {p.x.begin() + t * 24, p.x.begin() + (t + 1) * 24}, p.source[t], p.target[t]);
    for (double& v : inner) v = v > 0 ? v : 0;
    for (double v : factored(p.down, inner, p.source[t], p.target[t])) expected.push_back(static_cast<float>(v));
  }
  CHECK(farthest(run_low_rank<by_pair>(p), expected) <= 1e-5);
  CHECK(farthest(run_low_rank<restored>(p), expected) <= 1e-5);
}

TEMPLATE_TEST_CASE("gates have factors, and a shared expert has none, in both forms", "[low_rank]", float, sy::half) {
  auto const outputs = []<sy::low_rank_form Form>(int tokens) {
    using layer = sy::layer<
        sy::shape{20, 36, sy::languages<2>::count, 1}, sy::router::by_language<2>, sy::capacity::dropless,
        sy::expert::low_rank<sy::languages<2>, 17, sy::expert::with_shared<sy::expert::gated_mlp<sy::silu>, 8>, Form>,
        sy::backend::cpu, TestType>;
    random_numbers random(3);
    auto const numbers = [&](int count) { return few_bits<TestType>(random, count, 100, 1.0f / 512); };
    auto const w = numbers(20 * 36), a = numbers(3 * 36 * 17), f = numbers(3 * 17 * 36), gate_a = numbers(3 * 36 * 17),
               shared = numbers(8 * 20), x = few_bits<TestType>(random, tokens * 20, 100, 1.0f / 32);
    std::vector<TestType> y(x.size());
    std::vector<std::int32_t> language;
    for (int t = 0; t < tokens; ++t) language.push_back(random.below(3));
    std::vector<std::byte> scratch(layer::workspace_bytes(tokens));
    typename layer::args args{};
    args.tokens = layer::rows(x.data(), tokens);
    args.weights.gate_proj = layer::in_proj(w.data(), gate_a.data(), f.data());
    args.weights.up_proj = layer::in_proj(w.data(), a.data(), f.data());
    args.weights.down_proj = layer::out_proj(w.data(), a.data(), f.data());
    args.weights.shared = {layer::shared_in_proj(shared.data()), layer::shared_in_proj(shared.data()),
                           layer::shared_out_proj(shared.data()), nullptr};
    args.output = layer::rows(y.data(), tokens);
    args.workspace = scratch;
    args.inputs.language = language.data();
    layer::forward(args, {.threads = 1});
    return std::vector<float>(y.begin(), y.end());
  };
  for (int tokens : {2, 70}) {
    std::vector<float> const factored = outputs.template operator()<sy::low_rank_form::factored>(tokens);
    CHECK(farthest(outputs.template operator()<sy::low_rank_form::restored>(tokens), factored) <=
          (sizeof(TestType) == 4 ? 1e-5 : 2e-3));
  }
}

TEST_CASE("what a pair adds has the rank of its factors", "[low_rank]") {
  low_rank_problem const p = mixed_problem(1);
  low_rank_call<by_pair> call(p);
  for (int path = 0; path < paths::count; ++path) {
    std::vector<float> up(40 * 24);
    sy::merge(call.args.weights.up_proj, path, {up.data(), 40, 24});
    std::vector<double> change(up.begin(), up.end());
    for (std::size_t i = 0; i < change.size(); ++i) change[i] -= p.up.weight[i];
    CHECK(rank_of(change, 40, 24, 1e-6) == 3);
  }
}

TEST_CASE("a pair has A of its source and F of its target, and nothing else", "[low_rank]") {
  low_rank_problem const p = mixed_problem();
  std::vector<float> const y = run_low_rank<by_pair>(p);
  for (int language = 0; language <= paths::shared; ++language) {
    for (bool is_source : {true, false}) {
      low_rank_problem other = p;
      for (low_rank_map* map : {&other.up, &other.down}) {
        std::vector<float>& table = is_source ? map->vertical : map->flat;
        std::size_t const entry = table.size() / paths::entries;
        for (std::size_t i = 0; i < entry; ++i) table[language * entry + i] += 1.0f;
      }
      std::vector<float> const changed = run_low_rank<by_pair>(other);
      int wrong = 0;
      for (int t = 0; t < p.tokens(); ++t) {
        auto const row = [&](auto const& all) {
          return std::vector<float>(all.begin() + t * 24, all.begin() + (t + 1) * 24);
        };
        bool const meets = (is_source ? p.source : p.target)[t] == language;
        if (same_bits(row(y), row(changed)) == meets) ++wrong;
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("a batch of many pairs has the bits of a batch for each pair", "[low_rank]") {
  // So few tokens in a pair that all are multiplied by the same kernel.
  sy::cpu_context const context{.threads = 1, .least_panel_rows = 1'000'000};
  low_rank_problem const p = mixed_problem();
  std::vector<float> const y = run_low_rank<by_pair>(p, context);
  for (int path = 0; path < paths::count; ++path) {
    auto const has = [&](int t) { return paths::path(p.source[t], p.target[t]) == path; };
    std::vector<float> expected;
    for (int t = 0; t < p.tokens(); ++t) {
      if (has(t)) expected.insert(expected.end(), y.begin() + t * 24, y.begin() + (t + 1) * 24);
    }
    CHECK(same_bits(run_low_rank<by_pair>(p.where(has), context), expected));
  }
}

TEST_CASE("a language is the pair of itself and itself", "[low_rank]") {
  using language = low_rank_layer<24, 40, sy::languages<3>, 3, sy::router::by_language<3>>;
  low_rank_problem p = mixed_problem();
  p.target = p.source;
  CHECK(same_bits(run_low_rank<language>(p), run_low_rank<by_pair>(p)));
}

TEST_CASE("a merged path is a dense layer with the same outputs", "[low_rank]") {
  using dense = sy::layer<sy::shape{24, 40, 1, 1}, sy::router::precomputed, sy::capacity::dropless,
                          sy::expert::with_bias<sy::expert::mlp<sy::relu>>>;
  low_rank_problem p = mixed_problem(9);
  for (auto [source, target] : {std::pair{0, 2}, std::pair{1, 1}, std::pair{paths::shared, paths::shared}}) {
    p.source.assign(9, source);
    p.target.assign(9, target);
    low_rank_call<by_pair> call(p);
    std::vector<float> up(40 * 24), down(24 * 40), y(p.x.size());
    sy::merge(call.args.weights.up_proj, paths::path(source, target), {up.data(), 40, 24});
    sy::merge(call.args.weights.down_proj, paths::path(source, target), {down.data(), 24, 40});
    CHECK(same_bits(up, in_float(p.up.matrix(source, target))));
    CHECK(same_bits(down, in_float(p.down.matrix(source, target))));

    std::vector<std::int32_t> const ids(9, 0);
    std::vector<float> const ones(9, 1.0f);
    std::vector<std::byte> scratch(dense::workspace_bytes(9));
    dense::args args{};
    args.tokens = call.args.tokens;
    args.weights.up_proj = dense::in_proj(up.data());
    args.weights.down_proj = dense::out_proj(down.data());
    args.weights.bias.up = dense::in_bias(p.up.bias.data());
    args.weights.bias.down = dense::out_bias(p.down.bias.data());
    args.output = dense::rows(y.data(), 9);
    args.workspace = scratch;
    args.inputs = {ids.data(), ones.data()};
    dense::forward(args);
    CHECK(farthest(call.run(), y) <= 1e-5);
  }
}

TEST_CASE("what is merged is of the element's type, and of a path that exists", "[low_rank][errors]") {
  using change = sy::low_rank_change<sy::bfloat16>;
  std::vector<sy::bfloat16> const weight(2, sy::bfloat16(1.0f)), vertical(3, sy::bfloat16(1.0f)),
      flat{sy::bfloat16(2.0f), sy::bfloat16(0.0f), sy::bfloat16(-3.0f),
           sy::bfloat16(1.0f), sy::bfloat16(0.5f), sy::bfloat16(0.0f)};
  sy::base_plus<sy::weight_view<sy::bfloat16>, change> const w{
      sy::weight_view<sy::bfloat16>::packed(weight.data(), 1, 2),
      change::packed<sy::languages<2>>(vertical.data(), flat.data(), 1, 2, 1)};
  std::vector<sy::bfloat16> merged(2);
  for (int language = 0; language < 3; ++language) {
    sy::merge(w, language, {merged.data(), 1, 2});
    CHECK(static_cast<float>(merged[0]) == 1.0f + static_cast<float>(flat[2 * language]));
    CHECK(static_cast<float>(merged[1]) == 1.0f + static_cast<float>(flat[2 * language + 1]));
    // Experts from another one on.
    float read[2];
    w.from(language).read(0, 0, 0, 2, read);
    CHECK(read[0] == static_cast<float>(merged[0]));
  }
  CHECK_THROWS_WITH(sy::merge(w, 3, {merged.data(), 1, 2}), "switchyard: merge, path: expected 0 to 2, got 3");
  CHECK_THROWS_WITH(sy::merge(w, -2, {merged.data(), 1, 2}), "switchyard: merge, path: expected 0 to 2, got -2");
  CHECK_THROWS_WITH(sy::merge(w, 0, {merged.data(), 2, 1}),
                    "switchyard: merge, to: expected 1 x 2 (rows x columns), got 2 x 1");
  CHECK_THROWS_WITH(sy::merge(w, 0, {nullptr, 1, 2}),
                    "switchyard: merge, to: expected a matrix [rows, columns], got a null pointer");
}

TEST_CASE("padding has no language, and a language that does not exist is an error", "[low_rank][errors]") {
  low_rank_problem p = mixed_problem(3);
  std::vector<float> const y = run_low_rank<by_pair>(p);
  std::vector<std::uint8_t> const active{1, 0, 1};
  p.source[1] = 1000;
  low_rank_call<by_pair> call(p);
  call.args.active = active.data();
  std::vector<float> const padded = call.run();
  CHECK(call.experts()[1] == -1);
  for (int i = 0; i < 24; ++i) {
    CHECK(padded[i] == y[i]);
    CHECK(padded[24 + i] == 0.0f);
    CHECK(padded[48 + i] == y[48 + i]);
  }
  call.args.active = nullptr;
  CHECK_THROWS_WITH(call.run(),
                    "switchyard: layer::forward, the pair of inputs.source and inputs.target (-2 stands for one that "
                    "does not exist): expected ids from 0 to 15, or -1 for none, got -2 for token 1, choice 0");
  std::vector<float> const given = call.run({.unroutable = sy::unroutable_tokens::give_nan});
  CHECK(std::isnan(given[24]));
  CHECK(given[48] == y[48]);
  call.args.inputs.target = nullptr;
  CHECK_THROWS_WITH(call.run(),
                    "switchyard: layer::forward, inputs.target: expected [tokens] int32, got a null pointer");
}

TEST_CASE("low rank says what it lacks", "[low_rank][errors]") {
  low_rank_problem const p = mixed_problem(2);
  auto const error_of = [&](auto const& change) -> std::string {
    low_rank_call<by_pair> call(p);
    change(call.args);
    try {
      call.run();
    } catch (sy::error const& e) {
      return e.what();
    }
    return "";
  };
  CHECK(error_of([](auto&) {}) == "");
  CHECK(error_of([](auto& a) { a.weights.up_proj.base.data = nullptr; }) ==
        "switchyard: layer::forward, weights.up_proj.base: expected [rows, columns], one matrix for all experts, got a "
        "null pointer");
  CHECK(error_of([](auto& a) { a.weights.down_proj.change.vertical = nullptr; }) ==
        "switchyard: layer::forward, weights.down_proj.change.vertical: expected [languages + 1, rows, rank], got a "
        "null pointer");
  CHECK(error_of([](auto& a) { a.weights.down_proj.change.columns = 0; }) ==
        "switchyard: layer::forward, weights.down_proj.change: expected 24 x 40, rank 3, 4 entries of language pairs "
        "(layer::in_proj and out_proj set them), got 24 x 0, rank 3, 4 entries of language pairs");
  CHECK(error_of([](auto& a) { a.weights.down_proj.change.first = 1; }) ==
        "switchyard: layer::forward, weights.down_proj.change: expected 24 x 40, rank 3, 4 entries of language pairs "
        "(layer::in_proj and out_proj set them), got those from path 1 on");
  CHECK(error_of([](auto& a) { a.weights.up_proj.change.rank = 2; }) ==
        "switchyard: layer::forward, weights.up_proj.change: expected 40 x 24, rank 3, 4 entries of language pairs "
        "(layer::in_proj and out_proj set them), got 40 x 24, rank 2, 4 entries of language pairs");
  CHECK(error_of([](auto& a) { a.weights.bias.up.expert_stride = 40; }) ==
        "switchyard: layer::forward, weights.bias.up.expert_stride: expected 0, for all experts share this bias "
        "(layer::in_bias and out_bias set it), got 40");
  CHECK(error_of([](auto& a) { a.weights.bias.down.data = nullptr; }) ==
        "switchyard: layer::forward, weights.bias.down: expected [hidden], got a null pointer");
  CHECK(error_of([](auto& a) { a.weights.up_proj.change.flat = reinterpret_cast<float const*>(a.workspace.data()); }) ==
        "switchyard: layer::forward, workspace: expected memory apart from all else that the call reads and "
        "writes, got memory that overlaps weights.up_proj");
}

TEST_CASE("names and costs of low rank by language", "[low_rank]") {
  CHECK(sy::describe<by_pair>() ==
        "by_language_pair<3>:1of16/dropless/low_rank<language_pairs<3>,3,with_bias<mlp<relu>>>/24x40/cpu/float");
  // OPUS-100: 96 entries of rank 4 in the two maps of 12 blocks.
  using opus_100 = low_rank_layer<1024, 4096, sy::language_pairs<95>, 4, sy::router::by_language_pair<95>>;
  constexpr std::int64_t dense = 2 * 1024 * 4096, biases = 1024 + 4096, own = 2 * 4 * (1024 + 4096);
  static_assert(12 * 96 * own == 47'185'920);
  sy::layer_costs const costs = sy::costs<opus_100>(7, 3);
  CHECK(costs.parameters == dense + biases + 96 * own);
  CHECK(costs.active_parameters == dense + biases + own);
  CHECK(costs.flops == 2.0 * 7 * (dense + own));
  CHECK(costs.bytes == 4.0 * (dense + biases + 3 * own + 2 * 7 * 1024));
  // Pairs share factors: there are no more than there are languages.
  CHECK(sy::costs<opus_100>(1000, 500).bytes == 4.0 * (dense + biases + 96 * own + 2 * 1000 * 1024));
  // A gate projection has factors, too; biases are shared whichever wrapper stands outside.
  using gated =
      sy::layer<sy::shape{10, 3, 3, 1}, sy::router::by_language<2>, sy::capacity::dropless,
                sy::expert::with_bias<sy::expert::low_rank<sy::languages<2>, 1, sy::expert::gated_mlp<sy::silu>>>>;
  CHECK(sy::costs<gated>(0).parameters == 3 * 30 + 2 * 3 + 10 + 3 * 3 * 13);
  using language = low_rank_layer<512, 2048, sy::languages<16>, 4, sy::router::by_language<16>>;
  CHECK(sy::costs<language>(0).parameters == 2 * 512 * 2048 + 512 + 2048 + 17 * 2 * 4 * (512 + 2048));
}

TEST_CASE("low rank by language pairs is what the published code computes", "[low_rank][fixtures]") {
  using layer = low_rank_layer<48, 64, sy::language_pairs<5>, 4, sy::router::by_language_pair<5>>;
  safetensors::file const file = golden("lms_pair");
  CHECK(farthest(run_low_rank<layer>(problem_of(file)), file.values<float>("expected.y")) <= 1e-5);
}

TEST_CASE("low rank by languages is what the published code computes", "[low_rank][fixtures]") {
  using layer = low_rank_layer<32, 48, sy::languages<4>, 4, sy::router::by_language<4>>;
  safetensors::file const file = golden("lms_lang");
  CHECK(farthest(run_low_rank<layer>(problem_of(file)), file.values<float>("expected.y")) <= 1e-5);
}

TEST_CASE("merged weights, and outputs before they are merged, are the published code's", "[low_rank][fixtures]") {
  using layer = low_rank_layer<32, 16, paths, 3, sy::router::by_language_pair<3>>;
  safetensors::file const file = golden("lms_merge");
  std::vector<std::int32_t> const pairs = file.values<std::int32_t>("pairs");
  std::vector<float> const up = file.values<float>("expected.merged.up"),
                           down = file.values<float>("expected.merged.down"), y = file.values<float>("expected.y");
  REQUIRE(pairs.size() == 6);
  for (int i = 0; i < 3; ++i) {
    low_rank_problem const p{map_of(file, "up"), map_of(file, "down"), file.values<float>("x"),
                             std::vector<std::int32_t>(11, pairs[2 * i]),
                             std::vector<std::int32_t>(11, pairs[2 * i + 1])};
    auto const part = [&](std::vector<float> const& all) {
      auto const size = static_cast<std::ptrdiff_t>(all.size() / 3);
      return std::vector<float>(all.begin() + i * size, all.begin() + (i + 1) * size);
    };
    low_rank_call<layer> call(p);
    CHECK(farthest(call.run(), part(y)) <= 1e-5);
    std::vector<float> merged(32 * 16);
    int const path = paths::path(pairs[2 * i], pairs[2 * i + 1]);
    sy::merge(call.args.weights.up_proj, path, {merged.data(), 16, 32});
    CHECK(farthest(merged, part(up)) <= 1e-7);
    sy::merge(call.args.weights.down_proj, path, {merged.data(), 32, 16});
    CHECK(farthest(merged, part(down)) <= 1e-7);
  }
}
