#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace switchyard {

namespace backend {
struct cpu;     // switchyard.hpp
struct cuda;    // switchyard.cuh
struct hopper;  // switchyard.cuh
}  // namespace backend

/// How a backend gets the weights of routed experts: as views of memory, but for `backend::offloaded`, whose experts come from a cache.
/// `source` is then what stands in `.weights.experts`, and `computation<C>` what chooses the step that computes with them.
template <class Backend>
struct expert_storage {
  static constexpr bool in_cache = false;
  /// Whether a rank has some of the experts alone, so that the backend checks a call's arguments, together with all other ranks.
  static constexpr bool in_parts = false;
  template <class Computation>
  using computation = Computation;
};

/// What chooses the experts' step of a backend.
template <class Layer>
using computation_of =
    typename expert_storage<typename Layer::backend>::template computation<typename Layer::expert::computation>;

/// Where a layer runs. `Layer` is the complete type of the layer: sizes and policies are read from it.
template <class Backend, class Layer>
concept backend_policy = requires(typename Layer::args const& args, typename Backend::context const& context,
                                  std::int64_t tokens) {
  { Backend::name } -> std::convertible_to<std::string_view>;
  { Backend::template name_for<Layer>() } -> std::convertible_to<std::string_view>;
  { Backend::template workspace_bytes<Layer>(tokens) } -> std::same_as<std::size_t>;
  { Backend::template forward<Layer>(args, context) } -> std::same_as<void>;
};

}  // namespace switchyard
