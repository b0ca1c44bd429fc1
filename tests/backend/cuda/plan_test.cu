#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "catch.hpp"
#include "device.cuh"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"

using namespace support;

namespace {

template <class Capacity, int Experts = 5, int TopK = 3>
using planned = sy::layer<sy::shape{.hidden = 4, .intermediate = 4, .experts = Experts, .top_k = TopK},
                          sy::router::precomputed, Capacity, sy::expert::mlp<sy::relu>, sy::backend::cuda>;

using sy::capacity::queued;
using half_of_them = sy::capacity::factor<1, 2>;
using planned_layers = std::tuple<                                 //
    planned<sy::capacity::dropless>,                               //
    planned<sy::capacity::dropless, 1, 1>,                         //
    planned<sy::capacity::dropless, 600, 2>,                       // more experts than threads
    planned<sy::capacity::dropless, 40, 33>,                       // more choices than lanes
    planned<queued<half_of_them, sy::queue::token_order>>,         //
    planned<queued<half_of_them, sy::queue::choice_order>>,        //
    planned<queued<half_of_them, sy::queue::priority>>,            //
    planned<queued<half_of_them, sy::queue::choice_order>, 9, 9>,  //
    planned<sy::capacity::renormalised<queued<half_of_them, sy::queue::priority>>, 2, 1>>;

/// Plans random routes on both backends. Some rows are padding, and some tokens name an expert twice.
template <class Layer>
void check_plan(std::int64_t tokens, std::int64_t tokens_per_group) {
  INFO(sy::describe<Layer>() << ", " << tokens << " tokens, " << tokens_per_group << " in a group");
  constexpr sy::shape dims = Layer::dims;
  std::int64_t const pairs = tokens * dims.top_k;
  random_numbers random(static_cast<unsigned>(tokens));
  std::vector<std::int32_t> ids(pairs);
  std::vector<float> weights(pairs), priority(tokens);
  std::vector<std::uint8_t> active(tokens);
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    ids[pair] = static_cast<std::int32_t>(random.below(dims.experts));
    weights[pair] = static_cast<float>(random.below(50)) / 10 - 1;  // many are equal
  }
  for (std::uint8_t& a : active) a = random.below(10) > 0;

  device_array<std::int32_t> const device_ids(ids);
  device_array<float> const device_weights(weights),
      zeros(std::vector<float>(4 * std::max<std::int64_t>(tokens, 4 * dims.experts)));
  device_array<std::uint8_t> const device_active(active);
  device_array<float> const output(tokens * dims.hidden);
  device_array<std::byte> const workspace(Layer::workspace_bytes(tokens));
  device_array<std::int64_t> const device_counts(dims.experts), device_load(dims.experts);
  typename Layer::args args{};
  args.tokens = Layer::rows(static_cast<float const*>(zeros.data()), tokens);
  args.weights.up_proj = Layer::in_proj(zeros.data());
  args.weights.down_proj = Layer::out_proj(zeros.data());
  args.output = Layer::rows(output.data(), tokens);
  args.workspace = {workspace.data(), workspace.size()};
  args.inputs = {device_ids.data(), device_weights.data()};
  args.tokens_per_group = tokens_per_group;
  args.active = device_active.data();
  args.decisions.counts = device_counts.data();
  args.decisions.load = device_load.data();
  stream const own;
  sy::backend::cuda::route<Layer>(args, {.stream = own});
  sy::backend::cuda::plan<Layer>(args, {.stream = own});
  own.wait();

  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    if (active[pair / dims.top_k] != 0) continue;
    ids[pair] = -1;
    weights[pair] = 0.0f;
  }
  for (std::int64_t t = 0; t < tokens; ++t) priority[t] = weights[t * dims.top_k];
  std::vector<std::int32_t> used(dims.experts), order(tokens), offsets(dims.experts + 1), pair_of(pairs), row_of(pairs);
  std::vector<std::int64_t> load(dims.experts), counts(dims.experts);
  std::vector<std::uint8_t> dropped(pairs);
  sy::dispatch::make_plan<typename Layer::capacity, dims>({.tokens = tokens,
                                                           .tokens_per_group = tokens_per_group,
                                                           .active = active.data(),
                                                           .experts = ids.data(),
                                                           .weights = weights.data(),
                                                           .priority = priority.data(),
                                                           .dropped = dropped.data(),
                                                           .load = load.data(),
                                                           .used = used.data(),
                                                           .order = order.data()},
                                                          {offsets.data(), pair_of.data(), row_of.data()});
  pair_of.resize(offsets[dims.experts]);
  for (int e = 0; e < dims.experts; ++e) counts[e] = offsets[e + 1] - offsets[e];

  auto const copy = [](std::int32_t const* from, std::int64_t count) {
    std::vector<std::int32_t> to(count);
    if (count > 0) check_cuda(cudaMemcpy(to.data(), from, count * sizeof(*from), cudaMemcpyDeviceToHost));
    return to;
  };
  sy::dispatch_plan const plan = sy::backend::cuda::plan_of<Layer>(args);
  CHECK(same_bits(copy(plan.offsets, dims.experts + 1), offsets));
  CHECK(same_bits(copy(plan.pair_of, offsets[dims.experts]), pair_of));
  CHECK(same_bits(copy(plan.row_of, pairs), row_of));
  CHECK(same_bits(device_counts.copy_out(), counts));
  CHECK(same_bits(device_load.copy_out(), load));
}

template <class... Layers>
void check_plans(std::tuple<Layers...> const*, std::int64_t tokens, std::int64_t tokens_per_group) {
  (check_plan<Layers>(tokens, tokens_per_group), ...);
}

}  // namespace

TEST_CASE("the GPU's plan is the CPU's, also where a token names an expert twice", "[gpu]") {
  if (!has_device()) return;
  auto const* const layers = static_cast<planned_layers*>(nullptr);
  for (std::int64_t tokens : {0, 1, 31, 32, 33, 70}) check_plans(layers, tokens, 0);
  for (std::int64_t tokens_per_group : {1, 7, 32, 69, 71}) check_plans(layers, 70, tokens_per_group);
}

TEST_CASE("the GPU's plan of more pairs than a block has threads for at once is the CPU's", "[gpu]") {
  if (!has_device()) return;
  check_plan<planned<sy::capacity::dropless>>(6000, 0);
  check_plan<planned<queued<half_of_them, sy::queue::token_order>>>(6000, 0);
  check_plan<planned<queued<half_of_them, sy::queue::choice_order>>>(6000, 5900);
  check_plan<planned<queued<half_of_them, sy::queue::priority>>>(6000, 0);
}
