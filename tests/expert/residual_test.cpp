#include <switchyard/core/pack_masked.hpp>
#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "safetensors.hpp"
#include "support/compare.hpp"
#include "support/residuals.hpp"

/// Experts of a centre and residuals: by hand, against the reference with restored weights, and against outputs of the published code's
/// restored layers.
using namespace support;

namespace {

template <int Hidden, int Intermediate, class Expert, class Element = float>
using residual_layer = sy::layer<sy::shape{Hidden, Intermediate, 3, 2}, sy::router::precomputed, sy::capacity::dropless,
                                 Expert, sy::backend::cpu, Element>;
template <class Base>
using pruned = sy::expert::residual<Base>;
template <class Base, sy::low_rank_form Form = sy::low_rank_form::factored>
using low_rank = sy::expert::residual<Base, sy::low_rank_residuals<5, Form>>;
using gated = sy::expert::gated_mlp<sy::silu>;
using plain = sy::expert::mlp<sy::relu>;

constexpr sy::instruction_set all_sets[] = {sy::instruction_set::portable, sy::instruction_set::avx2,
                                            sy::instruction_set::avx512};

template <class Layer>
void check_against_reference(int tokens, double allowed) {
  INFO(sy::describe<Layer>() << ", " << tokens << " tokens");
  residual_problem<Layer> p(tokens);
  std::vector<double> const expected = p.expected();
  for (sy::instruction_set set : all_sets) {
    if (set > sy::best_instruction_set()) continue;
    CHECK(relative_error(p.run({.threads = 2, .instructions = set}), expected) <= allowed);
  }
}

safetensors::file golden(std::string const& name) {
  return safetensors::read(std::string(SWITCHYARD_TEST_DATA "/") + name + ".safetensors");
}

/// What of a golden file a layer takes: a centre of rows [gate, up, down column] or [up, down column], and restored experts.
struct golden_experts {
  int experts, inner, hidden;
  bool is_gated;
  std::vector<float> gate, up, down;                       ///< of the centre, as projections
  std::vector<float> gate_change, up_change, down_change;  ///< restored less centre, [experts, …]

  explicit golden_experts(safetensors::file const& file) {
    is_gated = file.has("expected.restored.gate_up");
    auto const& shape = file.at("expected.restored.down").shape;
    experts = static_cast<int>(shape[0]);
    hidden = static_cast<int>(shape[1]);
    inner = static_cast<int>(shape[2]);
    std::vector<float> const centre = file.values<float>("expected.barycenter");
    int const width = static_cast<int>(centre.size()) / inner, up_from = is_gated ? hidden : 0;
    gate.resize(static_cast<std::size_t>(inner) * hidden);
    up = down = gate;
    for (int i = 0; i < inner; ++i) {
      for (int h = 0; h < hidden; ++h) {
        gate[i * hidden + h] = centre[i * width + h];
        up[i * hidden + h] = centre[i * width + up_from + h];
        down[h * inner + i] = centre[i * width + up_from + hidden + h];
      }
    }
    std::vector<float> const in = file.values<float>(is_gated ? "expected.restored.gate_up" : "expected.restored.up");
    std::size_t const matrix = gate.size(), of_expert = in.size() / experts;
    down_change = file.values<float>("expected.restored.down");
    for (std::size_t i = 0; i < down_change.size(); ++i) down_change[i] -= down[i % matrix];
    for (int e = 0; e < experts; ++e) {
      for (std::size_t i = 0; i < matrix; ++i) {
        if (is_gated) gate_change.push_back(in[e * of_expert + i] - gate[i]);
        up_change.push_back(in[(e + 1) * of_expert - matrix + i] - up[i]);
      }
    }
  }

