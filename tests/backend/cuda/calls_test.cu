#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "backend/check.hpp"
#include "catch.hpp"
#include "device.cuh"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"
#include "support/random_problem.hpp"

using namespace support;

namespace {

/// Sets how `run` calls layers until the end of a block.
struct called {
  explicit called(call_mode mode) { current_call_mode() = mode; }
  called(called const&) = delete;
  ~called() { current_call_mode() = call_mode::whole; }
};

void check_same_bits_when(call_mode mode) {
  for_each_layer([&](any_layer const& layer) {
    for (std::int64_t tokens : {0, 70}) {
      problem p = random_problem(layer, tokens, routing::free, 9);
      if (layer.capacity.drops && p.config.strata.empty()) p.config.tokens_per_group = 25;
      outcome const expected = run(p);
      called const now(mode);
      outcome got;
      REQUIRE_NOTHROW(got = run(p));
      CHECK(same_bits(got, expected));
      CHECK(got.guards_intact);
    }
  });
}

/// A layer whose parts lie more than 2^31 elements apart in one allocation.
template <class Element>
using far_layer =
    sy::layer<sy::shape{.hidden = 64, .intermediate = 64, .experts = 2, .top_k = 2}, sy::router::softmax_top_k,
              sy::capacity::dropless, sy::expert::mlp<sy::relu>, sy::backend::cuda, Element>;

}  // namespace

TEST_CASE("on the GPU route, plan and experts give the bits of forward, and the plan is the CPU's", "[gpu]") {
  if (!has_device()) return;
  check_same_bits_when(call_mode::steps);
}

TEST_CASE("forward can be captured in a graph of as many kernels as the layer says, and replayed", "[gpu]") {
  if (!has_device()) return;
  check_same_bits_when(call_mode::captured);
}

TEST_CASE("on the GPU two streams may run the same layer at the same time", "[gpu][small]") {
  if (!has_device()) return;
  using layer = far_layer<float>;
  constexpr int tokens = 40, calls = 2;
  random_numbers random(1);
  auto const floats = [&](std::size_t count) {
    std::vector<float> values(count);
    for (float& v : values) v = static_cast<float>(random.normal()) / 8;
    return values;
  };
  constexpr std::size_t matrices = std::size_t{2} * 64 * 64;
  device_array<float> const router(floats(128)), up(floats(matrices)), down(floats(matrices));
  std::vector<device_array<float>> x, y;
  std::vector<device_array<std::byte>> workspace;
  for (int c = 0; c < calls; ++c) {
    x.emplace_back(floats(tokens * 64));
    y.emplace_back(std::size_t{tokens} * 64);
    workspace.emplace_back(layer::workspace_bytes(tokens));
  }
  auto const forward = [&](int c, cudaStream_t on) {
    layer::forward({.tokens = layer::rows(static_cast<float const*>(x[c].data()), tokens),
                    .weights = {.router = {.weight = router.data()},
                                .up_proj = layer::in_proj(up.data()),
                                .down_proj = layer::out_proj(down.data())},
                    .output = layer::rows(y[c].data(), tokens),
                    .workspace = {workspace[c].data(), workspace[c].size()}},
                   {.stream = on});
  };
  stream const streams[calls];
  std::vector<std::vector<float>> alone;
  for (int c = 0; c < calls; ++c) {
    forward(c, streams[0]);
    streams[0].wait();
    alone.push_back(y[c].copy_out());
  }
  for (int c = 0; c < calls; ++c) forward(c, streams[c]);
  for (stream const& s : streams) s.wait();
  for (int c = 0; c < calls; ++c) CHECK(same_bits(y[c].copy_out(), alone[c]));
}

