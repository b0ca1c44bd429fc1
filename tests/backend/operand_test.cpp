#include <switchyard/switchyard.hpp>

#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "support/operands.hpp"

/// Weights that are no dense matrices.
using namespace support;

namespace {

constexpr sy::instruction_set all_sets[] = {sy::instruction_set::portable, sy::instruction_set::avx2,
                                            sy::instruction_set::avx512};

// Sanitizers see with one what there is to see.
#if defined(SWITCHYARD_MORE_LAYERS)
using elements = std::tuple<float, sy::bfloat16, sy::half>;
#else
using elements = std::tuple<sy::bfloat16>;
#endif

}  // namespace

TEMPLATE_LIST_TEST_CASE("weights that are restored while they are read give what dense ones do", "[operand]",
                        elements) {
  // Depths of more than one piece, and of no whole number of vectors.
  using list = typename operand_layers<sy::backend::cpu, TestType, 1048, 40>::type;
  // Both add the same products, in other orders.
  double const allowed = std::is_same_v<TestType, float> ? 1e-6 : std::is_same_v<TestType, sy::half> ? 1e-4 : 1e-3;
  for (sy::instruction_set set : all_sets) {
    if (set > sy::best_instruction_set()) continue;
    for (int tokens : {1, 11, 150}) {
      check_operands<list>(
          tokens, {.threads = 2, .instructions = set},
          [&](auto const& got, auto const& expected, auto const&) { CHECK(relative_error(got, expected) <= allowed); });
    }
  }
}

TEST_CASE("an operand says what it lacks, and what overlaps it", "[operand][errors]") {
  using layer = sy::layer<sy::shape{16, 8, 2, 1}, sy::router::switch_top1, sy::capacity::dropless,
                          stored_as<sy::expert::mlp<sy::relu>, four_bits>>;
  using other = sy::layer<sy::shape{16, 8, 2, 1}, sy::router::switch_top1, sy::capacity::dropless,
                          stored_as<sy::expert::mlp<sy::relu>, pruned_residual>>;
  std::vector<float> numbers(512, 0.5f);
  std::vector<std::uint32_t> codes(64);
  std::vector<std::byte> scratch(layer::workspace_bytes(1));
  auto const error_of = [&](auto layer_type, auto const& change) -> std::string {
    using made = typename decltype(layer_type)::type;
    typename made::args args{};
    args.tokens = made::rows(static_cast<float const*>(numbers.data()), 1);
    args.weights.router.weight = numbers.data();
    args.output = made::rows(numbers.data() + 256, 1);
    args.workspace = scratch;
    change(args);
    try {
      made::forward(args);
    } catch (sy::error const& e) {
      return e.what();
    }
    return "";
  };
  auto const right = [&](auto& a) {
    a.weights.up_proj = {codes.data(), numbers.data(), 8, 2};
    a.weights.down_proj = {codes.data(), numbers.data(), 16, 1};
  };
  std::type_identity<layer> const bits;
  CHECK(error_of(bits, right) == "");
  CHECK(error_of(bits, [](auto&) {}) ==
        "switchyard: layer::forward, weights.up_proj.codes: expected [experts, rows, columns / 8] words of eight "
        "weights, got "
        "a null pointer");
  CHECK(error_of(bits,
                 [&](auto& a) {
                   right(a);
                   a.weights.down_proj.scales = nullptr;
                 }) ==
        "switchyard: layer::forward, weights.down_proj.scales: expected [experts, rows, columns / 8] float, got a null "
        "pointer");
  CHECK(
      error_of(bits,
               [&](auto& a) {
                 right(a);
                 a.weights.down_proj.scales = reinterpret_cast<float const*>(scratch.data());
               }) ==
      "switchyard: layer::forward, workspace: expected memory apart from all else that the call reads and writes, got "
      "memory that overlaps weights.down_proj");
  CHECK(error_of(std::type_identity<other>{},
                 [&](auto& a) { a.weights.up_proj.base = sy::weight_view<float>::packed(numbers.data(), 8, 16); }) ==
        "switchyard: layer::forward, weights.up_proj.change.masks: expected [experts, rows, columns / 32] words of "
        "bits, got a null pointer");
}
