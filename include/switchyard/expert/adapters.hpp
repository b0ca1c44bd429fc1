#pragma once

#include <switchyard/core/checks.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/lanes.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/expert/feed_forward.hpp>
#include <switchyard/expert/low_rank_terms.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// Which adapter each token has: `.expert_inputs` of a layer with `expert::adapters`.
struct token_adapters {
  std::int32_t const* adapter = nullptr;  ///< [tokens]: 0 to `Count` - 1, or negative for none
  /// [Count], what the terms of each adapter are multiplied by, such as alpha / rank; null: 1
  float const* scale = nullptr;
};

/// The low-rank matrices of all adapters for one projection.
template <class Element>
struct adapter_matrices {
  Element const* a = nullptr;  ///< lora_A: [adapters, experts, rank, columns]
  Element const* b = nullptr;  ///< lora_B: [adapters, experts, rows, rank]
  int rows = 0, columns = 0;   ///< of an expert's matrix
  int rank = 0, adapters = 0;

  constexpr low_rank_factors<Element> factors() const { return {b, a, rows, columns, rank}; }
};

/// An expert's matrices, and what adapters change of them for some tokens. Read by itself it is what tokens without an adapter meet.
template <operand Base>
struct adapted {
  using element = typename Base::element;
  static constexpr bool in_place = false;
  static constexpr int granule = Base::granule;

  Base base = {};
  adapter_matrices<element> change = {};

  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    base.read(expert, row, column, count, to);
  }
  SWITCHYARD_HD constexpr adapted from(int expert) const { return {base.from(expert), change}; }
  template <operand Other>
  requires(!std::is_same_v<Other, Base> && std::is_convertible_v<Base, Other>) SWITCHYARD_HD constexpr
  operator adapted<Other>() const {
    return {base, change};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts, int all_rows, int all_columns) const {
    base.name_arrays(arrays.of("base"), experts, all_rows, all_columns);
    auto const part = arrays.of("change");
    std::int64_t const numbers = std::int64_t{change.adapters} * experts * change.rank;
    part.array("a", change.a, numbers * all_columns, "[adapters, experts, rank, columns]");
    part.array("b", change.b, numbers * all_rows, "[adapters, experts, rows, rank]");
  }
};

namespace detail {

/// The entries of a token's rows: a table has those of adapter 0 for all experts, then those of adapter 1.
struct adapter_entries {
  token_adapters of_tokens;
  int adapters, experts;

  SWITCHYARD_HD low_rank_entry of(int expert, std::int64_t token) const {
    int const adapter = of_tokens.adapter[token];
    if (adapter < 0) return {-1, -1, 1.0f};
    if (adapter >= adapters) return {0, 0, not_a_number};
    int const entry = adapter * experts + expert;
    return {entry, entry, of_tokens.scale == nullptr ? 1.0f : of_tokens.scale[adapter]};
  }
};

}  // namespace detail

namespace expert {

/// What makes operands of a checkpoint's tensors and of adapters: members of every layer of `adapters`.
template <shape Dims, class Expert, class Element>
struct adapter_views : feed_forward_views<Dims, Expert, Element> {
  /// Gate or up projection: `weight` [experts, intermediate, hidden] or a view of it, `a` [adapters, experts, rank, hidden], `b`
  /// [adapters, experts, intermediate, rank].
  static constexpr auto in_proj(weight_view<Element, projection::in> weight, Element const* a, Element const* b) {
    return made(weight, a, b, Dims.intermediate, Dims.hidden);
  }
  static constexpr auto in_proj(Element const* weight, Element const* a, Element const* b) {
    return in_proj(weight_view<Element, projection::in>::packed(weight, Dims.intermediate, Dims.hidden), a, b);
  }
  /// Down projection: `weight` [experts, hidden, intermediate] or a view of it, `a` [adapters, experts, rank, intermediate], `b`
  /// [adapters, experts, hidden, rank].
  static constexpr auto out_proj(weight_view<Element, projection::out> weight, Element const* a, Element const* b) {
    return made(weight, a, b, Dims.hidden, Dims.intermediate);
  }
  static constexpr auto out_proj(Element const* weight, Element const* a, Element const* b) {
    return out_proj(weight_view<Element, projection::out>::packed(weight, Dims.hidden, Dims.intermediate), a, b);
  }

