#pragma once

#include "cub_plan.hpp"
#include "cublas.hpp"
#include "memory.hpp"

#include <cstdint>
#include <memory>
#include <vector>

/// The layer that a user of cuBLAS writes: gather, products in, activation, products out, weighted sum. On given routes.
namespace switchyard::bench {

enum class peer {
  loop,     ///< products one after the other
  grouped,  ///< products handed over together
  cub,      ///< the same, and the plan is made by CUB in each call
  dense     ///< as if all rows were of one expert: not the layer, but as many operations, in the largest products
};

/// The expert of every pair of a planned call, `experts` for one that was dropped.
std::vector<std::int32_t> experts_of_pairs(device_call const& call, bfloat16* output);

/// The peers on the calls of one case, which have been planned. Everything but the tokens and weights is the peers' own.
class peers {
 public:
  peers(std::vector<device_call> const& calls, cublas const& with, cudaStream_t stream);

  void run(peer how, int turn) const;
  bfloat16* output() const { return output_.data(); }

 private:
  /// Routes and products of one turn, ready-made.
  struct prepared_call {
    device_call const* call;
    device_memory<std::int32_t> pair_of, row_of, expert_of, expert_of_pair;
    device_memory<float> weight;
    std::vector<cublas_product> in, out;
    cublas_group in_group, out_group;
  };

  prepared_call prepared(device_call const& call) const;
  cublas_product in_product(device_weights const& w, int expert, std::int64_t first, std::int64_t rows) const;
  cublas_product out_product(device_weights const& w, int expert, std::int64_t first, std::int64_t rows) const;
  void multiply(peer how, std::vector<cublas_product> const& products, cublas_group const& group) const;

  gpu_layer const* of_;
  std::int64_t tokens_;
  cublas const* with_;
  cudaStream_t stream_;
  // [pairs, hidden], [pairs, in_features], [pairs, intermediate], [pairs, hidden], [tokens, hidden]
  device_memory<bfloat16> gathered_, in_, inner_, outer_, output_;
  cub_plan by_cub_;
  std::vector<prepared_call> turns_;
};

}  // namespace switchyard::bench
