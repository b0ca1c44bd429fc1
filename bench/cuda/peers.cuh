#pragma once

#include "cublas.hpp"
#include "memory.cuh"

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

/// The layer that a user of cuBLAS writes: gather, products in, activation, products out, weighted sum. On given routes.
namespace switchyard::bench {

/// Eight values that are read and written together.
struct alignas(16) eight {
  bfloat16 at[8];
};

/// to[row] = from[pair_of[row] / top_k], rows of `chunks` times eight.
static __global__ void gather_rows(eight const* from, std::int32_t const* pair_of, int top_k, std::int64_t rows,
                                   int chunks, eight* to) {
  for (std::int64_t i = thread_index(); i < rows * chunks; i += thread_count()) {
    to[i] = from[pair_of[i / chunks] / top_k * std::int64_t{chunks} + i % chunks];
  }
}

/// to[row] = activation(from[row]), which has gate and up values, or up values.
template <class Layer>
__global__ void activate_rows(eight const* from, eight const* bias, std::int32_t const* expert_of, std::int64_t rows,
                              eight* to) {
  using activation = typename Layer::expert::activation;
  constexpr expert_traits traits = Layer::expert_traits;
  constexpr int chunks = Layer::dims.intermediate / 8, inputs = traits.gated ? 2 : 1;
  for (std::int64_t i = thread_index(); i < rows * chunks; i += thread_count()) {
    std::int64_t const row = i / chunks, first = row * inputs * chunks + i % chunks;
    eight const gate = from[first], up = from[first + (inputs - 1) * chunks];
    eight gate_bias{}, up_bias{};
    if constexpr (traits.bias) {
      std::int64_t const biases = std::int64_t{expert_of[row]} * inputs * chunks + i % chunks;
      gate_bias = bias[biases];
      up_bias = bias[biases + (inputs - 1) * chunks];
    }
    eight result;
    for (int k = 0; k < 8; ++k) {
      float const g = static_cast<float>(gate.at[k]) + static_cast<float>(gate_bias.at[k]);
      if constexpr (traits.gated) {
        float const u = static_cast<float>(up.at[k]) + static_cast<float>(up_bias.at[k]);
        result.at[k] = bfloat16(activation::apply(g, u));
      } else {
        result.at[k] = bfloat16(activation::apply(g));
      }
    }
    to[i] = result;
  }
}

/// to[token] = sum over its kept pairs of weight * (from[row of the pair] + bias of its expert).
template <class Layer>
__global__ void combine_pairs(eight const* from, eight const* bias, std::int32_t const* expert_of,
                              std::int32_t const* row_of, float const* weight, std::int64_t tokens, eight* to) {
  constexpr int chunks = Layer::dims.hidden / 8, top_k = Layer::dims.top_k;
  for (std::int64_t i = thread_index(); i < tokens * chunks; i += thread_count()) {
    std::int64_t const token = i / chunks, chunk = i % chunks;
    float sum[8] = {};
    for (int k = 0; k < top_k; ++k) {
      std::int32_t const row = row_of[token * top_k + k];
      if (row < 0) continue;
      float const w = weight[token * top_k + k];
      eight const value = from[std::int64_t{row} * chunks + chunk];
      eight offset{};
      if constexpr (Layer::expert_traits.bias) offset = bias[std::int64_t{expert_of[row]} * chunks + chunk];
      for (int j = 0; j < 8; ++j) sum[j] += w * (static_cast<float>(value.at[j]) + static_cast<float>(offset.at[j]));
    }
    eight result;
    for (int j = 0; j < 8; ++j) result.at[j] = bfloat16(sum[j]);
    to[i] = result;
  }
}

/// How the products of the experts are made.
enum class peer_products {
  loop,     ///< one after the other
  grouped,  ///< handed over together
  dense     ///< as if all rows were of one expert: not the layer, but as many operations, in the largest products
};

/// The peers on the calls of one case, which have been planned. Everything but the tokens and weights is the peers' own.
template <class Layer>
class peers {
 public:
  using element = typename Layer::element;
  using weights = device_weights<Layer>;
  static constexpr shape dims = Layer::dims;
  static_assert(std::is_same_v<element, bfloat16> && dims.hidden % 8 == 0 && dims.intermediate % 8 == 0,
                "the peers work on chunks of eight bfloat16");

  peers(std::vector<device_call<Layer>> const& calls, std::int64_t tokens, cublas const& with, cudaStream_t stream)
      : tokens_(tokens),
        with_(&with),
        stream_(stream),
        gathered_(tokens * dims.top_k * dims.hidden),
        in_(tokens * dims.top_k * weights::in_features),
        inner_(tokens * dims.top_k * dims.intermediate),
        outer_(tokens * dims.top_k * dims.hidden),
        output_(tokens * dims.hidden) {
    for (device_call<Layer> const& call : calls) turns_.push_back(prepared(call));
  }