 private:
  template <class View>
  static constexpr adapted<View> made(View const& weight, Element const* a, Element const* b, int rows, int columns) {
    return {weight, {a, b, rows, columns, Expert::rank, Expert::count}};
  }
};

/// Low-rank adapters (LoRA) on every projection of `Base`: a token with adapter a meets W_e x + scale_a B_{a,e} (A_{a,e} x) in expert e, one
/// without meets W_e x, to the bit. A call takes tokens of any adapters: `.expert_inputs = {.adapter = ids}`. All have the rank `Rank`;
/// one of a lower rank is filled up with zeros. Tables stand as PEFT's lora_A.weight [rank, in] and lora_B.weight [out, rank] do, those
/// of all experts of an adapter one after the other.
///
/// An id of `Count` or more makes the outputs of its token NaN; on the CPU it is an error unless `cpu_context::unroutable` says otherwise.
/// Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, section 4.1.
template <int Count, int Rank, class Base>
struct adapters : Base {
  static_assert(Count >= 1, "switchyard: expert::adapters needs the number of adapters, at least 1.");
  static_assert(Rank >= 1, "switchyard: expert::adapters needs the rank of its matrices, at least 1.");
  static_assert(
      std::is_same_v<typename Base::computation, two_products> && Base::traits.kept_units == 0,
      "switchyard: expert::adapters goes around expert::mlp or expert::gated_mlp, plain, with biases, or with a "
      "shared expert, which adapters leave alone. Take what stands between off.");
  static constexpr int count = Count, rank = Rank;
  static constexpr auto label = "adapters<" + decimal<Count>() + "," + decimal<Rank>() + "," + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  using computation = low_rank_products;

  template <class Element, projection Role>
  using operand = adapted<typename Base::template operand<Element, Role>>;
  template <shape Dims, class Expert, class Element>
  using views = adapter_views<Dims, Expert, Element>;
  template <class Layer>
  using inputs = token_adapters;

  template <class Layer>
  static void check(feed_forward_weights<Layer> const& w) {
    static_assert(
        Layer::router::schedule::passes == 1,
        "switchyard: expert::adapters in a layer of router::stratified: a pass has tokens of its own order, and no "
        "adapters of them. Take one of the two.");
    static_assert(
        std::int64_t{Count} * Layer::dims.experts < (std::int64_t{1} << 31),
        "switchyard: expert::adapters has 2^31 matrices or more for a projection. Lower the number of adapters.");
    Base::template check<Layer>(w);
    constexpr int hidden = Layer::dims.hidden, inner = Layer::dims.intermediate;
    if constexpr (Layer::expert_traits.gated) check_change(w.gate_proj.change, "weights.gate_proj", inner, hidden);
    check_change(w.up_proj.change, "weights.up_proj", inner, hidden);
    check_change(w.down_proj.change, "weights.down_proj", hidden, inner);
  }
  template <class Layer>
  static void check_inputs(forward_args<Layer> const& args) {
    if (args.tokens.rows == 0) return;
    checks::check_pointer(args.expert_inputs.adapter, "expert_inputs.adapter", "[tokens] int32");
    if (args.expert_inputs.scale != nullptr) {
      checks::check_pointer(args.expert_inputs.scale, "expert_inputs.scale", "[adapters] float");
    }
  }
  template <class Layer>
  static void list_inputs(forward_args<Layer> const& args, checks::written_memory const& memory) {
    memory.read("expert_inputs.adapter", args.expert_inputs.adapter, args.tokens.rows);
    memory.read("expert_inputs.scale", args.expert_inputs.scale, Count);
  }
  /// Throws `error` for an id of no adapter. On the host.
  template <class Layer>
  static void check_entries(forward_args<Layer> const& args) {
    for (std::int64_t t = 0; t < args.tokens.rows; ++t) {
      if (args.active != nullptr && args.active[t] == 0) continue;
      std::int32_t const adapter = args.expert_inputs.adapter[t];
      if (adapter < Count) continue;
      fail("layer::forward, expert_inputs.adapter",
           "ids up to " + std::to_string(Count - 1) + ", or negative ones for none",
           std::to_string(adapter) + " for token " + std::to_string(t));
    }
  }

  // What `low_rank_products` asks.
  static constexpr bool one_matrix = false;
  template <class Layer>
  static constexpr std::int64_t entries = std::int64_t{Count} * Layer::dims.experts;
  template <class Layer>
  static auto entries_of(forward_args<Layer> const& args) {
    return switchyard::detail::adapter_entries{args.expert_inputs, Count, Layer::dims.experts};
  }

  /// Every row is taken to have an adapter.
  template <class Layer>
  static constexpr expert_costs costs() {
    constexpr std::int64_t in = Base::traits.input_projections();
    constexpr std::int64_t of_one = (in + 1) * Rank * (std::int64_t{Layer::dims.hidden} + Layer::dims.intermediate);
    expert_costs result = Base::template costs<Layer>();
    result.matrices += of_one;
    result.others = (Count - 1) * of_one;
    return result;
  }

 private:
  /// What a view says that was put together by hand.
  template <class Change>
  static void check_change(Change const& change, char const* matrix, int rows, int columns) {
    if (change.rows == rows && change.columns == columns && change.rank == Rank && change.adapters == Count) return;
    auto const text = [](int all_rows, int all_columns, int all_rank, int all_adapters) {
      return std::to_string(all_rows) + " x " + std::to_string(all_columns) + ", rank " + std::to_string(all_rank) +
             ", " + std::to_string(all_adapters) + " adapters";
    };
    fail(std::string("layer::forward, ").append(matrix).append(".change"),
         text(rows, columns, Rank, Count) + " (layer::in_proj and out_proj set them)",
         text(change.rows, change.columns, change.rank, change.adapters));
  }
};

}  // namespace expert
}  // namespace switchyard
