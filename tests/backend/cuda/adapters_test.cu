#include "support/adapters.hpp"

#include <cmath>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "device.cuh"
#include "support/compare.hpp"

/// Low-rank adapters on the GPU.
using namespace support;

TEST_CASE("on the GPU each token meets its adapter, and one without meets none", "[gpu][adapters]") {
  if (!has_device()) return;
  using layers = adapter_layers<sy::backend::cuda>::type;
  check_all_adapters<layers>(3);
  check_adapters<std::tuple_element_t<0, layers>>(90);
  adapters_problem<std::tuple_element_t<0, layers>> const p(3);
  CHECK(sy::backend::cuda::launches(p.args) == 5 + 2);
}

TEST_CASE("on the GPU an adapter that does not exist makes its token's outputs NaN", "[gpu][adapters]") {
  if (!has_device()) return;
  adapters_problem<std::tuple_element_t<0, adapter_layers<sy::backend::cuda>::type>> p(3);
  std::vector<float> const y = p.run();
  p.adapter[1] = 3;
  std::vector<float> const given = p.run();
  int wrong = 0;
  for (int i = 0; i < 120; ++i) wrong += i / 40 == 1 ? !std::isnan(given[i]) : given[i] != y[i];
  CHECK(wrong == 0);
}

TEST_CASE("on the GPU adapters see inner values beyond the range of half", "[gpu][adapters]") {
  if (!has_device()) return;
  using sy::half;
  using layer = sy::layer<sy::shape{8, 64, 1, 1}, sy::router::precomputed, sy::capacity::dropless,
                          sy::expert::adapters<1, 1, sy::expert::mlp<sy::relu>>, sy::backend::cuda, half>;
  // Half of the inner values are 80000, the others 400; the term of the first product adds 8 to each.
  placed_arrays memory(reached<sy::backend::cuda>::memory());
  std::vector<half> up;
  for (int i = 0; i < 64 * 8; ++i) up.push_back(half(i < 32 * 8 ? 100.0f : 0.5f));
  auto const all = [&](int count, float value) {
    return static_cast<half const*>(memory.put(std::vector<half>(static_cast<std::size_t>(count), half(value))));
  };
  std::size_t const bytes = layer::workspace_bytes(2);
  layer::args args{};
  args.tokens = layer::rows(all(16, 100.0f), 2);
  args.weights.up_proj = layer::in_proj(memory.put(up), all(8, 0.01f), all(64, 1.0f));
  args.weights.down_proj = layer::out_proj(all(8 * 64, 0x1p-12f), all(64, 0x1p-10f), all(8, 0.5f));
  args.output = layer::rows(memory.room<half>(16), 2);
  args.workspace = {memory.room<std::byte>(bytes), bytes};
  args.inputs = {memory.put(std::vector<std::int32_t>{0, 0}), memory.put(std::vector<float>{1, 1})};
  args.expert_inputs.adapter = memory.put(std::vector<std::int32_t>{-1, 0});
  reached<sy::backend::cuda>::forward<layer>(args, {});
  auto const y = memory.get<half>(args.output.data, 16);
  double const plain = 32.0 * 80400 / 4096, inner = 32.0 * (80400 + 16);
  CHECK(static_cast<float>(y[0]) == Catch::Approx(plain).epsilon(2e-3));
  CHECK(static_cast<float>(y[8]) == Catch::Approx(inner / 4096 + 0.5 * inner / 1024).epsilon(2e-3));
}
