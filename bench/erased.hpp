#pragma once

#include "memory.hpp"
#include "work.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

/// Layers on the CPU behind function pointers, so that the bench is compiled once for each element type and not once per layer.
namespace switchyard::bench {

/// What is measured of a layer.
enum step : int { route_step, dispatch_step, experts_step, forward_step, all_steps };
inline constexpr char const* step_names[] = {"route", "dispatch", "experts", "forward"};

template <class Element>
struct cpu_layer {
  using element = Element;

  std::string name;
  layer_facts<Element> facts;
  /// One call on the next token set and the next copy of the weights. Null: the layer has no such step.
  void (*run[all_steps])(layer_memory<Element>&) = {};
  /// The least that it has to do for one token set.
  work (*least[all_steps])(call_data<Element> const&) = {};
};

using any_cpu_layer = std::variant<cpu_layer<float>, cpu_layer<bfloat16>>;

struct compiled_layer {
  int place;  ///< in the order of the table
  any_cpu_layer layer;
};

/// The layers that files of `layers/` compile.
inline std::vector<compiled_layer>& compiled_layers() {
  static std::vector<compiled_layer> all;
  return all;
}

}  // namespace switchyard::bench
