#pragma once

#include <switchyard/auxiliary.hpp>
#include <switchyard/backend/cuda/block_sums.cuh>
#include <switchyard/backend/cuda/pass_size.cuh>
#include <switchyard/core/lanes.hpp>

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

/// The auxiliary values of a pass on the GPU, for calls that ask for them.
namespace switchyard::cuda {

// With more threads there are too few registers for each. That there is one block only is said, because the compiler else
// saves registers for more, and spills.
inline constexpr int auxiliary_threads = 512, auxiliary_warps = auxiliary_threads / 32;

/// The sums of one expert over the tokens of a group.
struct expert_sums {
  double probability = 0.0, first_choices = 0.0, kept_choices = 0.0, combine_weights = 0.0, load = 0.0;
  static constexpr int count = 5;
};

/// The logarithm of the sum of the exponentials of one token's logits, by a warp, on each lane.
__device__ inline double log_sum_by_warp(float const* logits, int experts) {
  int const lane = static_cast<int>(threadIdx.x) % 32;
  float largest = -infinity;
  for (int e = lane; e < experts; e += 32) largest = logits[e] > largest ? logits[e] : largest;
  for (int distance = 16; distance > 0; distance /= 2) {
    float const other = __shfl_xor_sync(~0u, largest, distance);
    largest = other > largest ? other : largest;
  }
  double total = 0.0;
  for (int e = lane; e < experts; e += 32) total += std::exp(logits[e] - largest);
  return largest + std::log(sum_over_warp(total));
}

/// Adds a token to the sums of an expert, which may be beyond the last.
__device__ inline void add_token(routing_record const& record, std::int64_t token, int e, int experts, int top_k,
                                 double log_sum, expert_sums& to) {
  if (e < experts) to.probability += std::exp(static_cast<float>(record.logits[token * experts + e] - log_sum));
  for (int k = 0; k < top_k; ++k) {
    std::int64_t const pair = token * top_k + k;
    std::int32_t const expert = record.experts[pair];
    bool const dropped = record.dropped != nullptr && record.dropped[pair] != 0;
    if (k == 0 && expert >= 0) {
      to.first_choices += expert == e ? 1.0 : 0.0;
      to.kept_choices += (dropped ? 0 : expert) == e ? 1.0 : 0.0;
    }
    if (expert != e) continue;
    if (!dropped) to.combine_weights += record.weights[pair];
    to.load += 1.0;
  }
}

/// The sums of all groups, of warp 0, the same on all lanes.
struct group_sums {
  double balance_first = 0.0, balance_kept = 0.0, balance_combine = 0.0, z = 0.0, groups = 0.0, tokens = 0.0;
};

/// The values, by warp 0. `batch`: [experts] probability, [experts] load.
__device__ inline void write_values(group_sums const& all, double const* batch, int experts, int top_k,
                                    switchyard::auxiliary_values* result) {
  int const lane = static_cast<int>(threadIdx.x) % 32;
  double balance_all = 0.0, square = 0.0, entropy = 0.0;
  double const mean = all.tokens * top_k / experts;
  for (int e = lane; e < experts && all.tokens > 0.0; e += 32) {
    double const load = batch[experts + e];
    double const q = batch[e] / all.tokens;
    balance_all += load / all.tokens * q;
    if (q > 0.0) entropy += q * std::log(q);
    square += (load - mean) * (load - mean);
  }
  balance_all = sum_over_warp(balance_all);
  square = sum_over_warp(square);
  entropy = sum_over_warp(entropy);
  if (lane != 0) return;
  switchyard::auxiliary_values values{};
  if (all.tokens > 0.0) {
    values.balance_first_choice = static_cast<float>(experts * all.balance_first / all.groups);
    values.balance_all_choices = static_cast<float>(experts * balance_all);
    values.balance_kept_choice = static_cast<float>(experts * all.balance_kept / all.groups);
    values.balance_combine_weight = static_cast<float>(experts * all.balance_combine / all.groups);
    values.z_loss = static_cast<float>(all.z / all.tokens);
    values.load_variation = static_cast<float>(std::sqrt(square / experts) / mean);
    values.negative_entropy = static_cast<float>(entropy);
  }
  *result = values;
}

/// As `switchyard::auxiliary`, in one block: each warp takes some tokens of a group, each lane an expert. Sums are taken
/// in double and in an order that depends on nothing but the sizes. `log_sums` is scratch, [tokens]. The number of threads
/// is a parameter, so that the kernel is compiled only where somebody launches it.
template <int Threads>
__global__ void __launch_bounds__(Threads, 1)
    auxiliary_of_pass(routing_record const record, int experts, int top_k, pass_size const* pass, double* log_sums,
                      switchyard::auxiliary_values* result) {
  __shared__ double partial[expert_sums::count][auxiliary_warps][32];
  extern __shared__ __align__(16) double batch[];  // [experts] probability, [experts] load
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  auto const counts = [&](std::int64_t token) {  // a NaN as weight: it could not be routed
    bool const active = record.active == nullptr || record.active[token] != 0;
    return active && !isnan(record.weights[token * top_k]);
  };
  std::int64_t const tokens_of_pass = tokens_at_hand(record.tokens, pass);
  std::int64_t const group_size = record.tokens_per_group > 0 ? record.tokens_per_group : tokens_of_pass;
  for (int i = thread; i < 2 * experts; i += auxiliary_threads) batch[i] = 0.0;

  group_sums all;
  for (std::int64_t begin = 0; begin < tokens_of_pass; begin += group_size) {
    std::int64_t const end = begin + group_size < tokens_of_pass ? begin + group_size : tokens_of_pass;
    double counted = 0.0, squares = 0.0;
    for (std::int64_t token = begin + warp; token < end; token += auxiliary_warps) {
      if (!counts(token)) continue;
      double const log_sum = log_sum_by_warp(record.logits + token * experts, experts);
      if (lane == 0) log_sums[token] = log_sum;
      counted += 1.0;
      squares += log_sum * log_sum;
    }
    if (lane == 0) {
      partial[0][warp][0] = counted;
      partial[1][warp][0] = squares;
    }
    __syncthreads();
    double tokens = 0.0, group_squares = 0.0;
    for (int w = 0; w < auxiliary_warps; ++w) {
      tokens += partial[0][w][0];
      group_squares += partial[1][w][0];
    }
    __syncthreads();
    if (tokens == 0.0) continue;
    all.groups += 1.0;
    all.tokens += tokens;
    all.z += group_squares;

    for (int first = 0; first < experts; first += 32) {
      int const e = first + lane;
      expert_sums mine;
      for (std::int64_t token = begin + warp; token < end; token += auxiliary_warps) {
        if (counts(token)) add_token(record, token, e, experts, top_k, log_sums[token], mine);
      }
      double sum[expert_sums::count] = {mine.probability, mine.first_choices, mine.kept_choices, mine.combine_weights,
                                        mine.load};
      for (int s = 0; s < expert_sums::count; ++s) partial[s][warp][lane] = sum[s];
      __syncthreads();
      if (warp == 0) {
        for (int s = 0; s < expert_sums::count; ++s) {
          sum[s] = 0.0;
          for (int w = 0; w < auxiliary_warps; ++w) sum[s] += partial[s][w][lane];
        }
        all.balance_first += sum_over_warp(sum[1] / tokens * (sum[0] / tokens));
        all.balance_kept += sum_over_warp(sum[2] / tokens * (sum[0] / tokens));
        all.balance_combine += sum_over_warp(sum[2] / tokens * (sum[3] / tokens));
        if (e < experts) {
          batch[e] += sum[0];
          batch[experts + e] += sum[4];
        }
      }
      __syncthreads();
    }
  }
  if (warp != 0) return;
  __syncwarp();
  write_values(all, batch, experts, top_k, result);
}

}  // namespace switchyard::cuda