  /// Rows of one expert's change as the compressor sees it, [inner, width].
  std::vector<double> joint(int e) const {
    std::vector<double> all;
    std::size_t const matrix = gate.size();
    for (int i = 0; i < inner; ++i) {
      for (int h = 0; is_gated && h < hidden; ++h) all.push_back(gate_change[e * matrix + i * hidden + h]);
      for (int h = 0; h < hidden; ++h) all.push_back(up_change[e * matrix + i * hidden + h]);
      for (int h = 0; h < hidden; ++h) all.push_back(down_change[e * matrix + h * inner + i]);
    }
    return all;
  }
};

/// U [rows, rank] and V [rank, columns] with U V = m, of which the rank is known: orthogonal columns, always the longest next.
std::pair<std::vector<double>, std::vector<double>> factors_of(std::vector<double> m, int rows, int columns, int rank) {
  std::vector<double> const all = m;
  std::vector<double> u(static_cast<std::size_t>(rows) * rank), v(static_cast<std::size_t>(rank) * columns);
  for (int r = 0; r < rank; ++r) {
    int longest = 0;
    double most = -1;
    for (int c = 0; c < columns; ++c) {
      double squares = 0;
      for (int i = 0; i < rows; ++i) squares += m[i * columns + c] * m[i * columns + c];
      if (squares > most) {
        most = squares;
        longest = c;
      }
    }
    for (int i = 0; i < rows; ++i) u[i * rank + r] = m[i * columns + longest] / std::sqrt(most);
    for (int c = 0; c < columns; ++c) {
      double along = 0, of_all = 0;
      for (int i = 0; i < rows; ++i) along += u[i * rank + r] * m[i * columns + c];
      for (int i = 0; i < rows; ++i) of_all += u[i * rank + r] * all[i * columns + c];
      v[r * columns + c] = of_all;
      for (int i = 0; i < rows; ++i) m[i * columns + c] -= along * u[i * rank + r];
    }
  }
  return {u, v};
}

/// Runs a layer on the tokens of a file, its residuals set by `set(weights)`, and compares what the file has.
template <class Layer, class Set>
void check_golden(safetensors::file const& file, Set const& set) {
  std::vector<float> const x = file.values<float>("x"), router = file.values<float>("router.weight");
  std::int64_t const tokens = static_cast<std::int64_t>(x.size()) / Layer::dims.hidden;
  std::vector<float> y(x.size()), weights(static_cast<std::size_t>(tokens * Layer::dims.top_k));
  std::vector<std::int32_t> experts(weights.size());
  std::vector<std::byte> scratch(Layer::workspace_bytes(tokens));
  typename Layer::args args{};
  args.tokens = Layer::rows(x.data(), tokens);
  args.weights.router.weight = router.data();
  args.output = Layer::rows(y.data(), tokens);
  args.workspace = scratch;
  args.decisions.experts = experts.data();
  args.decisions.weights = weights.data();
  set(args.weights);
  Layer::forward(args, {.threads = 1});
  CHECK(experts == file.values<std::int32_t>("expected.topk_ids"));
  CHECK(relative_error(weights, file.values<float>("expected.topk_weights")) <= 1e-5);
  CHECK(relative_error(y, file.values<float>("expected.y")) <= 1e-5);
}

template <class Layer>
void check_pruned(std::string const& name) {
  safetensors::file const file = golden(name);
  golden_experts const from(file);
  auto const packed = [&](std::vector<float> const& changes, int rows, int columns) {
    return sy::pack_masked<float>(changes.data(), nullptr, from.experts, rows, columns);
  };
  auto const gate = from.is_gated ? packed(from.gate_change, from.inner, from.hidden) : sy::masked_arrays<float>(1, 1);
  auto const up = packed(from.up_change, from.inner, from.hidden);
  auto const down = packed(from.down_change, from.hidden, from.inner);
  // What the file says was left of each expert, in all projections together.
  std::vector<std::int32_t> const left = file.values<std::int32_t>("expected.residual_nonzeros");
  std::int64_t all = 0;
  for (std::int32_t count : left) all += count;
  CHECK(gate.value_count() + up.value_count() + down.value_count() == all);
  check_golden<Layer>(file, [&](auto& weights) {
    if constexpr (Layer::expert_traits.gated) weights.gate_proj = Layer::in_proj(from.gate.data(), gate.view());
    weights.up_proj = Layer::in_proj(from.up.data(), up.view());
    weights.down_proj = Layer::out_proj(from.down.data(), down.view());
  });
}

template <class Layer>
void check_low_rank(std::string const& name) {
  constexpr int rank = Layer::expert::rank;
  safetensors::file const file = golden(name);
  golden_experts const from(file);
  int const hidden = from.hidden, width = hidden * (from.is_gated ? 3 : 2);
  std::vector<float> units, gate, up, down;
  for (int e = 0; e < from.experts; ++e) {
    auto const [u, v] = factors_of(from.joint(e), from.inner, width, rank);
    units.insert(units.end(), u.begin(), u.end());
    for (int r = 0; r < rank; ++r) {
      auto const row = v.begin() + r * width;
      if (from.is_gated) gate.insert(gate.end(), row, row + hidden);
      up.insert(up.end(), row + width - 2 * hidden, row + width - hidden);
    }
    for (int h = 0; h < hidden; ++h) {
      for (int r = 0; r < rank; ++r) down.push_back(static_cast<float>(v[(r + 1) * width - hidden + h]));
    }
  }
  check_golden<Layer>(file, [&](auto& weights) {
    if constexpr (Layer::expert_traits.gated) {
      weights.gate_proj = Layer::in_proj(from.gate.data(), units.data(), gate.data());
    }
    weights.up_proj = Layer::in_proj(from.up.data(), units.data(), up.data());
    weights.down_proj = Layer::out_proj(from.down.data(), units.data(), down.data());
  });
}

}  // namespace

