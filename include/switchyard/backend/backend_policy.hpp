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