  void run(peer_products how, int turn) {
    prepared_call const& t = turns_[turn];
    weights const& w = *t.call->weights;
    std::int64_t const rows = t.call->rows;
    if (how == peer_products::dense) {
      int const expert = turn % dims.experts;
      with_->multiply(in_product(w, expert, 0, rows));
      with_->multiply(out_product(w, expert, 0, rows));
      return;
    }
    enqueue(gather_rows, rows * dims.hidden, chunks(t.call->input), t.pair_of.data(), dims.top_k, rows, dims.hidden / 8,
            chunks(gathered_));
    multiply(how, t.in, t.in_group);
    enqueue(activate_rows<Layer>, rows * dims.intermediate, chunks(in_), chunks(w.in_bias), t.expert_of.data(), rows,
            chunks(inner_));
    multiply(how, t.out, t.out_group);
    enqueue(combine_pairs<Layer>, tokens_ * dims.hidden, chunks(outer_), chunks(w.out_bias), t.expert_of.data(),
            t.row_of.data(), t.weight.data(), tokens_, chunks(output_));
  }

  element* output() const { return output_.data(); }

 private:
  /// Routes and products of one turn, ready-made.
  struct prepared_call {
    device_call<Layer> const* call;
    device_memory<std::int32_t> pair_of, row_of, expert_of;
    device_memory<float> weight;
    std::vector<cublas_product> in, out;
    cublas_group in_group, out_group;
  };

  prepared_call prepared(device_call<Layer> const& call) const {
    using backend = typename Layer::backend;
    auto const args = call.args(output_.data());
    dispatch_plan const plan = backend::template plan_of<Layer>(args);
    std::int64_t const pairs = tokens_ * dims.top_k;
    std::vector<std::int32_t> expert_of;
    std::vector<cublas_product> in, out;
    for (int e = 0; e < dims.experts; ++e) {
      std::int64_t const first = call.offsets[e], rows = call.offsets[e + 1] - first;
      if (rows == 0) continue;
      expert_of.insert(expert_of.end(), static_cast<std::size_t>(rows), e);
      in.push_back(in_product(*call.weights, e, first, rows));
      out.push_back(out_product(*call.weights, e, first, rows));
    }
    return {&call,
            device_memory<std::int32_t>(copied(plan.pair_of, call.rows)),
            device_memory<std::int32_t>(copied(plan.row_of, pairs)),
            device_memory<std::int32_t>(expert_of),
            device_memory<float>(copied(backend::template routes_of<Layer>(args).weights, pairs)),
            in,
            out,
            cublas_group(in),
            cublas_group(out)};
  }

  cublas_product in_product(weights const& w, int expert, std::int64_t first, std::int64_t rows) const {
    return {rows,
            weights::in_features,
            dims.hidden,
            gathered_.data() + first * dims.hidden,
            w.in.data() + std::int64_t{expert} * weights::in_features * dims.hidden,
            in_.data() + first * weights::in_features};
  }
  cublas_product out_product(weights const& w, int expert, std::int64_t first, std::int64_t rows) const {
    return {rows,
            dims.hidden,
            dims.intermediate,
            inner_.data() + first * dims.intermediate,
            w.out.data() + std::int64_t{expert} * dims.hidden * dims.intermediate,
            outer_.data() + first * dims.hidden};
  }

  void multiply(peer_products how, std::vector<cublas_product> const& products, cublas_group const& group) const {
    if (how == peer_products::grouped) {
      with_->multiply(group);
    } else {
      for (cublas_product const& p : products) with_->multiply(p);
    }
  }

  static eight* chunks(device_memory<element> const& memory) { return reinterpret_cast<eight*>(memory.data()); }

  template <class... Parameters, class... Arguments>
  void enqueue(void (*kernel)(Parameters...), std::int64_t values, Arguments... arguments) const {
    kernel<<<blocks_for(values / 8, 256), 256, 0, stream_>>>(arguments...);
    check_cuda(cudaGetLastError());
  }

  std::int64_t tokens_;
  cublas const* with_;
  cudaStream_t stream_;
  // [pairs, hidden], [pairs, in_features], [pairs, intermediate], [pairs, hidden], [tokens, hidden]
  device_memory<element> gathered_, in_, inner_, outer_, output_;
  std::vector<prepared_call> turns_;
};

}  // namespace switchyard::bench
