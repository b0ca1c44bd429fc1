#include "kernels.hpp"

#include "device.hpp"

#include <switchyard/expert/activation.hpp>

#include <cmath>

namespace switchyard::bench {

namespace {

/// Eight values that are read and written together.
struct alignas(16) eight {
  bfloat16 at[8];
};
eight const* eights(bfloat16 const* p) { return reinterpret_cast<eight const*>(p); }
eight* eights(bfloat16* p) { return reinterpret_cast<eight*>(p); }

constexpr int threads = 256;

unsigned blocks_for(std::int64_t items, int each) { return static_cast<unsigned>((items + each - 1) / each); }

template <class... Parameters, class... Arguments>
void enqueue(void (*kernel)(Parameters...), dim3 blocks, cudaStream_t stream, Arguments... arguments) {
  if (blocks.x == 0 || blocks.y == 0) return;
  kernel<<<blocks, threads, 0, stream>>>(arguments...);
  check_cuda(cudaGetLastError());
}

__device__ std::int64_t thread_index() { return std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

// ---- one block for each row, so that no thread divides to find its place ----

__global__ void gather(eight const* from, std::int32_t const* pair_of, int top_k, int chunks, eight* to) {
  std::int64_t const row = blockIdx.x;
  eight const* const source = from + std::int64_t{pair_of[row] / top_k} * chunks;
  for (int i = static_cast<int>(threadIdx.x); i < chunks; i += threads) to[row * chunks + i] = source[i];
}

template <nonlinearity Kind>
__device__ float activated(float gate, float up) {
  if constexpr (Kind == nonlinearity::silu) return silu::apply(gate, up);
  if constexpr (Kind == nonlinearity::clamped_swiglu) return clamped_swiglu<>::apply(gate, up);
  return relu::apply(up);
}

template <nonlinearity Kind>
__global__ void activate(eight const* from, eight const* bias, std::int32_t const* expert_of, int inputs, int chunks,
                         eight* to) {
  std::int64_t const row = blockIdx.x;
  std::int64_t const biases = bias != nullptr ? std::int64_t{expert_of[row]} * inputs * chunks : 0;
  for (int i = static_cast<int>(threadIdx.x); i < chunks; i += threads) {
    int const up_at = (inputs - 1) * chunks + i;
    eight const gate = from[row * inputs * chunks + i], up = from[row * inputs * chunks + up_at];
    eight gate_bias{}, up_bias{};
    if (bias != nullptr) {
      gate_bias = bias[biases + i];
      up_bias = bias[biases + up_at];
    }
    eight result;
    for (int k = 0; k < 8; ++k) {
      result.at[k] = bfloat16(activated<Kind>(static_cast<float>(gate.at[k]) + static_cast<float>(gate_bias.at[k]),
                                              static_cast<float>(up.at[k]) + static_cast<float>(up_bias.at[k])));
    }
    to[row * chunks + i] = result;
  }
}

__global__ void combine(eight const* from, eight const* bias, std::int32_t const* expert_of, std::int32_t const* row_of,
                        float const* weight, int top_k, int chunks, eight* to) {
  std::int64_t const token = blockIdx.x;
  for (int i = static_cast<int>(threadIdx.x); i < chunks; i += threads) {
    float sum[8] = {};
    for (int k = 0; k < top_k; ++k) {
      std::int32_t const row = row_of[token * top_k + k];
      if (row < 0) continue;
      float const w = weight[token * top_k + k];
      eight const value = from[std::int64_t{row} * chunks + i];
      eight offset{};
      if (bias != nullptr) offset = bias[std::int64_t{expert_of[row]} * chunks + i];
      for (int j = 0; j < 8; ++j) sum[j] += w * (static_cast<float>(value.at[j]) + static_cast<float>(offset.at[j]));
    }
    eight result;
    for (int j = 0; j < 8; ++j) result.at[j] = bfloat16(sum[j]);
    to[token * chunks + i] = result;
  }
}

__global__ void invert(std::int32_t const* pair_of, std::int64_t pairs, std::int32_t const* offsets, int experts,
                       std::int32_t* row_of) {
  std::int64_t const row = thread_index();
  if (row < pairs) row_of[pair_of[row]] = row < offsets[experts] ? static_cast<std::int32_t>(row) : -1;
}

/// Writes only where the sum is one that it hardly has, so that the reading has to be done.
__global__ void read(uint4 const* from, std::int64_t count, unsigned* sink) {
  unsigned sum = 0;
#pragma unroll 8
  for (std::int64_t i = thread_index(); i < count; i += std::int64_t{gridDim.x} * threads) {
    uint4 const v = from[i];
    sum += (v.x ^ v.y) + (v.z ^ v.w);
  }
  if (sum == 0x9e3779b9u) *sink = sum;
}

// ---- one warp for each result, blockIdx.y for the row ----

template <nonlinearity Kind>
__device__ double exact(double gate, double up) {
  if constexpr (Kind == nonlinearity::silu) return gate / (1.0 + exp(-gate)) * up;
  if constexpr (Kind == nonlinearity::clamped_swiglu) {
    // Source: OpenAI 2025, gpt-oss model card, section 2.2: limit 7, alpha 1.702.
    double const g = fmin(gate, 7.0), u = fmin(fmax(up, -7.0), 7.0);
    return g / (1.0 + exp(-1.702 * g)) * (u + 1.0);
  }
  return up > 0.0 ? up : 0.0;
}

__device__ double wide(double value) { return value; }
__device__ double wide(float value) { return value; }
__device__ double wide(bfloat16 value) { return static_cast<float>(value); }

__device__ double sum_of_warp(double value) {
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(0xffffffffu, value, apart);
  return value;
}

template <class A, class B>
__device__ double dot(A const* a, B const* b, int count) {
  double sum = 0.0;
  for (int i = static_cast<int>(threadIdx.x % 32); i < count; i += 32) sum += wide(a[i]) * wide(b[i]);
  return sum_of_warp(sum);
}

__device__ bool writes() { return threadIdx.x % 32 == 0; }

__global__ void logits(shape dims, bfloat16 const* tokens, float const* router, float const* bias, double* to) {
  int const expert = static_cast<int>(thread_index() / 32);
  std::int64_t const token = blockIdx.y;
  if (expert >= dims.experts) return;
  double const sum = dot(tokens + token * dims.hidden, router + std::int64_t{expert} * dims.hidden, dims.hidden);
  if (writes()) to[token * dims.experts + expert] = bias != nullptr ? sum + wide(bias[expert]) : sum;
}

template <nonlinearity Kind>
__global__ void inner(shape dims, int in_features, bfloat16 const* tokens, bfloat16 const* in, bfloat16 const* bias,
                      std::int32_t const* experts, double const* weights, double* to) {
  int const feature = static_cast<int>(thread_index() / 32);
  std::int64_t const pair = blockIdx.y, expert = experts[pair];
  if (feature >= dims.intermediate || weights[pair] == 0.0) return;
  bfloat16 const* const token = tokens + pair / dims.top_k * dims.hidden;
  double value[2];
  for (int of = 0; of < 2; ++of) {  // gate and up; up twice where there is no gate
    std::int64_t const row = expert * in_features + (of == 0 ? 0 : in_features - dims.intermediate) + feature;
    value[of] = dot(token, in + row * dims.hidden, dims.hidden) + (bias != nullptr ? wide(bias[row]) : 0.0);
  }
  if (writes()) to[pair * dims.intermediate + feature] = exact<Kind>(value[0], value[1]);
}

__global__ void output(shape dims, double const* inner, bfloat16 const* out, bfloat16 const* bias,
                       std::int32_t const* experts, double const* weights, double* to) {
  int const feature = static_cast<int>(thread_index() / 32);
  std::int64_t const token = blockIdx.y;
  if (feature >= dims.hidden) return;
  double sum = 0.0;
  for (int k = 0; k < dims.top_k; ++k) {
    std::int64_t const pair = token * dims.top_k + k, row = std::int64_t{experts[pair]} * dims.hidden + feature;
    if (weights[pair] == 0.0) continue;
    double const value = dot(inner + pair * dims.intermediate, out + row * dims.intermediate, dims.intermediate);
    sum += weights[pair] * (bias != nullptr ? value + wide(bias[row]) : value);
  }
  if (writes()) to[token * dims.hidden + feature] = sum;
}

template <class T>
__global__ void squares_of_rows(bfloat16 const* got, T const* right, std::int64_t rows, int columns, double* squares) {
  std::int64_t const row = thread_index() / 32;
  if (row >= rows) return;
  double difference = 0.0, length = 0.0;
  for (int i = static_cast<int>(threadIdx.x % 32); i < columns; i += 32) {
    double const g = wide(got[row * columns + i]), r = wide(right[row * columns + i]);
    difference += (g - r) * (g - r);
    length += r * r;
  }
  difference = sum_of_warp(difference);
  length = sum_of_warp(length);
  if (!writes()) return;
  squares[2 * row] = difference;
  squares[2 * row + 1] = length;
}

dim3 warps(int results, std::int64_t rows) {
  return dim3(blocks_for(results, threads / 32), static_cast<unsigned>(rows));
}

/// Calls `with.template operator()<Kind>()`.
template <class With>
void for_kind(nonlinearity kind, With const& with) {
  switch (kind) {
    case nonlinearity::relu: return with.template operator()<nonlinearity::relu>();
    case nonlinearity::silu: return with.template operator()<nonlinearity::silu>();
    case nonlinearity::clamped_swiglu: return with.template operator()<nonlinearity::clamped_swiglu>();
  }
}

}  // namespace

void read_all(void const* from, std::int64_t bytes, unsigned* sink, int blocks, cudaStream_t stream) {
  enqueue(read, dim3(static_cast<unsigned>(blocks)), stream, static_cast<uint4 const*>(from), bytes / 16, sink);
}

void gather_rows(bfloat16 const* from, std::int32_t const* pair_of, std::int64_t rows, shape dims, bfloat16* to,
                 cudaStream_t stream) {
  enqueue(gather, dim3(blocks_for(rows, 1)), stream, eights(from), pair_of, dims.top_k, dims.hidden / 8, eights(to));
}

void activate_rows(gpu_layer const& of, bfloat16 const* from, bfloat16 const* bias, std::int32_t const* expert_of,
                   std::int64_t rows, bfloat16* to, cudaStream_t stream) {
  for_kind(of.activation, [&]<nonlinearity Kind>() {
    enqueue(activate<Kind>, dim3(blocks_for(rows, 1)), stream, eights(from), eights(bias), expert_of,
            of.expert.input_projections(), of.dims.intermediate / 8, eights(to));
  });
}

void combine_pairs(gpu_layer const& of, bfloat16 const* from, bfloat16 const* bias, std::int32_t const* expert_of,
                   std::int32_t const* row_of, float const* weight, std::int64_t tokens, bfloat16* to,
                   cudaStream_t stream) {
  enqueue(combine, dim3(blocks_for(tokens, 1)), stream, eights(from), eights(bias), expert_of, row_of, weight,
          of.dims.top_k, of.dims.hidden / 8, eights(to));
}

void rows_of_pairs(std::int32_t const* pair_of, std::int64_t pairs, std::int32_t const* offsets, int experts,
                   std::int32_t* row_of, cudaStream_t stream) {
  enqueue(invert, dim3(blocks_for(pairs, threads)), stream, pair_of, pairs, offsets, experts, row_of);
}

void exact_logits(gpu_layer const& of, gpu_memory const& from, double* to, cudaStream_t stream) {
  enqueue(logits, warps(of.dims.experts, from.tokens), stream, of.dims, from.input, from.router.weight,
          of.router_bias ? from.router.bias : nullptr, to);
}

void exact_inner(gpu_layer const& of, gpu_memory const& from, std::int32_t const* experts, double const* weights,
                 double* to, cudaStream_t stream) {
  bool const gated = of.expert.gated;
  for_kind(of.activation, [&]<nonlinearity Kind>() {
    enqueue(inner<Kind>, warps(of.dims.intermediate, from.tokens * of.dims.top_k), stream, of.dims, of.in_features(),
            from.input, gated ? from.gate_proj.data : from.up_proj.data,
            gated ? from.bias.gate.data : from.bias.up.data, experts, weights, to);
  });
}

void exact_output(gpu_layer const& of, gpu_memory const& from, double const* inner, std::int32_t const* experts,
                  double const* weights, double* to, cudaStream_t stream) {
  enqueue(output, warps(of.dims.hidden, from.tokens), stream, of.dims, inner, from.down_proj.data, from.bias.down.data,
          experts, weights, to);
}

void square_rows(bfloat16 const* got, bfloat16 const* right, std::int64_t rows, int columns, double* squares,
                 cudaStream_t stream) {
  enqueue(squares_of_rows<bfloat16>, dim3(blocks_for(rows, threads / 32)), stream, got, right, rows, columns, squares);
}
void square_rows(bfloat16 const* got, double const* right, std::int64_t rows, int columns, double* squares,
                 cudaStream_t stream) {
  enqueue(squares_of_rows<double>, dim3(blocks_for(rows, threads / 32)), stream, got, right, rows, columns, squares);
}

}  // namespace switchyard::bench
