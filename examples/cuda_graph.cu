// A layer in a CUDA graph. `forward` only enqueues kernels, so it can be captured once; a replay then reads whatever
// tokens stand in the same memory.
#include <switchyard/switchyard.cuh>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace sy = switchyard;

using olmoe =
    sy::layer<sy::shape{.hidden = 64, .intermediate = 32, .experts = 16, .top_k = 4}, sy::router::softmax_top_k_raw,
              sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>, sy::backend::cuda>;

void check(cudaError_t code) {
  if (code == cudaSuccess) return;
  std::printf("CUDA: %s\n", cudaGetErrorString(code));
  std::exit(1);
}

// Device memory with random numbers, held until the program ends.
float* numbers(std::size_t count) {
  static std::minstd_rand random(1);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f;
  float* result = nullptr;
  check(cudaMalloc(&result, count * sizeof(float)));
  check(cudaMemcpy(result, values.data(), count * sizeof(float), cudaMemcpyHostToDevice));
  return result;
}

int main() {
  if (int devices = 0; cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  constexpr int tokens = 16, hidden = olmoe::dims.hidden;
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream));
  void* scratch = nullptr;
  check(cudaMalloc(&scratch, olmoe::workspace_bytes(tokens)));
  float *const x = numbers(tokens * hidden), *const others = numbers(tokens * hidden);
  float* const y = numbers(tokens * hidden);
  olmoe::args const args{.tokens = olmoe::rows(x, tokens),
                         .weights = {.router = {.weight = numbers(16 * hidden)},
                                     .gate_proj = olmoe::in_proj(numbers(16 * 32 * hidden)),
                                     .up_proj = olmoe::in_proj(numbers(16 * 32 * hidden)),
                                     .down_proj = olmoe::out_proj(numbers(16 * hidden * 32))},
                         .output = olmoe::rows(y, tokens),
                         .workspace = {static_cast<std::byte*>(scratch), olmoe::workspace_bytes(tokens)}};

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  olmoe::forward(args, {.stream = stream});
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&replay, graph, 0));

  std::vector<float> first(tokens * hidden), replayed = first, direct = first;
  std::size_t const bytes = first.size() * sizeof(float);
  auto const output = [&](std::vector<float>& to) {
    check(cudaMemcpyAsync(to.data(), y, bytes, cudaMemcpyDeviceToHost, stream));
    check(cudaStreamSynchronize(stream));
  };
  check(cudaGraphLaunch(replay, stream));
  output(first);
  check(cudaMemcpyAsync(x, others, bytes, cudaMemcpyDeviceToDevice, stream));
  check(cudaGraphLaunch(replay, stream));
  output(replayed);
  check(cudaMemsetAsync(y, 0, bytes, stream));
  olmoe::forward(args, {.stream = stream});
  output(direct);
  bool const right = replayed == direct && replayed != first;
  std::printf("%s\na replay %s a direct call\n", sy::describe<olmoe>().c_str(), right ? "equals" : "differs from");
  return right ? 0 : 1;
}
