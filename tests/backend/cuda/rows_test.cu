#include "backend/cuda/device.cuh"

#include <switchyard/switchyard.cuh>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "catch.hpp"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"
#include "support/row_layers.hpp"

/// Product keys, and experts that are rows, on the GPU.
namespace sy = switchyard;
using namespace support;
using sy::router::product_keys;
using sy::router::query::projected;
using sy::router::query::token;
namespace weighting = sy::router::weighting;
using sy::expert::value_row, sy::expert::neuron, sy::expert::with_output_gate, sy::expert::with_gated_projection;

namespace {

template <class Router, class Expert, int Keys, int TopK, int Hidden, class Element = float>
using rows = sy::layer<sy::shape{Hidden, 1, Keys* Keys, TopK}, Router, sy::capacity::dropless, Expert,
                       sy::backend::cuda, Element>;

/// A layer against the reference, in every way that a call may go.
template <class Layer>
void check_layer() {
  INFO(sy::describe<Layer>());
  double const tolerance = sizeof(typename Layer::element) == 4 ? 1e-5 : 1e-2;
  for (std::int64_t tokens : {0, 1, 37}) {
    row_problem const p = random_rows<Layer>(tokens, 3);
    check_rows(p, run_rows<Layer>(p), tolerance);
  }
  row_problem p = random_rows<Layer>(29, 4);
  row_outcome const once = run_rows<Layer>(p);
  check_rows(p, once, tolerance);
  row_outcome const again = run_rows<Layer>(p, {.padding = 3, .in_place = true});
  CHECK(again.guards_intact);
  CHECK(same_bits(again.output, once.output));
  CHECK(same_bits(run_rows<Layer>(p, {.decisions = false}).output, once.output));
  current_call_mode() = call_mode::captured;
  CHECK(same_bits(run_rows<Layer>(p).output, once.output));
  current_call_mode() = call_mode::whole;

  row_problem lost = p;
  lost.tokens[3 * p.hidden] = std::numeric_limits<double>::quiet_NaN();
  row_outcome const got = run_rows<Layer>(lost);
  for (std::size_t i = 0; i < got.output.size(); ++i) {
    bool const is_lost = i / static_cast<std::size_t>(p.hidden) == 3;
    if (is_lost ? !std::isnan(got.output[i]) : got.output[i] != once.output[i]) FAIL(i);
  }
  CHECK(got.experts[3 * static_cast<std::size_t>(p.top_k)] == -1);

  p.active.assign(29, 1);
  for (std::size_t t : {0, 17, 28}) {
    p.active[t] = 0;
    for (int i = 0; i < p.hidden; ++i)
      p.tokens[t * static_cast<std::size_t>(p.hidden) + i] = std::numeric_limits<double>::quiet_NaN();
  }
  check_rows(p, run_rows<Layer>(p), tolerance);
}

}  // namespace

TEST_CASE("on the GPU rows chosen by product keys are those of all sums sorted", "[gpu]") {
  if (!has_device()) return;
  check_layer<rows<product_keys<7, 2, token, weighting::relu>, value_row, 7, 10, 40>>();
  check_layer<rows<product_keys<140, 2, projected<22>>, with_output_gate<value_row>, 140, 24, 33>>();
  check_layer<rows<product_keys<5, 2, projected<8>>, value_row, 5, 24, 264, sy::bfloat16>>();
  check_layer<rows<product_keys<9, 1, token>, with_output_gate<neuron<sy::gelu>>, 9, 70, 72, sy::half>>();
  check_layer<rows<sy::router::summed_product_keys<8, 3, token>, value_row, 8, 64, 40>>();
  check_layer<rows<product_keys<9, 2, projected<12>>, with_gated_projection<value_row>, 9, 10, 70>>();
  check_layer<rows<product_keys<7, 1, token>, with_output_gate<with_gated_projection<neuron<sy::gelu>>>, 7, 9, 136,
                   sy::bfloat16>>();
  check_layer<
      rows<sy::router::summed_product_keys<8, 3, projected<6>, weighting::softmax>, neuron<sy::relu>, 8, 20, 24>>();
}

TEST_CASE("on the GPU equal sums go to the lowest ids, as on the CPU", "[gpu]") {
  if (!has_device()) return;
  // Half scores are the tokens' halves: keys are unit vectors.
  constexpr int keys = 200, kept = 33;
  using on_gpu = rows<product_keys<keys, 1, token>, value_row, keys, kept, 2 * keys>;
  using on_cpu = sy::layer<on_gpu::dims, on_gpu::router, on_gpu::capacity, on_gpu::expert>;
  row_problem p;
  p.hidden = p.width = 2 * keys;
  p.keys = keys;
  p.top_k = kept;
  p.first_keys.assign(keys * keys, 0.0);
  for (int i = 0; i < keys; ++i) p.first_keys[static_cast<std::size_t>(i * keys + i)] = 1.0;
  p.second_keys = p.first_keys;
  p.down.assign(std::size_t{keys} * keys * 2 * keys, 0.0);
  random_numbers random(3);
  for (int i = 0; i < 20 * 2 * keys; ++i) {
    bool const second = i % (2 * keys) >= keys, rounded = i / (2 * keys) % 2 == 0;
    p.tokens.push_back(second && rounded ? random.below(9) * 0x1p-26 : random.below(7) / 4.0);
  }
  row_outcome const got = run_rows<on_gpu>(p), expected = run_rows<on_cpu>(p);
  CHECK(got.experts == expected.experts);
  CHECK(same_bits(got.scores, expected.scores));
}

