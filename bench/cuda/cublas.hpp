#pragma once

#include <switchyard/core/bfloat16.hpp>

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <vector>

/// Matrix products of cuBLAS: bfloat16 in and out, sums in float, rows back to back.
namespace switchyard::bench {

/// result[rows, features] = from[rows, depth] * weight[features, depth] transposed; device memory.
struct cublas_product {
  std::int64_t rows = 0;
  int features = 0, depth = 0;
  bfloat16 const* from = nullptr;
  bfloat16 const* weight = nullptr;
  bfloat16* result = nullptr;
};

/// Products that are handed over together. What cuBLAS wants to know of them is made once.
class cublas_group {
 public:
  explicit cublas_group(std::vector<cublas_product> const& products);
  cublas_group(cublas_group&&) noexcept;
  ~cublas_group();

 private:
  friend class cublas;
  struct arrays;
  std::unique_ptr<arrays> arrays_;
};

/// cuBLAS on one stream. Throws where it does not start.
class cublas {
 public:
  explicit cublas(cudaStream_t stream);
  cublas(cublas const&) = delete;
  ~cublas();

  void multiply(cublas_product const& p) const;       ///< `cublasGemmEx`
  void multiply(cublas_group const& products) const;  ///< `cublasGemmGroupedBatchedEx`
  int version() const;

 private:
  struct state;
  std::unique_ptr<state> state_;
};

}  // namespace switchyard::bench
