#include <cstdint>
#include <limits>
#include <vector>

#include "backend/check.hpp"
#include "backend/cuda/device.cuh"
#include "backend/hopper/hopper_layers.hpp"
#include "catch.hpp"
#include "reference.hpp"
#include "support/any_layer.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"
#include "support/random_problem.hpp"

/// What calls of backend::hopper share with backend::cuda, and where one becomes the other.
using namespace support;

namespace {

namespace device = sy::backend::device;

/// Whether the graph of a call has the kernel. Nothing is run.
template <class Layer, class Kernel>
bool launches_kernel(typename Layer::args const& args, Kernel* kernel) {
  stream const own;
  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamBeginCapture(own, cudaStreamCaptureModeGlobal));
  Layer::forward(args, {.stream = own});
  check_cuda(cudaStreamEndCapture(own, &graph));
  std::size_t count = 0;
  check_cuda(cudaGraphGetNodes(graph, nullptr, &count));
  std::vector<cudaGraphNode_t> nodes(count);
  check_cuda(cudaGraphGetNodes(graph, nodes.data(), &count));
  bool found = false;
  for (cudaGraphNode_t node : nodes) {
    cudaKernelNodeParams launched{};
    check_cuda(cudaGraphKernelNodeGetParams(node, &launched));
    found = found || launched.func == reinterpret_cast<void*>(kernel);
  }
  cudaGraphDestroy(graph);
  return found;
}

/// Whether a call whose tokens stand `apart` elements too far takes a tile of `backend::cuda`.
template <class Tile, class Layer>
bool takes(int tokens, int apart) {
  using element = typename Layer::element;
  device_array<element> const memory(1 << 16);
  device_array<float> const router(Layer::dims.experts * Layer::dims.hidden);
  device_array<std::byte> const workspace(Layer::workspace_bytes(tokens));
  typename Layer::args args{};
  args.tokens = {memory.data(), tokens, Layer::dims.hidden, Layer::dims.hidden + apart};
  args.output = {memory.data(), tokens, Layer::dims.hidden, Layer::dims.hidden + apart};
  args.workspace = {workspace.data(), workspace.size()};
  args.weights.router.weight = router.data();
  args.weights.gate_proj = args.weights.up_proj = Layer::in_proj(memory.data());
  args.weights.down_proj = Layer::out_proj(memory.data());
  return launches_kernel<Layer>(args, device::product<device::first_product<Layer>, Tile>) &&
         launches_kernel<Layer>(args, device::product<device::second_product<Layer>, Tile>);
}

}  // namespace

TEST_CASE("on Hopper a call whose rows cannot be moved by 16 bytes takes the tile that backend::cuda would take",
          "[gpu][hopper]") {
  if (!has_hopper()) return;
  using layer = tested::shaped<48, 40, sy::expert::gated_mlp<sy::silu>, sy::bfloat16>;
  // Tokens are two thirds more than rows per expert.
  CHECK(takes<device::few_rows, layer>(9, 5));
  CHECK(takes<device::some_rows, layer>(60, 5));
  CHECK(takes<device::many_rows, layer>(90, 5));
  CHECK(takes<device::few_rows, layer>(9, 0));
  CHECK_FALSE(takes<device::many_rows, layer>(90, 0));
}

TEST_CASE("on Hopper many rows that cannot be moved by 16 bytes agree with the reference", "[gpu][hopper]") {
  if (!has_hopper()) return;
  for_each_layer([](any_layer const& layer) {
    if (!layer.name.starts_with("softmax_top_k:2of3/dropless")) return;
    problem const p = random_problem(layer, 210, routing::half_of_the_experts, 3);
    check_against_reference(p, run(p, {.padding = 5}));
  });
}

TEST_CASE("on Hopper padding rows take no slot, count nowhere and give zeros, whatever they hold", "[gpu][hopper]") {
  if (!has_hopper()) return;
  constexpr int tokens = 90;
  for_each_layer([](any_layer const& layer) {
    if (!layer.expert.bias && !layer.capacity.drops) return;
    if (layer.router.precomputed || !layer.reference.strata.empty()) return;
    problem p = random_problem(layer, tokens, routing::free, 7);
    random_numbers random(3);
    for (int t = 0; t < tokens; ++t) p.inputs.active.push_back(random.below(8) > 0 && (t < 30 || t > 40));
    reference::result const expected = reference::forward(p.config, p.weights, p.tokens, p.inputs);
    for (std::size_t i = 0; i < p.tokens.size(); ++i) {
      if (!p.inputs.active[i / p.config.hidden]) p.tokens[i] = std::numeric_limits<double>::quiet_NaN();
    }
    outcome const got = run(p);
    check_decisions(got, expected, decision_tolerance(layer));
    check_auxiliary(got.auxiliary, expected.aux, decision_tolerance(layer));
    CHECK(relative_error(got.output, expected.y) <= output_tolerance(layer));
    CHECK(got.guards_intact);
    for (std::size_t i = 0; i < got.output.size(); ++i) {
      if (!p.inputs.active[i / p.config.hidden] && got.output[i] != 0.0f) FAIL("row " << i / p.config.hidden);
    }
  });
}

TEST_CASE("on Hopper each group of tokens has queues of its own", "[gpu][hopper]") {
  if (!has_hopper()) return;
  for_each_layer([](any_layer const& layer) {
    if (!layer.capacity.drops || !layer.reference.strata.empty()) return;
    problem p = random_problem(layer, 90, routing::free, 7);
    p.config.tokens_per_group = 40;
    check_against_reference(p, run(p));
  });
}
