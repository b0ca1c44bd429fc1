#include "distance.hpp"
#include "layers.hpp"
#include "memory.hpp"
#include "peers.hpp"
#include "reference.hpp"
#include "setup.hpp"
#include "support/described_layer.hpp"
#include "support/margins.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

// A layer of the bench against double: the decisions by the reference of the tests, the products by plain kernels, for the
// host would need minutes.
namespace switchyard::bench {

namespace {

/// What the reference needs to know of the layer at a place of `gpu_layers`; the same on every backend.
template <std::size_t... Places>
reference::config config_at(std::size_t place, std::index_sequence<Places...>) {
  using layers = gpu_layers<backend::cpu>;
  reference::config result;
  ((Places == place ? void(result = support::reference_config<std::tuple_element_t<Places, layers>>()) : void()), ...);
  return result;
}
reference::config config_at(std::size_t place) {
  return config_at(place, std::make_index_sequence<std::tuple_size_v<gpu_layers<backend::cpu>>>());
}

/// Whether CUB sorts the pairs of a call as the layer does; needs no cuBLAS.
bool cub_plans_alike(gpu_layer const& of, device_weights const& weights, std::int64_t tokens, std::uint32_t set) {
  cudaStream_t const stream = current_gpu().stream;
  device_memory<bfloat16> const output(tokens * of.dims.hidden);
  device_call call(of, tokens, skew::zipf, set, weights);
  call.plan(output.data(), stream);
  dispatch_plan const ours = of.plan_of(call.memory(output.data()));
  std::int64_t const pairs = tokens * of.dims.top_k;
  device_memory<std::int32_t> const experts(experts_of_pairs(call, output.data()));
  cub_plan const theirs(pairs, of.dims.experts);
  theirs.enqueue(experts.data(), stream);
  check_cuda(cudaStreamSynchronize(stream));
  // An expert's rows may stand in another order.
  auto const by_expert = [&](std::vector<std::int32_t> rows) {
    for (int e = 0; e < of.dims.experts; ++e) {
      std::sort(rows.begin() + call.offsets[e], rows.begin() + call.offsets[e + 1]);
    }
    return rows;
  };
  auto const pair_of = copied(theirs.pair_of.data(), call.rows), row_of = copied(theirs.row_of.data(), pairs);
  bool places = true;
  std::int64_t placed = 0;
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    if (row_of[pair] < 0) continue;
    ++placed;
    places = places && row_of[pair] < call.rows && pair_of[row_of[pair]] == pair;
  }
  return copied(theirs.offsets.data(), of.dims.experts + 1) == call.offsets && placed == call.rows && places &&
         by_expert(pair_of) == by_expert(copied(ours.pair_of, call.rows));
}

/// One forward on fresh tokens, on poisoned memory; prints a line.
bool agrees_with_double(gpu_layer const& of, reference::config const& config, device_weights const& weights,
                        std::int64_t tokens, std::uint32_t set) {
  std::int64_t const pairs = tokens * of.dims.top_k;
  int const count = of.dims.experts;
  cudaStream_t const stream = current_gpu().stream;
  device_call const call(of, tokens, skew::zipf, set, weights);
  device_memory<bfloat16> const output(tokens * of.dims.hidden);
  device_memory<std::int32_t> const got_experts(pairs);
  device_memory<float> const got_weights(pairs);
  for (auto const& [to, bytes] : {std::pair<void*, std::size_t>{output.data(), output.bytes()},
                                  {got_experts.data(), got_experts.bytes()},
                                  {got_weights.data(), got_weights.bytes()}}) {
    check_cuda(cudaMemset(to, 0xff, bytes));
  }
  gpu_memory memory = call.memory(output.data());
  memory.decisions.experts = got_experts.data();
  memory.decisions.weights = got_weights.data();
  of.enqueue[whole_step](memory, stream);

  device_memory<double> const logits(tokens * count), inner(pairs * of.dims.intermediate),
      right(tokens * of.dims.hidden);
  exact_logits(of, memory, logits.data(), stream);
  check_cuda(cudaStreamSynchronize(stream));
  reference::numbers const exact = copied(logits.data(), logits.size());
  reference::result const decided = reference::decide(config, exact, {}, tokens);

  device_memory<std::int32_t> const experts(decided.ids);
  device_memory<double> const combine(decided.weights);
  exact_inner(of, memory, experts.data(), combine.data(), inner.data(), stream);
  exact_output(of, memory, inner.data(), experts.data(), combine.data(), right.data(), stream);
  check_cuda(cudaStreamSynchronize(stream));

  // Rounding may decide where two logits are as good as equal: such tokens say nothing.
  std::vector<bool> clear(static_cast<std::size_t>(tokens));
  for (std::int64_t t = 0; t < tokens; ++t) {
    reference::numbers const of_token(exact.begin() + t * count, exact.begin() + (t + 1) * count);
    clear[t] = support::choice_is_clear(config, of_token, {});
  }
  std::vector<std::int32_t> const ids = copied(got_experts.data(), pairs);
  std::vector<float> const combine_weights = copied(got_weights.data(), pairs);
  std::int64_t other_experts = 0, unclear = 0;
  double weight_error = 0.0;
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    if (!clear[pair / of.dims.top_k]) {
      ++unclear;
      continue;
    }
    other_experts += ids[pair] != decided.ids[pair];
    double const apart = std::abs(combine_weights[pair] - decided.weights[pair]);
    weight_error = std::isnan(apart) ? apart : std::max(weight_error, apart);
  }
  double const error =
      distance(output.data(), right.data(), tokens, of.dims.hidden, stream, [&](std::int64_t t) { return clear[t]; });
  bool const plans = cub_plans_alike(of, weights, tokens, set);
  bool const agrees = error < bfloat16_tolerance && other_experts == 0 && weight_error < 1e-5 && plans;
  std::printf("%6lld tokens  error %.1e  weights %.1e  experts %s  CUB's plan %s%s  %s\n",
              static_cast<long long>(tokens), error, weight_error, other_experts == 0 ? "equal" : "DIFFER",
              plans ? "equal" : "DIFFERS",
              unclear == 0 ? "" : (", " + std::to_string(unclear / of.dims.top_k) + " tokens near a tie").c_str(),
              agrees ? "ok" : "FAILED");
  return agrees;
}

}  // namespace

/// Token numbers for every size of tile.
bool agrees_with_double(gpu_layer const& of, std::size_t place) {
  std::printf("%s\n", of.name.c_str());
  device_weights const weights(of, 0);
  reference::config const config = config_at(place);
  bool result = true;
  std::vector<std::int64_t> cases{1, 40, 200, 1000};
  if (current_gpu().smoke) cases.resize(2);
  std::uint32_t set = 100;
  for (std::int64_t tokens : cases) result = agrees_with_double(of, config, weights, tokens, ++set) && result;
  std::fflush(stdout);
  return result;
}

}  // namespace switchyard::bench
