#pragma once

#include <switchyard/modularity.hpp>
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe.hpp"

/// The units of the shipped model's experts: what they say, and the model with units that say something else.
namespace tiny_lm {

/// What a block's layer was given, decided and computed.
struct layer_call {
  int block, rows;
  float const* tokens;          ///< [rows, hidden]
  std::int32_t const* experts;  ///< [rows, top_k]
  float const* weights;         ///< [rows, top_k]
  float* output;                ///< [rows, hidden], which may still be changed
};

/// The shipped model's layers on the CPU, each with something that happens behind it.
class hooked_layers final : public moe_layers {
 public:
  using layer = kinds::shipped::first<sy::backend::cpu>;
  using hook = std::function<void(layer_call const&)>;

  hooked_layers(std::span<moe_weights const> weights, hook behind) : weights_(weights), behind_(std::move(behind)) {}
  std::string describe() const override { return sy::describe<layer>(); }
  std::unique_ptr<moe_worker> worker() const override { return std::make_unique<hooked_worker>(weights_, behind_); }

 private:
  class hooked_worker final : public moe_worker {
   public:
    hooked_worker(std::span<moe_weights const> weights, hook const& behind)
        : weights_(weights), behind_(behind), workspace_(layer::workspace_bytes(context)) {}

    void forward(int block, float const* tokens, float const* residual, int rows, float* output,
                 std::int64_t* used) override {
      moe_weights const& w = weights_[static_cast<std::size_t>(block)];
      moe_pointers pointers{};
      pointers.router = w.router.data();
      pointers.gate_proj = w.gate_proj.data();
      pointers.up_proj = w.up_proj.data();
      pointers.down_proj = w.down_proj.data();
      layer::args args = arguments<layer>(pointers, tokens, residual, rows, output, workspace_, nullptr);
      args.decisions.experts = experts_.data();
      args.decisions.weights = combine_.data();
      layer::forward(args, {.threads = 1});
      for (int i = 0; i < rows * layer::dims.top_k; ++i) ++used[experts_[static_cast<std::size_t>(i)]];
      behind_({block, rows, tokens, experts_.data(), combine_.data(), output});
    }

   private:
    std::span<moe_weights const> weights_;
    hook const& behind_;
    std::vector<std::byte> workspace_;
    std::vector<std::int32_t> experts_ = std::vector<std::int32_t>(context * layer::dims.top_k);
    std::vector<float> combine_ = std::vector<float>(context * layer::dims.top_k);
  };

  std::span<moe_weights const> weights_;
  hook behind_;
};

inline constexpr sy::shape unit_dims = hooked_layers::layer::dims;
inline constexpr int units_of_a_block = unit_dims.experts * unit_dims.intermediate;

namespace detail {

template <int Size>
float dot(float const* a, float const* b) {
  constexpr int lanes = 16;
  static_assert(Size % lanes == 0);
  float sum[lanes] = {};
  for (int i = 0; i < Size; i += lanes) {
    for (int lane = 0; lane < lanes; ++lane) sum[lane] += a[i + lane] * b[i + lane];
  }
  float total = 0.0f;
  for (float s : sum) total += s;
  return total;
}

}  // namespace detail

/// What the units of an expert make of a token, silu(gate x) * up x, to `values`, [intermediate].
inline void unit_values(moe_weights const& w, int expert, float const* token, float* values) {
  constexpr int hidden = unit_dims.hidden, inner = unit_dims.intermediate;
  std::ptrdiff_t const first = std::ptrdiff_t{expert} * inner * hidden;
  for (int i = 0; i < inner; ++i) {
    float const gate = detail::dot<hidden>(w.gate_proj.data() + first + i * hidden, token);
    float const up = detail::dot<hidden>(w.up_proj.data() + first + i * hidden, token);
    values[i] = gate / (1.0f + std::exp(-gate)) * up;
  }
}

/// Adds weight * down values to `output`, [hidden].
inline void add_units(moe_weights const& w, int expert, float const* values, float weight, float* output) {
  constexpr int hidden = unit_dims.hidden, inner = unit_dims.intermediate;
  float const* row = w.down_proj.data() + std::ptrdiff_t{expert} * hidden * inner;
  for (int h = 0; h < hidden; ++h, row += inner) output[h] += weight * detail::dot<inner>(row, values);
}

/// For each block, which experts are perturbed.
using chosen_experts = std::array<std::array<bool, unit_dims.experts>, blocks>;

/// Shuffles what the units of the chosen experts say of the bytes of a call, across bytes, experts and units together, times 4 (see
/// `modularity::perturb`), and has the layer's output say that. An expert says nothing of bytes that are not sent to it.
inline void perturb_experts(moe_weights const& w, chosen_experts const& chosen, layer_call const& call,
                            sy::counter_random numbers) {
  constexpr int inner = unit_dims.intermediate, top_k = unit_dims.top_k;
  std::vector<int> routes;
  for (int i = 0; i < call.rows * top_k; ++i) {
    if (chosen[static_cast<std::size_t>(call.block)][static_cast<std::size_t>(call.experts[i])]) routes.push_back(i);
  }
  if (routes.empty()) return;
  std::vector<float> said(routes.size() * inner), perturbed;
  for (std::size_t r = 0; r < routes.size(); ++r) {
    unit_values(w, call.experts[routes[r]], call.tokens + routes[r] / top_k * unit_dims.hidden,
                said.data() + r * inner);
  }
  perturbed = said;
  std::vector<std::uint8_t> const all_units(inner, 1);
  sy::modularity::perturb({perturbed.data(), static_cast<std::int64_t>(routes.size()), inner}, all_units, numbers);
  for (std::size_t i = 0; i < said.size(); ++i) perturbed[i] -= said[i];
  for (std::size_t r = 0; r < routes.size(); ++r) {
    add_units(w, call.experts[routes[r]], perturbed.data() + r * inner, call.weights[routes[r]],
              call.output + routes[r] / top_k * unit_dims.hidden);
  }
}

}  // namespace tiny_lm
