#pragma once

#include <switchyard/core/host_device.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/expert/feed_forward.hpp>

#include <cstddef>
#include <string_view>
#include <type_traits>

namespace switchyard {

namespace expert {

namespace detail {

template <int Count, std::size_t Size>
constexpr auto counted(text<Size> const& kind) {
  if constexpr (Count > 0) {
    return kind + decimal<Count>();
  } else {
    return text<0>{};
  }
}

}  // namespace detail

/// Experts beyond those of the shape that a router may choose and that compute nothing, so that tokens that need less get less. The router
/// scores `shape.experts` and all of these, in this order of ids: experts of the shape, constant, mixed constant, identity, zero.
///
///   layer<shape{.hidden = 6144, .intermediate = 2048, .experts = 512, .top_k = 12}, router, capacity::dropless,
///         expert::with_null_experts<expert::gated_mlp<silu>, null_experts{.identity = 256}>>
///
/// Where w is its combine weight and x the token as experts see it, a constant expert adds w v, a mixed constant one w (a x + (1 - a) v)
/// with a = exp(m0 . x) / (exp(m0 . x) + exp(m1 . x)), m0 and m1 being its rows of `mixing`, an identity expert w x, and a zero expert
/// nothing; `expert::scaled` scales that, too. It is summed after a token's rows: x with one factor, then vectors in the order of choice.
///
/// They take no row and no slot, and never drop: capacities count the experts of the shape alone. The weights are made over all that was
/// chosen, as the router says. `decisions` have their ids, weights and load; their count, of rows, is 0.
/// Source: Jin et al. 2024, MoE++: Accelerating Mixture-of-Experts Methods with Zero-Computation Experts, section 3 (zero, copy and constant
/// experts, the last being `mixed_constant` here; ids in the order of its code). Its code takes the zero expert's weight out before the
/// others are divided by their sum, and has a gate of two layers with a residual: such routes come by `router::precomputed`. Meituan 2025,
/// LongCat-Flash Technical Report (identity experts, with weights as scored).
template <class Base, null_experts Nulls>
struct with_null_experts : Base {
  static_assert(std::is_same_v<typename Base::computation, two_products>,
                "switchyard: expert::with_null_experts goes with expert::mlp and expert::gated_mlp. Rows cost nothing "
                "but what is read of them: take the wrapper away, and give those that add nothing a row of zeros.");
  static_assert(Nulls.zero >= 0 && Nulls.identity >= 0 && Nulls.constant >= 0 && Nulls.mixed_constant >= 0 &&
                    Nulls.count() >= 1,
                "switchyard: expert::with_null_experts takes how many there are of each kind, at least one together: "
                "null_experts{.identity = 8}.");
  static_assert(Base::traits.nulls.count() == 0,
                "switchyard: expert::with_null_experts stands twice. Give all of them to one.");
  static_assert(
      !requires { typename Base::paths; },
      "switchyard: expert::low_rank has an expert for each path, and a token's languages are always one of them, so "
      "that nothing would choose expert::with_null_experts. Take one of the two.");
  static constexpr auto label =
      "with_null_experts<" + name_of<Base>() + detail::counted<Nulls.constant>(text(",constant:")) +
      detail::counted<Nulls.mixed_constant>(text(",mixed_constant:")) +
      detail::counted<Nulls.identity>(text(",identity:")) + detail::counted<Nulls.zero>(text(",zero:")) + ">";
  static constexpr std::string_view name = label;
  static constexpr expert_traits traits = with(Base::traits, &expert_traits::nulls, Nulls);

  template <class Layer>
  static void check(typename Layer::weights const& w) {
    static_assert(!Layer::router_traits.weighs_input || Nulls.vectors() == 0,
                  "switchyard: router::on_input weighs what experts see, which a constant expert does not look at, and "
                  "no publication says what its weight would do. Leave constant experts out, or take router::on_input "
                  "away.");
    Base::template check<Layer>(w);
  }
};

}  // namespace expert

/// How null experts are told from others where each token's rows are summed, on every backend: everything of it is known to the compiler,
/// so that layers without them have nothing of it.
struct no_nulls {
  static constexpr int count = 0, vectors = 0, mixed = 0, top_k = 0;
};
template <int First, int Constant, int MixedConstant, int Identity, int Zero, int TopK>
struct nulls_of_choices {
  static constexpr int count = Constant + MixedConstant + Identity + Zero, vectors = Constant + MixedConstant,
                       mixed = MixedConstant, top_k = TopK;

  SWITCHYARD_HD static constexpr bool is_null(int expert) { return expert >= First; }
  SWITCHYARD_HD static constexpr bool is_identity(int expert) {
    return expert >= First + vectors && expert < First + vectors + Identity;
  }
  /// The vector that a null expert adds; -1: none.
  SWITCHYARD_HD static constexpr int vector_of(int expert) { return expert < First + vectors ? expert - First : -1; }
  /// The number of a vector among those that are mixed with the token; negative: it is not.
  SWITCHYARD_HD static constexpr int mixing_of(int vector) { return vector - Constant; }
};
template <class Layer>
constexpr auto nulls_of() {
  constexpr null_experts n = Layer::expert_traits.nulls;
  if constexpr (n.count() == 0) {
    return std::type_identity<no_nulls>{};
  } else {
    return std::type_identity<
        nulls_of_choices<Layer::dims.experts, n.constant, n.mixed_constant, n.identity, n.zero, Layer::dims.top_k>>{};
  }
}

/// What the null experts that a token chose add to its sum.
template <class Nulls>
struct null_part {
  static constexpr int most_vectors = Nulls::vectors > 0 ? Nulls::top_k : 1;

  float of_token = 0.0f;            ///< a factor of the token
  float of_vector[most_vectors]{};  ///< by choice, factors of the vectors below
  int vector[most_vectors]{};       ///< by choice, -1: none

  /// Adds a choice, by its weight. `share_of_token(m)` is the part of the token in a mixture, the other one that of the vector.
  template <class Share>
  SWITCHYARD_HD constexpr void add(int choice, int expert, float weight, Share const& share_of_token) {
    if (Nulls::is_identity(expert)) of_token += weight;
    if constexpr (Nulls::vectors > 0) {
      int const v = Nulls::vector_of(expert), m = Nulls::mixing_of(v);
      vector[choice] = v;
      of_vector[choice] = weight;
      if constexpr (Nulls::mixed > 0) {
        if (m >= 0) {
          float const share = share_of_token(m);
          of_token += weight * share;
          of_vector[choice] = weight * (1.0f - share);
        }
      }
    }
  }
  /// Says that a choice is no null expert.
  SWITCHYARD_HD constexpr void skip(int choice) {
    if constexpr (Nulls::vectors > 0) vector[choice] = -1;
  }
};

}  // namespace switchyard