TEST_CASE("a centre and residuals by hand", "[residual]") {
  // Up is [[1, 2], [3, 4]] for expert 0 and [[1, 2], [3, 4]] + [[0, 0], [-5, 0]] for expert 1, whose second unit then is not active.
  using layer = sy::layer<sy::shape{2, 2, 2, 1}, sy::router::precomputed, sy::capacity::dropless, pruned<plain>>;
  std::vector<float> const up{1, 2, 3, 4}, down{1, 0, 0, 1}, up_changes{0, 0, 0, 0, 0, 0, -5, 0}, x{2, 1, 2, 1},
      ones{1, 1};
  std::vector<float> const down_changes{0, 0, 0, 0, 1, 0, 0, 0};
  auto const of_up = sy::pack_masked<float>(up_changes.data(), nullptr, 2, 2, 2);
  auto const of_down = sy::pack_masked<float>(down_changes.data(), nullptr, 2, 2, 2);
  CHECK(of_up.value_count() == 1);
  std::vector<std::int32_t> const expert{0, 1};
  std::vector<float> y(4);
  std::vector<std::byte> scratch(layer::workspace_bytes(2));
  layer::forward({.tokens = layer::rows(x.data(), 2),
                  .weights = {.up_proj = layer::in_proj(up.data(), of_up.view()),
                              .down_proj = layer::out_proj(down.data(), of_down.view())},
                  .output = layer::rows(y.data(), 2),
                  .workspace = scratch,
                  .inputs = {expert.data(), ones.data()}});
  CHECK(y == std::vector<float>{4, 10, 8, 0});
}

TEST_CASE("restored experts give what the reference makes of their weights", "[residual]") {
  for (int tokens : {1, 5, 40, 150}) {
    check_against_reference<residual_layer<1088, 96, pruned<gated>>>(tokens, 2e-6);
    check_against_reference<residual_layer<72, 1043, pruned<sy::expert::with_bias<plain>>>>(tokens, 2e-6);
    check_against_reference<residual_layer<72, 40, low_rank<gated, sy::low_rank_form::restored>>>(tokens, 2e-6);
    check_against_reference<residual_layer<72, 40, low_rank<sy::expert::with_shared<gated, 24>>>>(tokens, 2e-6);
    // Biases of each expert, around and inside.
    check_against_reference<residual_layer<72, 40, low_rank<sy::expert::with_bias<plain>>>>(tokens, 2e-6);
    check_against_reference<residual_layer<72, 40, sy::expert::with_bias<low_rank<plain>>>>(tokens, 2e-6);
  }
}

TEST_CASE("restored experts of two-byte elements give what the reference makes of their weights", "[residual]") {
  for (int tokens : {1, 5, 40, 150}) {
    check_against_reference<residual_layer<1088, 96, pruned<gated>, sy::bfloat16>>(tokens, 4e-3);
    check_against_reference<residual_layer<1088, 96, pruned<gated>, sy::half>>(tokens, 5e-4);
    check_against_reference<residual_layer<90, 1043, pruned<plain>, sy::bfloat16>>(tokens, 4e-3);
    check_against_reference<residual_layer<72, 40, low_rank<plain>, sy::bfloat16>>(tokens, 4e-3);
  }
}

TEMPLATE_TEST_CASE("a token has the same bits with others of its expert and alone, and with any threads", "[residual]",
                   float, sy::bfloat16, sy::half) {
  using layer = residual_layer<1088, 96, pruned<gated>, TestType>;
  constexpr int most = 40;
  sy::cpu_context const context{.threads = 1, .least_panel_rows = 1'000'000};
  for (sy::instruction_set set : all_sets) {
    if (set > sy::best_instruction_set()) continue;
    sy::cpu_context one = context, two = context;
    one.instructions = two.instructions = set;
    two.threads = 2;
    residual_problem<layer> p(most, true);
    std::vector<float> const all = p.run(one);
    CHECK(same_bits(p.run(two), all));
    for (int tokens : {1, 2, 3, 6, 7, 8, 31, 33}) {
      p.args.tokens.rows = p.args.output.rows = tokens;
      std::vector<float> const y = p.run(one);
      CHECK(same_bits(std::vector<float>(y.begin(), y.begin() + tokens * 1088),
                      std::vector<float>(all.begin(), all.begin() + tokens * 1088)));
    }
  }
}

