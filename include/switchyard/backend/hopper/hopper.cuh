#pragma once

#include <switchyard/backend/cuda/cuda.cuh>
#include <switchyard/backend/hopper/products.cuh>
#include <switchyard/backend/hopper/tuning.cuh>
#include <switchyard/core/text.hpp>

#include <string_view>

namespace switchyard::backend {

/// Runs a layer on a Hopper GPU (compute capability 9.0), compiled for the architecture 90a, with a tuning of the
/// caller's: a struct with a name and `template <class Layer> static constexpr hopper_tuning of()`.
///
/// Like `backend::cuda`, but for the products of experts with many rows. These are kernels of their own where elements have
/// two bytes and the widths of the layer are multiples of eight; other layers have the products of `backend::cuda`, and
/// `describe` calls the backend `hopper(cuda)`. Calls with few rows per expert, and with matrices whose rows cannot be
/// moved by 16 bytes, take them, too: `products_of` says so.
template <class Tuning>
class hopper_with : public switchyard::cuda::layer_steps<switchyard::hopper::tuned_products<Tuning>> {
  using steps = switchyard::cuda::layer_steps<switchyard::hopper::tuned_products<Tuning>>;

  static constexpr auto label() {
    if constexpr (Tuning::name.empty()) {
      return text("hopper");
    } else {
      return "hopper_with<" + switchyard::name_of<Tuning>() + ">";
    }
  }
  static constexpr auto own_label = label();
  static constexpr auto fallen_back_label = own_label + "(cuda)";

 public:
  static constexpr std::string_view name = own_label;

  /// The name with what a layer makes of it, for `describe`.
  template <class Layer>
  static constexpr std::string_view name_for() {
    return switchyard::hopper::has_grouped_products<Layer>() ? std::string_view(own_label)
                                                             : std::string_view(fallen_back_label);
  }

  template <class Layer>
  static void forward(forward_args<Layer> const& args, cuda_context const& where) {
    check_device();
    steps::template forward<Layer>(args, where);
  }

  static void check_device() { switchyard::hopper::check_hopper(); }

  /// What the products of a call are.
  template <class Layer>
  static product_kind products_of(forward_args<Layer> const& args) {
    if constexpr (!switchyard::hopper::has_grouped_products<Layer>()) {
      return product_kind::portable;
    } else {
      auto const both = steps::products_of_call(args);
      return switchyard::hopper::tuned_products<Tuning>::template choose<Layer>(both.in, both.out);
    }
  }
};

/// The same with our own tuning.
struct hopper : hopper_with<default_hopper_tuning> {};

}  // namespace switchyard::backend
