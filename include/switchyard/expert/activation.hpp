#pragma once

#include <switchyard/core/choose.hpp>
#include <switchyard/core/error_function.hpp>
#include <switchyard/core/exponential.hpp>
#include <switchyard/core/host_device.hpp>
#include <switchyard/core/text.hpp>

#include <concepts>
#include <string_view>

namespace switchyard {

/// A function of one value, for `expert::mlp`. `apply` does not throw.
template <class Activation>
concept activation = requires(float x) {
  { Activation::name } -> std::convertible_to<std::string_view>;
  { Activation::apply(x) } -> std::same_as<float>;
};

/// A function of a gate and an up value, for `expert::gated_mlp`. `apply` does not throw.
template <class Activation>
concept gated_activation = requires(float gate, float up) {
  { Activation::name } -> std::convertible_to<std::string_view>;
  { Activation::apply(gate, up) } -> std::same_as<float>;
};

// An activation of one value also has a gated form, apply(gate) * up. Comparisons stand so that a NaN goes through.
// The CPU calls them for whole vectors of values, in a loop: what branches, or calls a function, is computed one by one there.
// Source: Shazeer 2020, GLU Variants Improve Transformer, section 2.

struct relu {
  static constexpr std::string_view name = "relu";
  SWITCHYARD_HD static float apply(float x) { return choose(x < 0.0f, 0.0f, x); }
  SWITCHYARD_HD static float apply(float gate, float up) { return apply(gate) * up; }
};

/// Source: So et al. 2021, Primer: Searching for Efficient Transformers, section 4.
struct relu_squared {
  static constexpr std::string_view name = "relu_squared";
  SWITCHYARD_HD static float apply(float x) { return relu::apply(x) * relu::apply(x); }
  SWITCHYARD_HD static float apply(float gate, float up) { return apply(gate) * up; }
};

/// x * Phi(x), exact. Source: Hendrycks and Gimpel 2016, Gaussian Error Linear Units, section 2.
struct gelu {
  static constexpr std::string_view name = "gelu";
  SWITCHYARD_HD static float apply(float x) { return 0.5f * x * (1.0f + error_function(x * 0.70710678118654752f)); }
  SWITCHYARD_HD static float apply(float gate, float up) { return apply(gate) * up; }
};

/// The tanh approximation of `gelu`, same source.
struct gelu_tanh {
  static constexpr std::string_view name = "gelu_tanh";
  SWITCHYARD_HD static float apply(float x) {
    // (1 + tanh u) / 2 = 1 / (1 + exp(-2 u))
    return quotient(x, 1.0f + exponential(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
  }
  SWITCHYARD_HD static float apply(float gate, float up) { return apply(gate) * up; }
};

/// x * sigmoid(x), also called swish.
struct silu {
  static constexpr std::string_view name = "silu";
  SWITCHYARD_HD static float apply(float x) { return quotient(x, 1.0f + exponential(-x)); }
  SWITCHYARD_HD static float apply(float gate, float up) { return apply(gate) * up; }
};

namespace detail {

template <int Shift>
constexpr auto shift_label() {
  if constexpr (Shift == 0) {
    return text(",0");
  } else {
    return text<0>{};
  }
}

}  // namespace detail

/// The gated activation of gpt-oss: the gate is clamped from above and the up value from both sides to `limit`,
/// then gate * sigmoid(alpha * gate) * (up + shift). Limit and alpha are fractions, 7 and 1.702 as published, with a shift of 1. Other
/// models clamp a plain SwiGLU: `clamped_swiglu<7, 1, 1, 1, 0>`.
/// Source: OpenAI 2025, gpt-oss model card, section 2.2, and its reference code.
template <int LimitNumerator = 7, int LimitDenominator = 1, int AlphaNumerator = 851, int AlphaDenominator = 500,
          int Shift = 1>
struct clamped_swiglu {
  static_assert(Shift == 0 || Shift == 1,
                "switchyard: clamped_swiglu adds 1 to the up value, or nothing. Make its last argument 1 or 0.");
  static_assert(LimitDenominator > 0 && AlphaDenominator > 0,
                "switchyard: clamped_swiglu takes fractions. Give denominators of at least 1.");
  static constexpr auto label = "clamped_swiglu<" + ratio_text<LimitNumerator, LimitDenominator>() + "," +
                                ratio_text<AlphaNumerator, AlphaDenominator>() + detail::shift_label<Shift>() + ">";
  static constexpr std::string_view name = label;
  SWITCHYARD_HD static float apply(float gate, float up) {
    constexpr float limit = static_cast<float>(LimitNumerator) / static_cast<float>(LimitDenominator);
    constexpr float alpha = static_cast<float>(AlphaNumerator) / static_cast<float>(AlphaDenominator);
    float const g = choose(gate > limit, limit, gate);
    float const u = choose(up < -limit, -limit, choose(up > limit, limit, up));
    return quotient(g, 1.0f + exponential(-alpha * g)) * (Shift == 0 ? u : u + 1.0f);
  }
};

static_assert(activation<relu> && gated_activation<relu>);
static_assert(activation<relu_squared> && gated_activation<relu_squared>);
static_assert(activation<gelu> && gated_activation<gelu>);
static_assert(activation<gelu_tanh> && gated_activation<gelu_tanh>);
static_assert(activation<silu> && gated_activation<silu>);
static_assert(gated_activation<clamped_swiglu<>> && !activation<clamped_swiglu<>>);

}  // namespace switchyard
