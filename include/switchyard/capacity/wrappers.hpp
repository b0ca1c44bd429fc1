#pragma once

#include <switchyard/capacity/capacity_policy.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>

/// Capacities that change one thing about another. They nest: `renormalised<queued<factor<5, 4>, queue::priority>>`.
namespace switchyard::capacity {

namespace detail {

template <queue Order>
constexpr auto queue_label() {
  if constexpr (Order == queue::token_order) {
    return text("token_order");
  } else if constexpr (Order == queue::choice_order) {
    return text("choice_order");
  } else {
    return text("priority");
  }
}

template <dropped What>
constexpr auto dropped_label() {
  if constexpr (What == dropped::zero) {
    return text("zero");
  } else if constexpr (What == dropped::weighted_input) {
    return text("weighted_input");
  } else {
    return text("input");
  }
}

}  // namespace detail

/// Slots are taken in another order.
/// Source of `queue::priority`: Riquelme et al. 2021, Scaling Vision with Sparse Mixture of Experts, section 4.
template <class Base, queue Order>
struct queued : Base {
  static_assert(Base::traits.drops,
                "switchyard: capacity::queued orders the queue for slots, and capacity::dropless has none. Remove "
                "the wrapper or wrap a capacity that drops.");
  static constexpr auto label = "queued<" + name_of<Base>() + "," + detail::queue_label<Order>() + ">";
  static constexpr std::string_view name = label;
  static constexpr capacity_traits traits = with(Base::traits, &capacity_traits::order, Order);
};

/// A dropped pair adds something other than zero.
template <class Base, dropped What>
struct on_drop : Base {
  static_assert(Base::traits.drops,
                "switchyard: capacity::on_drop says what a dropped pair adds, and capacity::dropless drops none. "
                "Remove the wrapper or wrap a capacity that drops.");
  static_assert(What != dropped::weighted_input || !Base::traits.renormalises,
                "switchyard: capacity::renormalised gives dropped pairs no weight, so on_drop cannot add the weighted "
                "input. Use dropped::zero or dropped::input.");
  static constexpr auto label = "on_drop<" + name_of<Base>() + "," + detail::dropped_label<What>() + ">";
  static constexpr std::string_view name = label;
  static constexpr capacity_traits traits = with(Base::traits, &capacity_traits::on_drop, What);
};

/// After dropping, a token's combine weights are divided by the sum of those that are left (at least the float
/// epsilon), as in fairseq and NLLB unless they are told to normalise before dropping. A constant factor on the
/// router's weights (`router::scaled`) cancels here; `expert::scaled` is one that does not.
template <class Base>
struct renormalised : Base {
  static_assert(Base::traits.drops,
                "switchyard: capacity::renormalised acts after dropping, and capacity::dropless drops nothing. Use a "
                "router with weighting::sum instead.");
  static_assert(Base::traits.on_drop != dropped::weighted_input,
                "switchyard: capacity::renormalised gives dropped pairs no weight, so on_drop cannot add the weighted "
                "input. Use dropped::zero or dropped::input.");
  static constexpr auto label = "renormalised<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  static constexpr capacity_traits traits = with(Base::traits, &capacity_traits::renormalises, true);
};

/// Rows that are not active count among the tokens that capacity is a share of, as in fairseq, so that padding leaves more
/// slots to the others. By default they count nowhere: the tokens have the slots that they would have without padding.
template <class Base>
struct counting_padding : Base {
  static_assert(
      Base::traits.drops,
      "switchyard: capacity::counting_padding changes what a capacity is a share of, and capacity::dropless is "
      "none. Remove the wrapper or wrap a capacity that drops.");
  static constexpr auto label = "counting_padding<" + name_of<Base>() + ">";
  static constexpr std::string_view name = label;
  static constexpr capacity_traits traits = with(Base::traits, &capacity_traits::counts_padding, true);
};

}  // namespace switchyard::capacity
