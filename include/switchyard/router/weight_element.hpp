#pragma once

#include <switchyard/core/element.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/router/by_logits.hpp>

#include <string_view>

namespace switchyard::router {

/// The router weight is stored as `Element`, bfloat16 or half, and read as it lies. Its elements are widened exactly and products summed in
/// the same order, so that logits have the bits that they have with the same matrix widened to floats beforehand. Biases stay floats.
///
///   layer<dims, router::with_weight_element<router::softmax_top_k, bfloat16>, ...>
template <class Base, class Element>
struct with_weight_element : Base {
  static_assert(makes_logits<Base>,
                "switchyard: a router without logits, such as router::precomputed, has no router weight that "
                "router::with_weight_element could store otherwise. Take the wrapper away.");
  static_assert(element<Element>,
                "switchyard: router::with_weight_element stores the router weight as float, switchyard::bfloat16 or "
                "switchyard::half. Choose one of them as its second argument.");
  static_assert(
      !requires { Base::features::form; },
      "switchyard: router::adaptive_clustering reads its router weight as floats, for it also takes the lengths of its "
      "rows. Take router::with_weight_element away.");
  static constexpr auto label = "with_weight_element<" + name_of<Base>() + "," + text_of<element_name<Element>>() + ">";
  static constexpr std::string_view name = label;
  using weight_element = Element;
};

}  // namespace switchyard::router
