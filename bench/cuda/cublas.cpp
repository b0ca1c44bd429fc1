#include "cublas.hpp"

#include "device.hpp"

#include <cublas_v2.h>

#include <stdexcept>
#include <string>

namespace switchyard::bench {

namespace {

void check_cublas(cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw std::runtime_error(std::string("cuBLAS: ") + cublasGetStatusString(status));
}

}  // namespace

// cuBLAS counts by columns: what is a row-major [rows, features] to us is its [features, rows].
struct cublas_group::arrays {
  std::vector<cublasOperation_t> transpose, plain;
  std::vector<int> m, n, k, size;
  std::vector<float> one, zero;
  device_memory<void const*> a, b;
  device_memory<void*> c;
};

cublas_group::cublas_group(std::vector<cublas_product> const& products) : arrays_(std::make_unique<arrays>()) {
  std::size_t const count = products.size();
  std::vector<void const*> a, b;
  std::vector<void*> c;
  for (cublas_product const& p : products) {
    arrays_->m.push_back(p.features);
    arrays_->n.push_back(static_cast<int>(p.rows));
    arrays_->k.push_back(p.depth);
    a.push_back(p.weight);
    b.push_back(p.from);
    c.push_back(p.result);
  }
  arrays_->transpose.assign(count, CUBLAS_OP_T);
  arrays_->plain.assign(count, CUBLAS_OP_N);
  arrays_->size.assign(count, 1);
  arrays_->one.assign(count, 1.0f);
  arrays_->zero.assign(count, 0.0f);
  arrays_->a = device_memory<void const*>(a);
  arrays_->b = device_memory<void const*>(b);
  arrays_->c = device_memory<void*>(c);
}
cublas_group::cublas_group(cublas_group&&) noexcept = default;
cublas_group::~cublas_group() = default;

struct cublas::state {
  cublasHandle_t handle = nullptr;
  device_memory<std::byte> workspace;  // as much as cuBLAS takes on Hopper; its own could not be captured in a graph
};

cublas::cublas(cudaStream_t stream) : state_(std::make_unique<state>()) {
  check_cublas(cublasCreate(&state_->handle));
  state_->workspace = device_memory<std::byte>(std::int64_t{32} << 20);
  check_cublas(cublasSetStream(state_->handle, stream));
  check_cublas(cublasSetWorkspace(state_->handle, state_->workspace.data(), state_->workspace.bytes()));
}
cublas::~cublas() {
  if (state_->handle != nullptr) cublasDestroy(state_->handle);
}

void cublas::multiply(cublas_product const& p) const {
  float const one = 1.0f, zero = 0.0f;
  check_cublas(cublasGemmEx(state_->handle, CUBLAS_OP_T, CUBLAS_OP_N, p.features, static_cast<int>(p.rows), p.depth,
                            &one, p.weight, CUDA_R_16BF, p.depth, p.from, CUDA_R_16BF, p.depth, &zero, p.result,
                            CUDA_R_16BF, p.features, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

void cublas::multiply(cublas_group const& products) const {
  auto const& g = *products.arrays_;
  check_cublas(cublasGemmGroupedBatchedEx(state_->handle, g.transpose.data(), g.plain.data(), g.m.data(), g.n.data(),
                                          g.k.data(), g.one.data(), g.a.data(), CUDA_R_16BF, g.k.data(), g.b.data(),
                                          CUDA_R_16BF, g.k.data(), g.zero.data(), g.c.data(), CUDA_R_16BF, g.m.data(),
                                          static_cast<int>(g.size.size()), g.size.data(), CUBLAS_COMPUTE_32F));
}

int cublas::version() const {
  int result = 0;
  check_cublas(cublasGetVersion(state_->handle, &result));
  return result;
}

}  // namespace switchyard::bench
