#pragma once

#include <switchyard/capacity/capacity_policy.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/host_device.hpp>
#include <switchyard/core/text.hpp>

namespace switchyard::capacity {

/// The published ways to round a capacity factor f to slots, for n tokens in a group, E experts, k choices.
enum class rounding {
  ceil,     ///< ceil(f * n * k / E)
  mesh,     ///< min(n, floor(f * n / E)); Mesh-TensorFlow, the code of Switch Transformers
  fairseq,  ///< floor(f * ceil(n / E)); fairseq's gates (top-2 takes f = 2)
  tutel     ///< k * floor(f * ceil(n / E)); Tutel
};

namespace detail {

template <rounding Rounding>
constexpr auto rounding_label() {
  if constexpr (Rounding == rounding::ceil) {
    return text("ceil");
  } else if constexpr (Rounding == rounding::mesh) {
    return text("mesh");
  } else if constexpr (Rounding == rounding::fairseq) {
    return text("fairseq");
  } else {
    return text("tutel");
  }
}

/// The end of a factor's name: what is not by default.
template <rounding Rounding, int Minimum, int Alignment>
constexpr auto factor_ending() {
  constexpr auto rounded = "," + rounding_label<Rounding>();
  if constexpr (Alignment != 1) {
    return rounded + "," + decimal<Minimum>() + "," + decimal<Alignment>() + ">";
  } else if constexpr (Minimum != 0) {
    return rounded + "," + decimal<Minimum>() + ">";
  } else if constexpr (Rounding != rounding::ceil) {
    return rounded + ">";
  } else {
    return text(">");
  }
}

}  // namespace detail

/// Spare room as a compile-time fraction: `factor<5, 4>` is a capacity factor of 1.25.
///
/// The result is rounded as `Rounding` says, then raised to `Minimum` (Mesh-TensorFlow uses 4), then rounded up
/// to a multiple of `Alignment` (Tutel). Rows per expert and group; may be more than there are tokens.
/// Source: Fedus et al. 2021, Switch Transformers, section 2.2, and the codes named at `rounding`.
template <int Numerator, int Denominator = 1, rounding Rounding = rounding::ceil, int Minimum = 0, int Alignment = 1>
struct factor {
  static_assert(Numerator >= 0 && Denominator > 0,
                "switchyard: capacity::factor takes a fraction. Give a numerator of at least 0 and a denominator of "
                "at least 1.");
  static_assert(Minimum >= 0 && Alignment >= 1,
                "switchyard: capacity::factor needs a Minimum of at least 0 and an Alignment of at least 1.");
  static constexpr auto label =
      "factor<" + ratio_text<Numerator, Denominator>() + detail::factor_ending<Rounding, Minimum, Alignment>();
  static constexpr std::string_view name = label;
  static constexpr capacity_traits traits{};

  SWITCHYARD_HD static constexpr std::int64_t slots_per_expert(shape dims, std::int64_t tokens) {
    std::int64_t slots = 0;
    if constexpr (Rounding == rounding::ceil) {
      slots = divide_up(Numerator * tokens * dims.top_k, static_cast<std::int64_t>(Denominator) * dims.experts);
    } else if constexpr (Rounding == rounding::mesh) {
      slots = Numerator * tokens / (static_cast<std::int64_t>(Denominator) * dims.experts);
      if (slots > tokens) slots = tokens;
    } else {
      slots = Numerator * divide_up(tokens, dims.experts) / Denominator;
      if constexpr (Rounding == rounding::tutel) slots *= dims.top_k;
    }
    if (slots < Minimum) slots = Minimum;
    return divide_up(slots, Alignment) * Alignment;
  }
};

static_assert(capacity_policy<factor<5, 4>>);

}  // namespace switchyard::capacity
