#pragma once

#include "compare.cuh"
#include "memory.cuh"
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
#include <type_traits>
#include <utility>
#include <vector>

/// A layer of the bench against double: the decisions by the reference of the tests, the products by plain kernels, for
/// the host would need minutes.
namespace switchyard::bench {

__device__ inline double exact(relu, double x) { return x > 0.0 ? x : 0.0; }
__device__ inline double exact(silu, double gate, double up) { return gate / (1.0 + exp(-gate)) * up; }
/// Source: OpenAI 2025, gpt-oss model card, section 2.2: limit 7, alpha 1.702.
__device__ inline double exact(clamped_swiglu<>, double gate, double up) {
  double const g = fmin(gate, 7.0), u = fmin(fmax(up, -7.0), 7.0);
  return g / (1.0 + exp(-1.702 * g)) * (u + 1.0);
}

template <class T>
__device__ double wide(T value) {
  return static_cast<double>(static_cast<float>(value));
}

/// a . b, by one warp.
template <class A, class B>
__device__ double dot(A const* a, B const* b, int count) {
  double sum = 0.0;
  for (int i = static_cast<int>(threadIdx.x % 32); i < count; i += 32) {
    double x, y;
    if constexpr (std::is_same_v<A, double>) {
      x = a[i];
    } else {
      x = wide(a[i]);
    }
    y = wide(b[i]);
    sum += x * y;
  }
  return sum_of_warp(sum);
}

// Each of these: one warp for each result, blockIdx.y for the row.

/// [tokens, experts]
template <class Layer>
__global__ void exact_logits(typename Layer::element const* tokens, router_weights router, double* to) {
  constexpr shape dims = Layer::dims;
  int const expert = static_cast<int>(thread_index() / 32);
  std::int64_t const token = blockIdx.y;
  if (expert >= dims.experts) return;
  double sum = dot(tokens + token * dims.hidden, router.weight + std::int64_t{expert} * dims.hidden, dims.hidden);
  if (Layer::router_traits.bias) sum += wide(router.bias[expert]);
  if (threadIdx.x % 32 == 0) to[token * dims.experts + expert] = sum;
}

/// [pairs, intermediate]; nothing for a pair that was dropped.
template <class Layer>
__global__ void exact_inner(typename Layer::element const* tokens, typename Layer::element const* in,
                            typename Layer::element const* bias, std::int32_t const* experts, double const* weights,
                            double* to) {
  using activation = typename Layer::expert::activation;
  constexpr shape dims = Layer::dims;
  constexpr int in_features = device_weights<Layer>::in_features;
  int const feature = static_cast<int>(thread_index() / 32);
  std::int64_t const pair = blockIdx.y, expert = experts[pair];
  if (feature >= dims.intermediate || weights[pair] == 0.0) return;
  auto const* const token = tokens + pair / dims.top_k * dims.hidden;
  auto const value = [&](int of) {
    double const sum = dot(token, in + (expert * in_features + of) * dims.hidden, dims.hidden);
    return Layer::expert_traits.bias ? sum + wide(bias[expert * in_features + of]) : sum;
  };
  double result;
  if constexpr (Layer::expert_traits.gated) {
    double const gate = value(feature);
    result = exact(activation{}, gate, value(dims.intermediate + feature));
  } else {
    result = exact(activation{}, value(feature));
  }
  if (threadIdx.x % 32 == 0) to[pair * dims.intermediate + feature] = result;
}

/// [tokens, hidden]
template <class Layer>
__global__ void exact_output(double const* inner, typename Layer::element const* out,
                             typename Layer::element const* bias, std::int32_t const* experts, double const* weights,
                             double* to) {
  constexpr shape dims = Layer::dims;
  int const feature = static_cast<int>(thread_index() / 32);
  std::int64_t const token = blockIdx.y;
  if (feature >= dims.hidden) return;
  double sum = 0.0;
  for (int k = 0; k < dims.top_k; ++k) {
    std::int64_t const pair = token * dims.top_k + k, expert = experts[pair];
    if (weights[pair] == 0.0) continue;
    double value = dot(inner + pair * dims.intermediate, out + (expert * dims.hidden + feature) * dims.intermediate,
                       dims.intermediate);
    if (Layer::expert_traits.bias) value += wide(bias[expert * dims.hidden + feature]);
    sum += weights[pair] * value;
  }
  if (threadIdx.x % 32 == 0) to[token * dims.hidden + feature] = sum;
}

/// One forward on fresh tokens, on poisoned memory; prints a line.
template <class Layer>
bool agrees_with_double(device_weights<Layer> const& weights, std::int64_t tokens, std::uint32_t set) {
  using element = typename Layer::element;
  constexpr shape dims = Layer::dims;
  std::int64_t const pairs = tokens * dims.top_k;
  cudaStream_t const stream = current_gpu().stream;
  device_call<Layer> const call(tokens, skew::zipf, set, weights);
  device_memory<element> output(tokens * dims.hidden);
  device_memory<std::int32_t> got_experts(pairs);
  device_memory<float> got_weights(pairs);
  for (auto const& [to, bytes] : {std::pair<void*, std::size_t>{output.data(), output.bytes()},
                                  {got_experts.data(), got_experts.bytes()},
                                  {got_weights.data(), got_weights.bytes()}}) {
    check_cuda(cudaMemset(to, 0xff, bytes));
  }
  auto args = call.args(output.data());
  args.decisions.experts = got_experts.data();
  args.decisions.weights = got_weights.data();
  Layer::forward(args, {.stream = stream});

  auto const blocks = [](int results, std::int64_t rows) {
    return dim3(static_cast<unsigned>((results + 7) / 8), static_cast<unsigned>(rows));
  };
  device_memory<double> logits(tokens * dims.experts), inner(pairs * dims.intermediate), right(tokens * dims.hidden);
  exact_logits<Layer>
      <<<blocks(dims.experts, tokens), 256, 0, stream>>>(call.input.data(), args.weights.router, logits.data());
  check_cuda(cudaGetLastError());
  check_cuda(cudaStreamSynchronize(stream));
  reference::config const config = support::reference_config<Layer>();
  reference::numbers const exact = copied(logits.data(), logits.size());
  reference::result const decided = reference::decide(config, exact, {}, tokens);

  device_memory<std::int32_t> const experts(decided.ids);
  device_memory<double> const combine(decided.weights);
  exact_inner<Layer><<<blocks(dims.intermediate, pairs), 256, 0, stream>>>(
      call.input.data(), weights.in.data(), weights.in_bias.data(), experts.data(), combine.data(), inner.data());
  check_cuda(cudaGetLastError());
  exact_output<Layer><<<blocks(dims.hidden, tokens), 256, 0, stream>>>(
      inner.data(), weights.out.data(), weights.out_bias.data(), experts.data(), combine.data(), right.data());
  check_cuda(cudaGetLastError());
  check_cuda(cudaStreamSynchronize(stream));

  // Rounding may decide where two logits are as good as equal: such tokens say nothing.
  std::vector<bool> clear(static_cast<std::size_t>(tokens));
  for (std::int64_t t = 0; t < tokens; ++t) {
    reference::numbers const of_token(exact.begin() + t * dims.experts, exact.begin() + (t + 1) * dims.experts);
    clear[t] = support::choice_is_clear(config, of_token, {});
  }
  std::vector<std::int32_t> const ids = copied(got_experts.data(), pairs);
  std::vector<float> const combine_weights = copied(got_weights.data(), pairs);
  std::int64_t other_experts = 0, unclear = 0;
  double weight_error = 0.0;
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    if (!clear[pair / dims.top_k]) {
      ++unclear;
      continue;
    }
    other_experts += ids[pair] != decided.ids[pair];
    double const apart = std::abs(combine_weights[pair] - decided.weights[pair]);
    weight_error = std::isnan(apart) ? apart : std::max(weight_error, apart);
  }
  double const error =
      distance(output.data(), right.data(), tokens, dims.hidden, stream, [&](std::int64_t t) { return clear[t]; });
  bool const agrees = error < bfloat16_tolerance && other_experts == 0 && weight_error < 1e-5;
  std::printf("%6lld tokens  error %.1e  weights %.1e  experts %s%s  %s\n", static_cast<long long>(tokens), error,
              weight_error, other_experts == 0 ? "equal" : "DIFFER",
              unclear == 0 ? "" : (", " + std::to_string(unclear / dims.top_k) + " tokens near a tie").c_str(),
              agrees ? "ok" : "FAILED");
  return agrees;
}

/// Token numbers for every size of tile.
template <class Layer>
bool agrees_with_double() {
  std::printf("%s\n", describe<Layer>().c_str());
  device_weights<Layer> const weights(0);
  bool result = true;
  std::vector<std::int64_t> cases{1, 40, 200, 1000};
  if (current_gpu().smoke) cases.resize(2);
  std::uint32_t set = 100;
  for (std::int64_t tokens : cases) result = agrees_with_double(weights, tokens, ++set) && result;
  std::fflush(stdout);
  return result;
}

}  // namespace switchyard::bench
