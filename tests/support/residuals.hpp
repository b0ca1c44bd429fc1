#pragma once

#include <switchyard/core/pack_masked.hpp>
#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "reference.hpp"
#include "support/compile.hpp"
#include "support/operands.hpp"
#include "support/random_numbers.hpp"

/// Layers of a centre and residuals, and what the reference makes of the restored weights.
namespace support {

/// A projection of all experts: a centre [rows, columns], and what each adds to it, [experts, rows, columns], with the arrays it is stored
/// as. Low-rank residuals are given U [experts, intermediate, rank], which all projections share.
struct residual_map {
  int experts = 0, rows = 0, columns = 0;
  std::vector<float> centre, change, features;
  std::vector<std::uint8_t> kept;

  /// One in `one_of` entries is kept; 0: low rank.
  residual_map(random_numbers& random, int expert_count, int row_count, int column_count, int one_of, int rank,
               std::vector<float> const& units, bool of_down)
      : experts(expert_count), rows(row_count), columns(column_count) {
    centre = few_bits<float>(random, std::int64_t{rows} * columns, 100, 1.0f / 512);
    std::int64_t const count = std::int64_t{experts} * rows * columns;
    if (one_of > 0) {
      change = few_bits<float>(random, count, 100, 1.0f / 512);
      for (float& value : change) {
        kept.push_back(random.below(one_of) == 0 ? 1 : 0);
        if (kept.back() == 0) value = 0.0f;
      }
      return;
    }
    features = few_bits<float>(random, std::int64_t{experts} * rank * (of_down ? rows : columns), 50, 1.0f / 256);
    change.assign(static_cast<std::size_t>(count), 0.0f);
    for (std::int64_t i = 0; i < count; ++i) {
      std::int64_t const e = i / columns / rows, row = i / columns % rows, column = i % columns;
      for (int r = 0; r < rank; ++r) {
        std::int64_t const unit = of_down ? column : row, feature = of_down ? row : column;
        std::int64_t const units_of = of_down ? columns : rows;
        float const v =
            of_down ? features[(e * rows + feature) * rank + r] : features[(e * rank + r) * columns + feature];
        change[i] += units[(e * units_of + unit) * rank + r] * v;
      }
    }
  }
  std::vector<double> restored() const {
    std::vector<double> all(change.begin(), change.end());
    for (std::size_t i = 0; i < all.size(); ++i) all[i] += double{centre[i % centre.size()]};
    return all;
  }
};

/// A layer's weights and tokens, and calls of it. Its router is `precomputed`.
template <class Layer>
class residual_problem {
  using element = typename Layer::element;
  static constexpr sy::shape dims = Layer::dims;
  static constexpr sy::expert_traits traits = Layer::expert_traits;
  using change = typename Layer::expert::template change<element>;
  static constexpr bool pruned = std::is_same_v<change, sy::masked_change<element>>;
  static constexpr int rank = Layer::expert::rank;

