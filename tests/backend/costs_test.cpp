#include <switchyard/switchyard.hpp>

#include <cstdint>

#include "catch.hpp"

namespace sy = switchyard;
namespace presets = switchyard::presets;

namespace {

template <class Layer>
std::int64_t parameters() {
  return sy::costs<Layer>(0).parameters;
}

template <class Layer>
std::int64_t active() {
  return sy::costs<Layer>(0).active_parameters;
}

template <class Router, class Expert, class Element = float>
using small = sy::layer<sy::shape{.hidden = 10, .intermediate = 3, .experts = 4, .top_k = 2}, Router,
                        sy::capacity::dropless, Expert, sy::backend::cpu, Element>;

}  // namespace

TEST_CASE("names of layers are stable", "[layer]") {
  CHECK(sy::describe<small<sy::router::softmax_top_k, sy::expert::gated_mlp<sy::silu>>>() ==
        "softmax_top_k:2of4/dropless/gated_mlp<silu>/10x3/cpu/float");
  CHECK(sy::describe<small<sy::router::precomputed, sy::expert::mlp<sy::gelu_tanh>, sy::half>>() ==
        "precomputed:2of4/dropless/mlp<gelu_tanh>/10x3/cpu/half");
}

TEST_CASE("active parameters are those of top_k experts, the router and the shared expert", "[layer]") {
  CHECK(active<presets::mixtral_8x7b<>>() == 2 * 176'160'768 + 32'768);
  CHECK(active<presets::switch_base_128<>>() == 4'718'592 + 98'304);
  CHECK(active<presets::qwen1_5_moe_a2_7b<>>() == 4 * 8'650'752 + 122'880 + 34'603'008 + 2048);
  CHECK(active<presets::gpt_oss_20b<>>() == 4 * (24'883'200 + 8'640) + 92'160 + 32);
}

TEST_CASE("a router counts where the layer owns it", "[layer]") {
  using expert = sy::expert::mlp<sy::relu>;  // 2 * 10 * 3 = 60 each
  using sy::router::softmax_top_k;
  CHECK(parameters<small<softmax_top_k, expert>>() == 4 * 60 + 40);
  CHECK(parameters<small<sy::router::with_bias<softmax_top_k>, expert>>() == 4 * 60 + 44);
  CHECK(parameters<small<sy::router::shared<softmax_top_k>, expert>>() == 4 * 60);
  CHECK(parameters<small<sy::router::precomputed, expert>>() == 4 * 60);
}

TEST_CASE("floating-point operations by hand", "[layer]") {
  using plain = small<sy::router::softmax_top_k, sy::expert::mlp<sy::relu>>;
  CHECK(sy::costs<plain>(0).flops == 0.0);
  CHECK(sy::costs<plain>(7).flops == 7.0 * 2 * (40 + 2 * 60));
  using gated = small<sy::router::precomputed, sy::expert::gated_mlp<sy::silu>>;
  CHECK(sy::costs<gated>(7).flops == 7.0 * 2 * (2 * 90));
  using with_shared = small<sy::router::shared<sy::router::softmax_top_k>,
                            sy::expert::with_shared<sy::expert::gated_mlp<sy::silu>, 5, sy::shared_gate::sigmoid>>;
  CHECK(sy::costs<with_shared>(1).flops == 2.0 * (40 + 2 * 90 + 150 + 10));
  CHECK(sy::costs<presets::mixtral_8x7b<>>(1).flops == 704'708'608.0);  // 2 * (32768 + 2 * 176160768)
  CHECK(sy::costs<presets::mixtral_8x7b<>>(1'000'000'000).flops == 704'708'608e9);
}

TEST_CASE("least bytes by hand", "[layer]") {
  using plain = small<sy::router::softmax_top_k, sy::expert::mlp<sy::relu>>;
  CHECK(sy::costs<plain>(0).bytes == 0.0);
  CHECK(sy::costs<plain>(7, 3).bytes == 4.0 * (3 * 60 + 40 + 2 * 7 * 10));
  using two_bytes = small<sy::router::softmax_top_k, sy::expert::mlp<sy::relu>, sy::bfloat16>;
  CHECK(sy::costs<two_bytes>(7, 3).bytes == 2.0 * (3 * 60 + 2 * 7 * 10) + 4.0 * 40);
  using biased =
      small<sy::router::with_bias<sy::router::softmax_top_k>, sy::expert::with_bias<sy::expert::mlp<sy::relu>>>;
  CHECK(sy::costs<biased>(1, 2).bytes == 4.0 * (2 * (60 + 13) + 44 + 20));
}

TEST_CASE("uniform routing of one token meets top_k experts, of many tokens all", "[layer]") {
  using layer = presets::olmoe_1b_7b<>;
  CHECK(sy::expected_experts<layer>(0) == 0.0);
  CHECK(sy::expected_experts<layer>(1) == Catch::Approx(8.0));
  CHECK(sy::expected_experts<layer>(2) == Catch::Approx(15.0));  // 64 * (1 - (7 / 8)^2)
  CHECK(sy::expected_experts<layer>(1000) == Catch::Approx(64.0));
  CHECK(sy::costs<layer>(2).bytes == Catch::Approx(sy::costs<layer>(2, 15.0).bytes));
  using every = sy::layer<sy::shape{.hidden = 2, .intermediate = 2, .experts = 2, .top_k = 2},
                          sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  CHECK(sy::expected_experts<every>(1) == Catch::Approx(2.0));
}
