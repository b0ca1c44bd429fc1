#pragma once

#include <switchyard/core/host_device.hpp>
#include <switchyard/core/shape.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/stratified.hpp>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>

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

/// Calls `run.template operator()<Stratum>()` for each pass of a layer, in turn.
template <class Layer, class Run>
void for_each_pass(Run const& run) {
  [&]<int... Stratum>(std::integer_sequence<int, Stratum...>) { (run.template operator()<Stratum>(), ...); }
  (std::make_integer_sequence<int, Layer::router::schedule::passes>{});
}

/// Bytes of the temporaries of the pass that needs most: `Memory` are those of an ordinary layer.
template <class Layer, template <class> class Memory>
constexpr std::int64_t bytes_of_largest_pass(std::int64_t tokens) {
  return [&]<int... Stratum>(std::integer_sequence<int, Stratum...>) {
    std::size_t most = 0;
    for (std::size_t bytes : {bytes_of_memory<Memory<pass_layer<Layer, Stratum>>>(tokens)...}) {
      most = bytes > most ? bytes : most;
    }
    return static_cast<std::int64_t>(most);
  }
  (std::make_integer_sequence<int, Layer::router::schedule::passes>{});
}

/// The arguments of a pass but its tokens, output, workspace and decisions.
template <int Stratum, class Layer>
auto pass_args(forward_args<Layer> const& of) {
  using pass = pass_layer<Layer, Stratum>;
  forward_args<pass> args{};
  // Where a rank has some of the experts alone, it has the same ones for every pass.
  constexpr bool in_parts = expert_storage<typename Layer::backend>::in_parts;
  args.weights =
      Layer::expert::template from<pass>(of.weights, in_parts ? 0 : Layer::router::schedule::first_expert(Stratum));
  if constexpr (Layer::router_traits.owner == router_owner::model) {
    args.shared_router = of.shared_router.stratum[Stratum];
  } else {
    args.weights.router = of.weights.router.stratum[Stratum];
  }
  return args;
}

}  // namespace switchyard::dispatch
