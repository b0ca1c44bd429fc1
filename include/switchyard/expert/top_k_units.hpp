#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/expert/feed_forward.hpp>
#include <switchyard/expert/low_rank_terms.hpp>

#include <cmath>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// norms[e][i] = the L2 norm of column i of the down projection of expert e, what `unit_ranking::norm_compensated` ranks by: to be
/// made once, when weights are loaded. Squares are added in double, in the order of the rows. On the host.
template <operand Down>
void unit_norms(Down const& down_proj, int experts, int hidden, int intermediate, float* norms) {
  if (norms == nullptr) fail("unit_norms, norms", "[experts, intermediate] float", "a null pointer");
  constexpr int granule = Down::granule;
  for (int e = 0; e < experts; ++e, norms += intermediate) {
    for (int first = 0; first < intermediate; first += granule) {
      int const count = intermediate - first < granule ? intermediate - first : granule;
      double squares[granule] = {};
      for (int row = 0; row < hidden; ++row) {
        float weights[granule];
        down_proj.read(e, row, first, count, weights);
        for (int i = 0; i < count; ++i) squares[i] += double{weights[i]} * double{weights[i]};
      }
      for (int i = 0; i < count; ++i) norms[first + i] = static_cast<float>(std::sqrt(squares[i]));
    }
  }
}

namespace expert {

namespace detail {

template <unit_ranking Ranking>
constexpr auto unit_ranking_ending() {
  if constexpr (Ranking == unit_ranking::norm_compensated) {
    return text(",norm_compensated>");
  } else {
    return text(">");
  }
}

}  // namespace detail

/// Of each row's inner values, down sees those that are at least the `Units`-th largest, and zeros in the place of the others:
/// with h = activation(up(x)), or activation(gate(x), up(x)), down(h where h >= the `Units`-th largest of h). Values that are equal to
/// that one are all kept, and so is what is no number. With `unit_ranking::norm_compensated`, h_i ||down[:, i]|| decides in the place of
/// h_i; `weights.unit_norms` has those norms.
///
/// Values are compared as they stand between the two products: floats on the CPU, elements on a GPU (and what AMX multiplies), where
/// values that round to the same element are equal.
///
/// On the CPU the second product skips units that are zero where the weights of a unit lie together: see expert/README.md.
/// Source: Csordás et al. 2023, Approximating Two-Layer Feedforward Networks for Efficient Transformers, section 3.1, with its code.
template <class Base, int Units, unit_ranking Ranking = unit_ranking::value>
struct top_k_units : Base {
  static_assert(
      !std::is_same_v<typename Base::computation, low_rank_products>,
      "switchyard: expert::top_k_units goes with no expert::adapters, and with the restored form of expert::low_rank "
      "alone. Take one of the two, or give low_rank_form::restored as the fourth argument of expert::low_rank.");
  static_assert(
      std::is_same_v<typename Base::computation, two_products> ||
          std::is_same_v<typename Base::computation, low_rank_products>,
      "switchyard: expert::top_k_units chooses among the values between two products, so it wraps expert::mlp or "
      "expert::gated_mlp. An expert that is a row has none: take the wrapper away.");
  static_assert(Units >= 1,
                "switchyard: expert::top_k_units needs the number of inner values that it keeps, at least 1.");
  static_assert(Base::traits.kept_units == 0,
                "switchyard: expert::top_k_units stands twice. Keep the one with fewer units.");
  static_assert(Base::traits.shared_intermediate == 0,
                "switchyard: expert::top_k_units goes with no shared expert, for no publication says whether that "
                "keeps all of its "
                "units. Take one of the two.");
  static constexpr auto label =
      "top_k_units<" + name_of<Base>() + "," + decimal<Units>() + detail::unit_ranking_ending<Ranking>();
  static constexpr std::string_view name = label;
  static constexpr expert_traits traits =
      with(with(Base::traits, &expert_traits::kept_units, Units), &expert_traits::ranking, Ranking);

  template <class Layer>
  static void check(typename Layer::weights const& w) {
    static_assert(Units < Layer::dims.intermediate,
                  "switchyard: expert::top_k_units keeps fewer than shape.intermediate units. Lower it, or take the "
                  "expert that it "
                  "wraps, which keeps all.");
    Base::template check<Layer>(w);
  }
};

}  // namespace expert
}  // namespace switchyard
