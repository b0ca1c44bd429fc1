#include "device.cuh"

#include <switchyard/switchyard.cuh>

#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"

/// Router weights in two bytes on the GPU. Lists of layers.hpp compare them with the reference.
using namespace support;

namespace {

template <class Element, class Router, int Hidden>
using routed_by = sy::layer<sy::shape{Hidden, 40, 8, 2}, Router, sy::capacity::dropless,
                            sy::expert::gated_mlp<sy::silu>, sy::backend::cuda, Element>;

template <class Element>
struct routed_outcome {
  std::vector<float> logits, weights;
  std::vector<std::int32_t> experts;
  std::vector<Element> output;
};

/// `skipped` elements stand before the router weight, which then has another alignment.
template <class Layer, class Weight>
routed_outcome<typename Layer::element> run_routed(std::vector<Weight> router, std::int64_t tokens, int skipped) {
  using element = typename Layer::element;
  constexpr sy::shape dims = Layer::dims;
  random_numbers random(9);
  auto const some = [&](std::int64_t count) {
    std::vector<element> values;
    for (std::int64_t i = 0; i < count; ++i) values.push_back(element(static_cast<float>(random.normal())));
    return device_array<element>(values);
  };
  device_array<element> const x = some(tokens * dims.hidden),
                              matrices = some(dims.experts * dims.hidden * dims.intermediate);
  router.insert(router.begin(), skipped, Weight(0.0f));
  device_array<Weight> const weight(router);
  device_array<float> const logits(tokens * dims.experts), weights(tokens * dims.top_k);
  device_array<std::int32_t> const experts(tokens * dims.top_k);
  device_array<element> const output(tokens * dims.hidden);
  device_array<std::byte> const workspace(Layer::workspace_bytes(tokens));
  typename Layer::args args{};
  args.tokens = Layer::rows(static_cast<element const*>(x.data()), tokens);
  args.weights.router.weight = weight.data() + skipped;
  args.weights.gate_proj = args.weights.up_proj = Layer::in_proj(matrices.data());
  args.weights.down_proj = Layer::out_proj(matrices.data());
  args.output = Layer::rows(output.data(), tokens);
  args.workspace = {workspace.data(), workspace.size()};
  args.decisions.experts = experts.data();
  args.decisions.weights = weights.data();
  args.report.logits = logits.data();
  forward_and_wait<Layer>(args);
  return {logits.copy_out(), weights.copy_out(), experts.copy_out(), output.copy_out()};
}

template <class Element, class Weight, int Hidden>
void check_weight_element() {
  using stored = routed_by<Element, sy::router::with_weight_element<sy::router::softmax_top_k, Weight>, Hidden>;
  using widened = routed_by<Element, sy::router::softmax_top_k, Hidden>;
  INFO(sy::describe<stored>());
  random_numbers random(4);
  std::vector<Weight> router;
  for (int i = 0; i < 8 * Hidden; ++i) {
    router.push_back(Weight(static_cast<float>(random.normal() * (random.below(4) > 0 ? 0.3 : 1e-6))));
  }
  std::vector<float> const floats(router.begin(), router.end());
  for (std::int64_t tokens : {1, 37}) {
    auto const expected = run_routed<widened>(floats, tokens, 0);
    for (int skipped : {0, 1}) {
      auto const got = run_routed<stored>(router, tokens, skipped);
      CHECK(same_bits(got.logits, expected.logits));
      CHECK(same_bits(got.experts, expected.experts));
      CHECK(same_bits(got.weights, expected.weights));
      CHECK(same_bits(got.output, expected.output));
    }
  }
}

}  // namespace

TEST_CASE("on the GPU a router weight in two bytes gives the bits of one that was widened to floats", "[gpu]") {
  if (!has_device()) return;
  check_weight_element<float, sy::bfloat16, 37>();
  check_weight_element<sy::bfloat16, sy::bfloat16, 72>();
  check_weight_element<sy::half, sy::half, 48>();
}