TEST_CASE("on the GPU more than 2^31 elements lie between rows and between experts", "[gpu]") {
  if (!has_device()) return;
  using layer = far_layer<sy::bfloat16>;
  constexpr std::int64_t far = (std::int64_t{1} << 31) + 64, matrix = 64 * 64;
  sy::bfloat16* memory = nullptr;
  if (cudaMalloc(&memory, (far + 8 * matrix) * sizeof(sy::bfloat16)) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    WARN("not tested: the device has no room for 4 GiB");
    return;
  }
  random_numbers random(2);
  auto const elements = [&](std::int64_t count) {
    std::vector<sy::bfloat16> values(count);
    for (sy::bfloat16& v : values) v = sy::bfloat16(static_cast<float>(random.normal()) / 8);
    return values;
  };
  auto const put = [&](std::int64_t at, std::vector<sy::bfloat16> const& from, std::int64_t first, std::int64_t count) {
    check_cuda(cudaMemcpy(memory + at, from.data() + first, count * 2, cudaMemcpyHostToDevice));
  };
  std::vector<sy::bfloat16> const up = elements(2 * matrix), down = elements(2 * matrix), x = elements(128);
  device_array<sy::bfloat16> const near_up(up), near_down(down), near_x(x), near_y(128);
  for (int e = 0; e < 2; ++e) {
    put(e * far, up, e * matrix, matrix);
    put(e * far + matrix, down, e * matrix, matrix);
    put(e * far + 2 * matrix, x, e * 64, 64);
  }
  std::vector<float> gate(128);
  for (float& g : gate) g = static_cast<float>(random.normal());
  device_array<float> const router(gate);
  device_array<std::byte> const workspace(layer::workspace_bytes(2));
  layer::args args{.tokens = layer::rows(static_cast<sy::bfloat16 const*>(near_x.data()), 2),
                   .weights = {.router = {.weight = router.data()},
                               .up_proj = layer::in_proj(near_up.data()),
                               .down_proj = layer::out_proj(near_down.data())},
                   .output = layer::rows(near_y.data(), 2),
                   .workspace = {workspace.data(), workspace.size()}};
  stream const own;
  layer::forward(args, {.stream = own});
  args.tokens = {memory + 2 * matrix, 2, 64, far};
  args.weights.up_proj = {memory, far, 64, 1};
  args.weights.down_proj = {memory + matrix, far, 64, 1};
  args.output = {memory + 3 * matrix, 2, 64, far};
  layer::forward(args, {.stream = own});
  own.wait();
  std::vector<sy::bfloat16> const expected = near_y.copy_out();
  std::vector<sy::bfloat16> got(128);
  for (int row = 0; row < 2; ++row) {
    check_cuda(cudaMemcpy(got.data() + row * 64, memory + 3 * matrix + row * far, 128, cudaMemcpyDeviceToHost));
  }
  CHECK(same_bits(got, expected));
  cudaFree(memory);
}

namespace {

template <class Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (sy::error const& e) {
    return e.what();
  }
  return "nothing was thrown";
}

}  // namespace

TEST_CASE("the GPU refuses what the CPU refuses, in the same words", "[gpu]") {
  using layer = far_layer<float>;
  float* const somewhere = reinterpret_cast<float*>(std::uintptr_t{1} << 20);
  layer::args args{.tokens = layer::rows(static_cast<float const*>(somewhere), 3),
                   .weights = {.router = {.weight = somewhere},
                               .up_proj = layer::in_proj(somewhere),
                               .down_proj = layer::out_proj(somewhere)},
                   .output = layer::rows(somewhere + 4096, 3)};
  std::string const needed = std::to_string(layer::workspace_bytes(3));
  std::string const expected =
      "switchyard: layer::forward, workspace: expected " + needed + " bytes for 3 tokens, got 0 bytes";
  CHECK(message_of([&] { layer::forward(args); }) == expected);
  CHECK(message_of([&] { sy::backend::cuda::route<layer>(args); }) == expected);
  CHECK(message_of([&] { sy::backend::cuda::plan<layer>(args); }) == expected);
  CHECK(message_of([&] { sy::backend::cuda::experts<layer>(args); }) == expected);
  args.weights.up_proj = {};
  CHECK(message_of([&] { layer::forward(args); }).find("weights.up_proj: expected") != std::string::npos);
}

#if !defined(SWITCHYARD_TESTS_ON_HOPPER)
TEST_CASE("a program that is not compiled for Hopper is told how", "[gpu]") {
  if (!has_device()) return;
  using on_hopper =
      sy::layer<sy::shape{.hidden = 64, .intermediate = 64, .experts = 2, .top_k = 2}, sy::router::softmax_top_k,
                sy::capacity::dropless, sy::expert::mlp<sy::relu>, sy::backend::hopper, sy::bfloat16>;
  int major = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  constexpr int tokens = 20;
  device_array<sy::bfloat16> const x(std::vector<sy::bfloat16>(tokens * 64)), y(tokens * 64),
      matrices(std::vector<sy::bfloat16>(2 * 64 * 64));
  device_array<float> const router(std::vector<float>(2 * 64));
  device_array<std::byte> const workspace(on_hopper::workspace_bytes(tokens));
  on_hopper::args const args{.tokens = on_hopper::rows(static_cast<sy::bfloat16 const*>(x.data()), tokens),
                             .weights = {.router = {.weight = router.data()},
                                         .up_proj = on_hopper::in_proj(matrices.data()),
                                         .down_proj = on_hopper::out_proj(matrices.data())},
                             .output = on_hopper::rows(y.data(), tokens),
                             .workspace = {workspace.data(), workspace.size()}};
  stream const own;
  std::string const said = message_of([&] { on_hopper::forward(args, {.stream = own}); });
  own.wait();
  CHECK(said.find(major == 9 ? "switchyard: backend::hopper: expected a program compiled for the architecture 90a (set "
                               "CMAKE_CUDA_ARCHITECTURES to 90a), got one compiled for "
                             : "switchyard: backend::hopper: expected compute capability 9.0 (take backend::cuda on "
                               "other devices), got ") == 0);
}
#endif

