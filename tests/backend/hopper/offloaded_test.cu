#include <tuple>

#include "backend/cuda/device.cuh"
#include "backend/cuda/offloaded.cuh"
#include "backend/hopper/hopper_layers.hpp"
#include "catch.hpp"

/// Experts that a cache brings to a Hopper GPU: weights come through maps of all places.
using namespace support;

namespace {

// clang-format off
using kinds_of_layers = std::tuple<
    tested::shaped<136, 136, tested::expert::with_bias<tested::gated_mlp<sy::clamped_swiglu<>>>, sy::half>,
    tested::shaped<136, 72, tested::top_k_units<tested::gated_mlp<sy::silu>, 20>, sy::bfloat16>,
    tested::layer<sy::shape{136, 72, 8, 2}, tested::softmax_top_k, tested::dropless, tested::with_shared<tested::mlp<sy::gelu>, 328, sy::shared_gate::sigmoid>, sy::backend::hopper, sy::half>>;
// clang-format on

}  // namespace

TEST_CASE("on Hopper offloaded experts give the bits of those in memory", "[gpu][hopper][offload]") {
  if (!has_hopper()) return;
  check_all_offloaded(static_cast<kinds_of_layers*>(nullptr));
}