TEST_CASE("all or nothing of the residuals may be kept, and the centre may be transposed", "[residual]") {
  using layer = residual_layer<1088, 96, pruned<gated>, sy::bfloat16>;
  for (int one_of : {1, 1'000'000}) {
    residual_problem<layer> p(20, false, one_of);
    CHECK(relative_error(p.run(), p.expected()) <= 4e-3);
  }
  for (int tokens : {3, 150}) {
    residual_problem<layer> p(tokens);
    std::vector<float> const y = p.run();
    auto& centre = p.args.weights.up_proj.base;
    std::vector<float> turned;
    for (int h = 0; h < 1088; ++h) {
      for (int i = 0; i < 96; ++i) turned.push_back(static_cast<float>(*centre.at(0, i, h)));
    }
    auto const view = sy::weight_view<sy::bfloat16, sy::projection::in>::transposed(p.put(turned), 96, 1088);
    p.args.weights.up_proj = layer::in_proj(view, p.args.weights.up_proj.change);
    CHECK(same_bits(p.run(), y));
  }
}

#if defined(__x86_64__)
TEMPLATE_TEST_CASE("rows are restored alike with and without the instruction that spreads words", "[residual]", float,
                   sy::bfloat16, sy::half) {
  if (sy::best_instruction_set() < sy::instruction_set::avx512) return;
  random_numbers random(4);
  for (int one_of : {1, 2, 4, 1000}) {
    int const columns = 512 + 77;
    std::vector<TestType> const base = few_bits<TestType>(random, columns, 100, 0.25f);
    std::vector<float> const change = few_bits<float>(random, columns, 100, 1.0f / 512);
    std::vector<std::uint8_t> kept;
    for (int c = 0; c < columns; ++c) kept.push_back(random.below(one_of) == 0 ? 1 : 0);
    auto const packed = sy::pack_masked<TestType>(change.data(), kept.data(), 1, 1, columns);
    std::vector<float> expected(columns), one_step(columns), two_steps(columns);
    for (int c = 0; c < columns; ++c) {
      float const sum = static_cast<float>(base[c]) + (kept[c] != 0 ? static_cast<float>(TestType(change[c])) : 0.0f);
      expected[sy::cpu::avx512::depth_position<TestType>(c, columns)] = sum;
    }
    using namespace sy::cpu::avx512;
    restore_masked_row<false>(base.data(), packed.masks.data(), packed.values.data(), columns, two_steps.data());
    CHECK(two_steps == expected);
    if (!sy::cpu::expands_words()) continue;
    restore_masked_row<true>(base.data(), packed.masks.data(), packed.values.data(), columns, one_step.data());
    CHECK(one_step == expected);
  }
}
#endif

TEST_CASE("pruned residuals of golden files give the published layers' outputs", "[residual][fixtures]") {
  check_pruned<sy::layer<sy::shape{16, 16, 5, 3}, sy::router::softmax_top_k, sy::capacity::dropless, pruned<gated>>>(
      "resmoe_mixtral_up");
  check_pruned<sy::layer<sy::shape{48, 32, 8, 1}, sy::router::switch_top1, sy::capacity::dropless, pruned<plain>>>(
      "resmoe_switch");
}

TEST_CASE("low-rank residuals of golden files give the published layers' outputs, in both forms",
          "[residual][fixtures]") {
  using sy::low_rank_form;
  auto const both = []<low_rank_form Form>() {
    check_low_rank<sy::layer<sy::shape{16, 16, 5, 3}, sy::router::softmax_top_k, sy::capacity::dropless,
                             sy::expert::residual<gated, sy::low_rank_residuals<3, Form>>>>("resmoe_mixtral_svd");
    check_low_rank<sy::layer<sy::shape{16, 32, 5, 1}, sy::router::switch_top1, sy::capacity::dropless,
                             sy::expert::residual<plain, sy::low_rank_residuals<4, Form>>>>("resmoe_switch_svd");
  };
  both.template operator()<low_rank_form::factored>();
  both.template operator()<low_rank_form::restored>();
}

