// The layer of Mixtral on a GPU. The arguments are those of the CPU's layer, in device memory: tokens, weights, output,
// workspace and whatever the layer is to report.
#include <switchyard/switchyard.cuh>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace sy = switchyard;

using mixtral =
    sy::layer<sy::shape{.hidden = 64, .intermediate = 224, .experts = 8, .top_k = 2}, sy::router::softmax_top_k,
              sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>, sy::backend::cuda>;

void check(cudaError_t code) {
  if (code == cudaSuccess) return;
  std::printf("CUDA: %s\n", cudaGetErrorString(code));
  std::exit(1);
}

// Device memory, held until the program ends.
template <class T>
T* allocate(std::size_t count) {
  T* memory = nullptr;
  check(cudaMalloc(&memory, count * sizeof(T)));
  return memory;
}

// Stands in for a checkpoint.
float* numbers(std::size_t count) {
  static std::minstd_rand random(1);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f;
  float* const result = allocate<float>(count);
  check(cudaMemcpy(result, values.data(), count * sizeof(float), cudaMemcpyHostToDevice));
  return result;
}

int main() {
  if (int devices = 0; cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  auto const router = numbers(8 * 64), gate = numbers(8 * 224 * 64), up = numbers(8 * 224 * 64);
  auto const down = numbers(8 * 64 * 224), x = numbers(4 * 64);
  auto const y = allocate<float>(4 * 64), weights = allocate<float>(4 * 2);
  auto const experts = allocate<std::int32_t>(4 * 2);
  auto const scratch = allocate<std::byte>(mixtral::workspace_bytes(4));

  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream));
  mixtral::forward({.tokens = mixtral::rows(x, 4),
                    .weights = {.router = {.weight = router},
                                .gate_proj = mixtral::in_proj(gate),
                                .up_proj = mixtral::in_proj(up),
                                .down_proj = mixtral::out_proj(down)},
                    .output = mixtral::rows(y, 4),
                    .workspace = {scratch, mixtral::workspace_bytes(4)},
                    .decisions = {.experts = experts, .weights = weights}},
                   {.stream = stream});
  // The work is enqueued and not yet done: these copies come after it, because they are in the same stream.
  std::int32_t e[4 * 2];
  float w[4 * 2];
  check(cudaMemcpyAsync(e, experts, sizeof e, cudaMemcpyDeviceToHost, stream));
  check(cudaMemcpyAsync(w, weights, sizeof w, cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  check(cudaStreamDestroy(stream));

  std::printf("%s\n", sy::describe<mixtral>().c_str());
  bool right = true;
  for (int i = 0; i < 4 * 2; i += 2) {
    std::printf("token %d: %.3f of expert %d + %.3f of expert %d\n", i / 2, w[i], e[i], w[i + 1], e[i + 1]);
    right = right && w[i] >= w[i + 1] && w[i] + w[i + 1] > 0.9999f && w[i] + w[i + 1] < 1.0001f;
  }
  return right ? 0 : 1;
}
