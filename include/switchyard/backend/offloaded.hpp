#pragma once

#include <switchyard/backend/backend_policy.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/expert/feed_forward.hpp>
#include <switchyard/offload/cache.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace switchyard {

namespace offload {

/// The memory of a backend's places.
template <class Local>
struct memory_of {
  using type = host_memory;
};

/// What chooses the experts' step where their weights come from a cache.
template <class Computation>
struct from_cache {};

}  // namespace offload

namespace backend {

/// Runs a layer as `Local` does, with routed experts that a cache keeps (offload/cache.hpp): `.weights.experts = cache.layer(number)` stands in
/// the place of their matrices and biases. All else of a call is as ever, its context is that of `Local`, and the result has the same bits as
/// that of `Local` with all experts in memory, whatever the store, the budget, the policy and what was expected.
///
/// It is the one backend whose `forward` may wait: after its tokens are routed, for experts that are not resident.
template <class Local>
class offloaded : public Local {
  static constexpr auto label = "offloaded<" + switchyard::name_of<Local>() + ">";
  template <class Layer>
  static constexpr std::string_view local_name = Local::template name_for<Layer>();
  template <class Layer>
  static constexpr auto label_for = "offloaded<" + text_of<local_name<Layer>>() + ">";

 public:
  static constexpr std::string_view name = label;

  /// The name with what a layer makes of it, for `describe`.
  template <class Layer>
  static constexpr std::string_view name_for() {
    return label_for<Layer>;
  }

  template <class Layer>
  static constexpr std::size_t workspace_bytes(std::int64_t tokens) {
    static_assert(
        std::is_same_v<typename Layer::expert::computation, expert::two_products>,
        "switchyard: backend::offloaded keeps the dense matrices of expert::mlp and expert::gated_mlp, and those of "
        "expert::stored_as in blocks (quantised::block_matrix). This expert has others: keep its weights in memory.");
    return Local::template workspace_bytes<Layer>(tokens);
  }
};

}  // namespace backend

template <class Local>
struct expert_storage<backend::offloaded<Local>> {
  static constexpr bool in_cache = true;
  static constexpr bool in_parts = false;
  using source = offload::layer_experts<typename offload::memory_of<Local>::type>;
  template <class Computation>
  using computation = offload::from_cache<Computation>;
};

}  // namespace switchyard