TEST_CASE("a CUDA call that fails is reported with what was expected and what came", "[gpu]") {
  using sy::cuda::check;
  CHECK_NOTHROW(check("step", cudaSuccess));
  if (!has_device()) {
    CHECK(message_of([] {
            check("step", cudaErrorNoDevice);
          }).find("switchyard: backend::cuda, step: expected a CUDA device and its driver, got cudaErrorNoDevice") ==
          0);
    return;
  }
  try {
    check("step", cudaErrorLaunchFailure);
    FAIL("nothing was thrown");
  } catch (sy::cuda_error const& e) {
    CHECK(e.code() == cudaErrorLaunchFailure);
    CHECK(std::string(e.what()).find("switchyard: backend::cuda, step: expected cudaSuccess, got "
                                     "cudaErrorLaunchFailure") == 0);
  }
  std::string const image = message_of([] { check("step", cudaErrorNoKernelImageForDevice); });
  CHECK(image.find("expected a program compiled for this device (set CMAKE_CUDA_ARCHITECTURES to ") !=
        std::string::npos);
  std::string const memory = message_of([] { check("step", cudaErrorInvalidValue, std::size_t{1} << 30); });
  CHECK(memory.find("expected 1073741824 bytes of shared memory per block, got ") != std::string::npos);
}

namespace {

/// What the README's table says, for one token.
template <class Router, class Capacity = sy::capacity::dropless, class Expert = sy::expert::mlp<sy::relu>>
int launches_of(bool auxiliary = false, bool table_given = false) {
  using layer = sy::layer<sy::shape{8, 8, 4, 1}, Router, Capacity, Expert, sy::backend::cuda>;
  typename layer::args args{};
  args.tokens.rows = 1;
  static std::byte workspace[64];  // never written
  args.workspace = workspace;
  static sy::auxiliary_values values;
  if constexpr (sy::makes_logits<Router>) args.auxiliary = auxiliary ? &values : nullptr;
  static float table[1];
  if constexpr (sy::router::are_scaled_by_cluster<typename Router::features>) {
    args.inputs.feature_scale = table_given ? table : nullptr;
  }
  return sy::backend::cuda::launches<layer>(args);
}

}  // namespace

TEST_CASE("a call has as many launches as the table of the backends says", "[gpu]") {
  using namespace sy::router;
  using sy::capacity::factor;
  CHECK(launches_of<switch_top1>() == 5);
  CHECK(launches_of<precomputed>() == 5);
  CHECK(launches_of<switch_top1, sy::capacity::dropless, sy::expert::top_k_units<sy::expert::mlp<sy::relu>, 3>>() == 6);
  CHECK(launches_of<switch_top1, factor<1>>() == 6);
  CHECK(launches_of<switch_top1, sy::capacity::queued<factor<1>, sy::queue::priority>>() == 7);
  CHECK(launches_of<switch_top1>(true) == 6);
  CHECK(launches_of<adaptive_clustering<switch_top1>>() == 12);
  CHECK(launches_of<adaptive_clustering<switch_top1>>(false, true) == 6);
  CHECK(launches_of<adaptive_clustering<switch_top1, vision>>() == 13);
  CHECK(launches_of<adaptive_clustering<switch_top1, vision>>(false, true) == 6);
  CHECK(launches_of<s_base<>>() == 12);
  CHECK(launches_of<s_base<sy::sinkhorn_traits{.iterations = 1}>>(true) == 9);
  CHECK(launches_of<nearest_centers>() == 8);
  CHECK(launches_of<mlp_selector>() == 7);
  CHECK(launches_of<stratified<switch_top1, 2, 2>>() == 2 * 7);
  CHECK(launches_of<stratified<switch_top1, 2, 2>>(true) == 2 * 8);
}