TEST_CASE("an expert of residuals says what it lacks", "[residual][errors]") {
  using layer = residual_layer<72, 40, pruned<gated>>;
  using factored = residual_layer<72, 40, low_rank<gated>>;
  auto const error_of = []<class Layer>(std::type_identity<Layer>, auto const& change) -> std::string {
    residual_problem<Layer> p(2);
    change(p.args);
    try {
      p.run();
    } catch (sy::error const& e) {
      return e.what();
    }
    return "";
  };
  std::type_identity<layer> const of_pruned;
  std::type_identity<factored> const of_factors;
  CHECK(error_of(of_pruned, [](auto&) {}) == "");
  CHECK(error_of(of_pruned, [](auto& a) { a.weights.gate_proj.base.data = nullptr; }) ==
        "switchyard: layer::forward, weights.gate_proj.base: expected [rows, columns], one matrix for all experts, got "
        "a null pointer");
  CHECK(error_of(of_pruned, [](auto& a) { a.weights.up_proj.base.expert_stride = 40 * 72; }) ==
        "switchyard: layer::forward, weights.up_proj.base.expert_stride: expected 0, for all experts share this matrix "
        "(layer::in_proj and out_proj set it), got 2880");
  CHECK(error_of(of_pruned, [](auto& a) { a.weights.down_proj.change.values = nullptr; }) ==
        "switchyard: layer::forward, weights.down_proj.change.values: expected [values and 32 more], got a null "
        "pointer");
  CHECK(error_of(of_pruned, [](auto& a) { a.weights.down_proj.change = a.weights.up_proj.change; }) ==
        "switchyard: layer::forward, weights.down_proj.change, rows x columns: expected 72 x 40, got 40 x 72");
  CHECK(error_of(of_pruned,
                 [](auto& a) {
                   a.weights.up_proj.change.masks = reinterpret_cast<std::uint32_t const*>(a.workspace.data());
                 }) ==
        "switchyard: layer::forward, workspace: expected memory apart from all else that the call reads and writes, "
        "got memory that overlaps weights.up_proj");
  CHECK(error_of(of_factors, [](auto&) {}) == "");
  CHECK(
      error_of(of_factors, [](auto& a) { a.weights.up_proj.change.units = nullptr; }) ==
      "switchyard: layer::forward, weights.up_proj.change.units: expected U [experts, intermediate, rank], got a null "
      "pointer");
  CHECK(error_of(of_factors, [](auto& a) { a.weights.up_proj.change.rank = 4; }) ==
        "switchyard: layer::forward, weights.up_proj.change.rank: expected 5 (layer::in_proj and out_proj set it), got "
        "4");
  CHECK(error_of(of_factors, [](auto& a) { a.weights.down_proj.change.of_down = false; }) ==
        "switchyard: layer::forward, weights.down_proj.change.of_down: expected true (layer::in_proj and out_proj set "
        "it), got false");
}

TEST_CASE("names and costs of experts of residuals", "[residual]") {
  using layer = residual_layer<72, 40, pruned<gated>>;
  using factored = residual_layer<72, 40, low_rank<gated>>;
  using restored = residual_layer<72, 40, low_rank<plain, sy::low_rank_form::restored>>;
  CHECK(sy::describe<layer>() == "precomputed:2of3/dropless/residual<gated_mlp<silu>,pruned>/72x40/cpu/float");
  CHECK(sy::describe<factored>() == "precomputed:2of3/dropless/residual<gated_mlp<silu>,rank:5>/72x40/cpu/float");
  CHECK(sy::describe<restored>() == "precomputed:2of3/dropless/residual<mlp<relu>,rank:5,restored>/72x40/cpu/float");
  static_assert(sy::shares_base<layer::weights::in_operand>);
  // The centre once; of low rank, U once and V of every projection.
  CHECK(sy::costs<layer>(0).parameters == 3 * 72 * 40);
  CHECK(sy::costs<layer>(10).flops == 2.0 * 10 * 2 * 3 * 72 * 40);
  CHECK(sy::costs<factored>(0).parameters == 3 * 72 * 40 + 3 * 5 * (40 + 3 * 72));
  CHECK(sy::costs<factored>(10).flops == 2.0 * 10 * 2 * (3 * 72 * 40 + 3 * 5 * (72 + 40)));
  CHECK(sy::costs<restored>(0).parameters == 2 * 72 * 40 + 3 * 5 * (40 + 2 * 72));
}
