#pragma once

#include <switchyard/capacity/capacity_policy.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/host_device.hpp>
#include <switchyard/core/text.hpp>

namespace switchyard::capacity {

/// The same number of slots for any number of tokens.
template <std::int64_t Slots>
struct fixed {
  static_assert(Slots >= 0, "switchyard: capacity::fixed needs a number of slots of at least 0.");
  static constexpr auto label = "fixed<" + decimal<Slots>() + ">";
  static constexpr std::string_view name = label;
  static constexpr capacity_traits traits{};
  SWITCHYARD_HD static constexpr std::int64_t slots_per_expert(shape, std::int64_t) { return Slots; }
};

/// A share of the group's tokens, whatever the number of experts: ceil(Numerator * tokens / Denominator).
/// Source: fairseq and NLLB, the evaluation token fraction (0.25 and 1.0 in published commands).
template <int Numerator, int Denominator>
struct share_of_tokens {
  static_assert(Numerator >= 0 && Denominator > 0,
                "switchyard: capacity::share_of_tokens takes a fraction. Give a numerator of at least 0 and a "
                "denominator of at least 1.");
  static constexpr auto label = "share_of_tokens<" + ratio_text<Numerator, Denominator>() + ">";
  static constexpr std::string_view name = label;
  static constexpr capacity_traits traits{};
  SWITCHYARD_HD static constexpr std::int64_t slots_per_expert(shape, std::int64_t tokens) {
    return divide_up(Numerator * tokens, Denominator);
  }
};

static_assert(capacity_policy<fixed<8>>);
static_assert(capacity_policy<share_of_tokens<1, 4>>);

}  // namespace switchyard::capacity
