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
