#pragma once

#include <switchyard/core/host_device.hpp>
#include <switchyard/core/shape.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/stratified.hpp>

/// The passes of a stratified layer: each is an ordinary layer on the tokens of one stratum.
namespace switchyard::dispatch {

/// The shape of a pass.
template <class Layer>
SWITCHYARD_HD constexpr shape pass_shape(int stratum) {
  int const experts = Layer::dims.experts - Layer::router::schedule::first_expert(stratum);
  return {.hidden = Layer::dims.hidden,
          .intermediate = Layer::dims.intermediate,
          .experts = experts,
          .top_k = Layer::dims.top_k < experts ? Layer::dims.top_k : experts};
}

/// The layer of a pass: its experts are those of the stratum and all higher ones.
template <class Layer, int Stratum>
using pass_layer = layer<pass_shape<Layer>(Stratum), router::pass_of<typename Layer::router>, typename Layer::capacity,
                         typename Layer::expert, typename Layer::backend, typename Layer::element>;

/// The arguments of a pass but its tokens, output, workspace and decisions.
template <int Stratum, class Layer>
auto pass_args(forward_args<Layer> const& of) {
  using pass = pass_layer<Layer, Stratum>;
  forward_args<pass> args{};
  args.weights = Layer::expert::template from<pass>(of.weights, Layer::router::schedule::first_expert(Stratum));
  if constexpr (Layer::router_traits.owner == router_owner::model) {
    args.shared_router = of.shared_router.stratum[Stratum];
  } else {
    args.weights.router = of.weights.router.stratum[Stratum];
  }
  return args;
}

}  // namespace switchyard::dispatch
