#pragma once

#include <switchyard/core/absent.hpp>
#include <switchyard/core/checks.hpp>
#include <switchyard/core/shape.hpp>
#include <switchyard/router/by_logits.hpp>
#include <switchyard/router/router_policy.hpp>

namespace switchyard::router {

struct the_router_makes_no_logits {
  template <class T>
  static constexpr void refuse() {
    static_assert(sizeof(T) == 0,
                  "switchyard: this router makes no logits: it takes its experts from .inputs, so there is no router "
                  "weight to set and "
                  "no logits to report. Set .inputs in the arguments of forward instead.");
  }
};
struct auxiliary_values_need_logits {
  template <class T>
  static constexpr void refuse() {
    static_assert(
        sizeof(T) == 0,
        "switchyard: auxiliary values are made of logits, and this router makes none: it takes its experts from "
        ".inputs.");
  }
};

/// `report` of a router without logits.
struct nothing_to_report {
  [[no_unique_address]] absent<the_router_makes_no_logits> logits = {};
  [[no_unique_address]] absent<the_router_has_no_clusters> feature_scale = {};
  [[no_unique_address]] absent<the_router_has_no_clusters> dispersion = {};
  [[no_unique_address]] absent<the_router_has_no_strata> passes = {};
};

/// What a router is that knows a token's experts from what the call hands in, such as ids, languages or hashes, unless it says otherwise.
/// A router inherits this, has a name, and
///
///   template <class Layer>
///   using inputs = ...;  // a plain struct: kernels take it as it is
///   SWITCHYARD_HD static routed_pair pair(inputs const&, std::int64_t token, int top_k, int choice);
///   template <class Layer>
///   static void check(forward_args<Layer> const&);      // throws where an array is missing
///   template <class Layer>
///   static void list_read(forward_args<Layer> const&, checks::written_memory const&);
///
/// The weight of a token's first choice is its priority. `pair` does not throw.
struct by_inputs {
  static constexpr router_traits traits{};
  static constexpr int choices = 1;  ///< lists of chosen experts of a token
  using source = from_inputs;
  using features = features_as_they_are;
  using schedule = one_pass;
  /// What an expert and a weight of `pair` are called in an error.
  static constexpr char const *experts_name = "the router's experts", *weights_name = "the router's weights";

  template <class Layer>
  using weights = absent_weights<the_router_makes_no_logits>;
  template <class Layer>
  using no_own_weights = absent_weights<the_router_makes_no_logits>;
  template <class Layer>
  using no_shared_weights = absent_weights<the_router_makes_no_logits>;
  template <class Layer>
  using report = nothing_to_report;
  template <class Layer>
  using auxiliary = absent<auxiliary_values_need_logits>;

  template <class Self, shape Dims, class Capacity, class Expert>
  static constexpr bool fits() {
    return true;
  }
  template <class Layer>
  static void check(forward_args<Layer> const&) {}
  template <class Layer>
  static void list_written(forward_args<Layer> const&, checks::written_memory&) {}
  template <class Layer>
  static void list_read(forward_args<Layer> const&, checks::written_memory const&) {}

  template <class Layer>
  static constexpr router_costs costs() {
    return {};
  }
};

}  // namespace switchyard::router