TEST_CASE("on the GPU rows by precomputed routes, and other experts by product keys", "[gpu]") {
  if (!has_device()) return;
  using layer = sy::layer<sy::shape{24, 1, 50, 4}, sy::router::precomputed, sy::capacity::dropless, value_row,
                          sy::backend::cuda, sy::bfloat16>;
  row_problem p = random_rows<rows<product_keys<8, 1, token>, value_row, 8, 4, 24, sy::bfloat16>>(11, 5);
  p.down.resize(50 * 24);
  random_numbers random(5);
  for (int i = 0; i < 44; ++i) {
    p.ids.push_back(random.below(51) - 1);
    p.id_weights.push_back(static_cast<float>(random.normal()));
  }
  check_rows(p, run_rows<layer>(p), 1e-2);

  using planned = sy::layer<sy::shape{8, 6, 9, 4}, product_keys<3, 2, token>, sy::capacity::dropless,
                            sy::expert::mlp<sy::relu>, sy::backend::cuda>;
  row_problem const q = random_rows<rows<product_keys<3, 2, token>, value_row, 3, 4, 8>>(40, 6);
  auto const floats = [](reference::numbers const& v) {
    return device_array<float>(std::vector<float>(v.begin(), v.end()));
  };
  device_array<float> const x = floats(q.tokens), first = floats(q.first_keys), second = floats(q.second_keys);
  device_array<float> const up(std::vector<float>(9 * 48, 0.5f)), down(std::vector<float>(9 * 48, 0.25f)), y(40 * 8);
  device_array<std::int32_t> const experts(160);
  device_array<std::int64_t> const load(9);
  device_array<std::byte> const scratch(planned::workspace_bytes(40));
  planned::args a;
  a.tokens = planned::rows(static_cast<float const*>(x.data()), 40);
  a.weights.router.first_keys = first.data();
  a.weights.router.second_keys = second.data();
  a.weights.up_proj = planned::in_proj(up.data());
  a.weights.down_proj = planned::out_proj(down.data());
  a.output = planned::rows(y.data(), 40);
  a.workspace = {scratch.data(), scratch.size()};
  a.decisions.experts = experts.data();
  a.decisions.load = load.data();
  forward_and_wait<planned>(a);
  row_outcome const expected = row_reference(q);
  CHECK(experts.copy_out() == expected.experts);
  CHECK(load.copy_out() == expected.load);
  // All experts are alike, and the weights of a head have the sum 1.
  std::vector<float> const got = y.copy_out();
  for (std::size_t t = 0; t < 40; ++t) {
    double sum = 0;
    for (std::size_t i = 0; i < 8; ++i) sum += q.tokens[t * 8 + i];
    CHECK(got[t * 8] == Catch::Approx(2.0 * 6.0 * 0.25 * std::max(0.5 * sum, 0.0)).margin(1e-5));
  }
}

TEST_CASE("on the GPU a call of rows has as many launches as the table of the backends says", "[gpu]") {
  auto const launches = []<class Layer>(Layer const*, std::int64_t tokens, bool asked) {
    typename Layer::args args{};
    args.tokens = Layer::rows(static_cast<typename Layer::element const*>(nullptr), tokens);
    std::vector<std::byte> const scratch(1024);
    args.workspace = {const_cast<std::byte*>(scratch.data()), scratch.size()};  // nothing looks at it
    std::int64_t load = 0;
    if (asked) args.decisions.load = &load;
    return sy::backend::cuda::launches<Layer>(args);
  };
  rows<product_keys<7, 2, token>, value_row, 7, 10, 40> const* const plain = nullptr;
  rows<product_keys<7, 2, projected<8>>, with_output_gate<value_row>, 7, 10, 40> const* const gated = nullptr;
  CHECK(launches(plain, 40, false) == 3 + 1);
  CHECK(launches(plain, 40, true) == 3 + 1 + 2);
  CHECK(launches(plain, 1025, false) == 2 * 3 + 1);
  CHECK(launches(gated, 40, false) == 4 + 2);
  rows<product_keys<7, 2, token>, with_gated_projection<value_row>, 7, 10, 40> const* const gated_projection = nullptr;
  CHECK(launches(gated_projection, 40, false) == 3 + 1 + 2);
}
