#pragma once

#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "reference.hpp"
#include "support/set_arguments.hpp"

/// Layers behind function pointers, so that the tests are compiled once and not once per layer.
namespace support {

namespace sy = switchyard;

using any_matrix = sy::weight_view<void>;
using any_vector = sy::bias_view<void>;

/// `forward_args` of any layer. What a layer does not have is not read.
struct any_args {
  void const* tokens = nullptr;
  std::int64_t rows = 0;
  std::int64_t token_stride = 0;
  void const* residual = nullptr;
  std::int64_t residual_stride = 0;
  sy::router_weights router[most_strata] = {};  ///< a layer without strata has the first
  sy::layer_norm norm[most_strata] = {};
  any_matrix gate_proj, up_proj, down_proj;
  any_vector gate_bias, up_bias, down_bias;
  any_matrix shared_gate_proj, shared_up_proj, shared_down_proj;
  void const* shared_gate = nullptr;
  void const* output_bias = nullptr;
  float const* unit_norms = nullptr;
  void const *constant_vectors = nullptr, *constant_mixing = nullptr;
  void* output = nullptr;
  std::int64_t output_stride = 0;
  std::span<std::byte> workspace;
  sy::precomputed_routes routes;  ///< of a router that is given experts, too; of a hash layer, by words
  std::int32_t const* words = nullptr;
  void const* router_tokens = nullptr;
  std::int64_t router_width = 0, router_token_stride = 0;
  sy::token_clusters clusters;
  sy::expert_dropout dropout;
  sy::allowed_experts restriction;
  std::int64_t tokens_per_group = 0;
  std::uint8_t const* active = nullptr;
  sy::decisions decisions;
  any_report report;
  sy::auxiliary_values* auxiliary = nullptr;
};

/// Memory that a layer's arguments point to. Null functions: the host's.
struct memory_space {
  void* (*allocate)(std::size_t bytes) = nullptr;  ///< at a multiple of 256
  void (*release)(void* memory) = nullptr;
  void (*copy_in)(void* to, void const* from, std::size_t bytes) = nullptr;
  void (*copy_out)(void* to, void const* from, std::size_t bytes) = nullptr;
};

/// What a layer's router is.
struct router_facts {
  bool precomputed = false;      ///< it takes its routes from the call
  bool scales_features = false;  ///< by clusters
  bool given_experts = false;    ///< it takes experts from the call, and makes their weights
  bool by_words = false;         ///< it takes its experts from a table, with weights of 1
  double expert_dropout = 0.0;   ///< the probability that it masks an expert with
  bool restricted = false;       ///< it chooses among experts that the call names
  bool bias = false, correction_bias = false;
  std::size_t weight_bytes = sizeof(float);  ///< of an element of its weight
  int strata = 0;                            ///< 0: it makes one pass
};

struct any_layer {
  std::string name;
  bool everywhere = true;  ///< false: of a list that the CPU alone runs
  router_facts router;
  sy::capacity_traits capacity;
  sy::expert_traits expert;
  reference::config reference;
  std::string_view element;
  std::size_t element_bytes;
  memory_space memory;
  std::size_t (*workspace_bytes)(std::int64_t tokens);
  void (*forward)(any_args const& args, sy::cpu_context const& context);
  void (*store)(double const* from, std::size_t count, void* to);  ///< as elements
  void (*load)(void const* from, std::size_t count, float* to);
  void (*store_router)(double const* from, std::size_t count, void* to);  ///< as elements of the router's weight
  void (*load_router)(void const* from, std::size_t count, float* to);
};

/// The layers that the program has compiled, from the lists of layers.hpp.
std::vector<any_layer> const& compiled_layers();

any_layer const& compiled(std::string const& name);

}  // namespace support