 public:
  /// All tokens choose expert 0 first where `to_one`.
  explicit residual_problem(int token_count, bool to_one = false, int one_of = 4)
      : tokens(token_count), memory_(reached<typename Layer::backend>::memory()) {
    random_numbers random(17);
    units_ = few_bits<float>(random, std::int64_t{dims.experts} * dims.intermediate * rank, 50, 1.0f / 256);
    int const kept = pruned ? one_of : 0;
    element const* const placed_units = put(units_);
    auto const set = [&](auto& to) {
      constexpr bool of_down =
          std::is_same_v<std::remove_reference_t<decltype(to)>, typename Layer::weights::out_operand>;
      constexpr int rows = of_down ? dims.hidden : dims.intermediate,
                    columns = of_down ? dims.intermediate : dims.hidden;
      residual_map const from(random, dims.experts, rows, columns, kept, rank, units_, of_down);
      element const* const centre = put(from.centre);
      if constexpr (pruned) {
        auto const packed = sy::pack_masked<element>(from.change.data(), from.kept.data(), dims.experts, rows, columns);
        change view = packed.view();
        view.masks = memory_.put(packed.masks);
        view.values = memory_.put(packed.values);
        view.first_values = memory_.put(packed.first_values);
        view.block_starts = memory_.put(packed.block_starts);
        if constexpr (of_down) to = Layer::out_proj(centre, view);
        if constexpr (!of_down) to = Layer::in_proj(centre, view);
      } else {
        element const* const features = put(from.features);
        if constexpr (of_down) to = Layer::out_proj(centre, placed_units, features);
        if constexpr (!of_down) to = Layer::in_proj(centre, placed_units, features);
      }
      return from.restored();
    };
    weights.down_proj = set(args.weights.down_proj);
    weights.up_proj = set(args.weights.up_proj);
    if constexpr (traits.gated) weights.gate_proj = set(args.weights.gate_proj);

    config.hidden = dims.hidden;
    config.intermediate = dims.intermediate;
    config.experts = dims.experts;
    config.top_k = dims.top_k;
    config.scores = reference::score::precomputed;
    config.gated = traits.gated;
    config.act = traits.gated ? reference::activation::silu : reference::activation::relu;
    if constexpr (traits.bias) {
      auto const bias = [&](int size, std::vector<double>& to) {
        std::vector<float> const b = few_bits<float>(random, std::int64_t{dims.experts} * size, 100, 1.0f / 128);
        to.assign(b.begin(), b.end());
        return put(b);
      };
      if constexpr (traits.gated) args.weights.bias.gate = Layer::in_bias(bias(dims.intermediate, weights.gate_bias));
      args.weights.bias.up = Layer::in_bias(bias(dims.intermediate, weights.up_bias));
      args.weights.bias.down = Layer::out_bias(bias(dims.hidden, weights.down_bias));
    }
    if constexpr (traits.shared_intermediate > 0) {
      config.shared = reference::shared_expert::plain;
      config.shared_intermediate = traits.shared_intermediate;
      std::vector<float> const w =
          few_bits<float>(random, std::int64_t{traits.shared_intermediate} * dims.hidden, 100, 1.0f / 512);
      weights.shared_up_proj.assign(w.begin(), w.end());
      if constexpr (traits.gated) weights.shared_gate_proj = weights.shared_up_proj;
      weights.shared_down_proj = weights.shared_up_proj;
      element const* const placed = put(w);
      if constexpr (traits.gated) args.weights.shared.gate_proj = Layer::shared_in_proj(placed);
      args.weights.shared.up_proj = Layer::shared_in_proj(placed);
      args.weights.shared.down_proj = Layer::shared_out_proj(placed);
    }

    x_ = few_bits<float>(random, std::int64_t{tokens} * dims.hidden, 100, 1.0f / 64);
    std::vector<std::int32_t> ids;
    for (int i = 0; i < tokens * dims.top_k; ++i) {
      int const first = to_one ? 0 : random.below(dims.experts);
      ids.push_back(i % dims.top_k == 0 ? first : (ids.back() + 1) % dims.experts);
    }
    inputs.ids.assign(ids.begin(), ids.end());
    inputs.id_weights.assign(ids.size(), 0.5);
    args.inputs = {memory_.put(ids), memory_.put(std::vector<float>(ids.size(), 0.5f))};
    // Rows of tokens and outputs are apart by more than their length.
    std::vector<float> strided(static_cast<std::size_t>(tokens) * stride);
    for (std::size_t i = 0; i < x_.size(); ++i) strided[i / dims.hidden * stride + i % dims.hidden] = x_[i];
    std::size_t const bytes = Layer::workspace_bytes(tokens);
    args.tokens = {put(strided), tokens, dims.hidden, stride};
    args.output = {memory_.template room<element>(strided.size()), tokens, dims.hidden, stride};
    args.workspace = {memory_.template room<std::byte>(bytes), bytes};
  }
  residual_problem(residual_problem const&) = delete;

  std::vector<float> run(sy::cpu_context const& context = {.threads = 1}) {
    reached<typename Layer::backend>::template forward<Layer>(args, context);
    std::vector<element> const all = memory_.get(args.output.data, static_cast<std::size_t>(tokens) * stride);
    std::vector<float> y;
    for (int t = 0; t < tokens; ++t) {
      for (int h = 0; h < dims.hidden; ++h) y.push_back(static_cast<float>(all[t * stride + h]));
    }
    return y;
  }
  /// The reference's outputs with the restored weights.
  std::vector<double> expected() const {
    return reference::forward(config, weights, reference::numbers(x_.begin(), x_.end()), inputs).y;
  }
  element const* put(std::vector<float> const& values) {
    std::vector<element> stored;
    for (float v : values) stored.push_back(element(v));
    return memory_.put(stored);
  }

  typename Layer::args args{};
  int tokens;
  reference::config config;
  reference::weights weights;
  reference::inputs inputs;

 private:
  static constexpr std::int64_t stride = dims.hidden + 8;

  placed_arrays memory_;
  std::vector<float> units_, x_;
};

}  // namespace support
