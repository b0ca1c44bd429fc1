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
  int const experts = Layer::dims.experts - Layer::router::first_expert(stratum);
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
  constexpr int first = Layer::router::first_expert(Stratum);
  auto const higher = [](auto view) {
    view.data += first * view.expert_stride;
    return view;
  };
  forward_args<pass_layer<Layer, Stratum>> args{};
  if constexpr (Layer::router_traits.gate == gate_owner::model) {
    args.shared_router = of.shared_router.gate[Stratum];
  } else {
    args.weights.router = of.weights.router.gate[Stratum];
  }
  if constexpr (Layer::expert_traits.gated) args.weights.gate_proj = higher(of.weights.gate_proj);
  args.weights.up_proj = higher(of.weights.up_proj);
  args.weights.down_proj = higher(of.weights.down_proj);
  if constexpr (Layer::expert_traits.bias) {
    if constexpr (Layer::expert_traits.gated) args.weights.bias.gate = higher(of.weights.bias.gate);
    args.weights.bias.up = higher(of.weights.bias.up);
    args.weights.bias.down = higher(of.weights.bias.down);
  }
  return args;
}

/// The stratum that a token is in after a pass: the number of strata when it has left the last.
template <class Layer>
SWITCHYARD_HD constexpr int next_stratum(int first_choice) {
  return 1 + Layer::router::stratum_of(first_choice);
}

}  // namespace switchyard::dispatch
