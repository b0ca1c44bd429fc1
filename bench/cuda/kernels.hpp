#pragma once

#include "../skew.hpp"
#include "erased.hpp"

#include <cuda_runtime.h>

#include <cstdint>

/// What the bench itself computes on the GPU: data, the peers' steps around their products, and what is right.
namespace switchyard::bench {

// ---- data; on CUDA's default stream ----

/// to[i] = scale * noise(i, seed)
void fill_noise(bfloat16* to, std::int64_t count, std::uint32_t seed, float scale);
void fill_noise(float* to, std::int64_t count, std::uint32_t seed, float scale);
/// [experts, hidden]: expert e reads feature e, and a little of everything.
void fill_router(float* to, shape dims);
/// [tokens, hidden]: the first features of a token name its experts, the others are noise.
void fill_tokens(bfloat16* to, std::int64_t tokens, shape dims, skew spread, std::uint32_t set);

/// Reads everything, to see how long it takes.
void read_all(void const* from, std::int64_t bytes, unsigned* sink, int blocks, cudaStream_t stream);

// ---- what a user of cuBLAS writes around the products. Widths are multiples of eight ----

/// to[row] = from[pair_of[row] / top_k]
void gather_rows(bfloat16 const* from, std::int32_t const* pair_of, std::int64_t rows, shape dims, bfloat16* to,
                 cudaStream_t stream);
/// to[row] = activation(from[row] + bias of its expert), where from has gate and up values, or up values.
void activate_rows(gpu_layer const& of, bfloat16 const* from, bfloat16 const* bias, std::int32_t const* expert_of,
                   std::int64_t rows, bfloat16* to, cudaStream_t stream);
/// to[token] = sum over its kept pairs of weight * (from[row of the pair] + bias of its expert).
void combine_pairs(gpu_layer const& of, bfloat16 const* from, bfloat16 const* bias, std::int32_t const* expert_of,
                   std::int32_t const* row_of, float const* weight, std::int64_t tokens, bfloat16* to,
                   cudaStream_t stream);
/// row_of[pair_of[row]] = row, for the first `offsets[experts]` rows, else -1.
void rows_of_pairs(std::int32_t const* pair_of, std::int64_t pairs, std::int32_t const* offsets, int experts,
                   std::int32_t* row_of, cudaStream_t stream);

// ---- what is right, in double ----

/// [tokens, experts]
void exact_logits(gpu_layer const& of, gpu_memory const& from, double* to, cudaStream_t stream);
/// [pairs, intermediate]; nothing for a pair that was dropped. Weights as `device_weights` has them.
void exact_inner(gpu_layer const& of, gpu_memory const& from, std::int32_t const* experts, double const* weights,
                 double* to, cudaStream_t stream);
/// [tokens, hidden]
void exact_output(gpu_layer const& of, gpu_memory const& from, double const* inner, std::int32_t const* experts,
                  double const* weights, double* to, cudaStream_t stream);
/// Squares of each row's difference and of what is right: [rows, 2].
void square_rows(bfloat16 const* got, bfloat16 const* right, std::int64_t rows, int columns, double* squares,
                 cudaStream_t stream);
void square_rows(bfloat16 const* got, double const* right, std::int64_t rows, int columns, double* squares,
                 cudaStream_t stream);

}  // namespace switchyard::bench
