// Runs a layer on the GPU, and where there is none, reads what the library says about that.
#include <switchyard/switchyard.cuh>

#include <cstdio>
#include <cstring>
#include <vector>

namespace sy = switchyard;
using layer = sy::layer<sy::shape{.hidden = 1, .intermediate = 1, .experts = 1, .top_k = 1}, sy::router::switch_top1,
                        sy::capacity::dropless, sy::expert::mlp<sy::relu>, sy::backend::cuda>;

int main() {
  float *numbers = nullptr, host[3] = {1.0f, 7.0f, 0.0f};
  std::byte* scratch = nullptr;
  constexpr std::size_t bytes = layer::workspace_bytes(1);
  bool const device = cudaMalloc(&numbers, sizeof host) == cudaSuccess && cudaMalloc(&scratch, bytes) == cudaSuccess &&
                      cudaMemcpy(numbers, host, sizeof host, cudaMemcpyDefault) == cudaSuccess;
  if (!device) {  // any addresses will do
    numbers = reinterpret_cast<float*>(std::uintptr_t{1} << 20);
    scratch = reinterpret_cast<std::byte*>(std::uintptr_t{1} << 21);
  }
  try {
    layer::forward({.tokens = layer::rows(static_cast<float const*>(numbers + 1), 1),
                    .weights = {.router = {.weight = numbers},
                                .up_proj = layer::in_proj(numbers),
                                .down_proj = layer::out_proj(numbers)},
                    .output = layer::rows(numbers + 2, 1),
                    .workspace = {scratch, bytes}});
  } catch (sy::cuda_error const& e) {
    std::puts(e.what());
    return device || std::strstr(e.what(), "expected a CUDA device and its driver, got cudaError") == nullptr;
  }
  if (cudaMemcpy(host, numbers, sizeof host, cudaMemcpyDefault) != cudaSuccess) return 1;
  return host[2] == 7.0f ? 0 : 1;
}
