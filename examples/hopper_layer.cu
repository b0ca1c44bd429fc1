// The layer of Mixtral on a Hopper GPU, compiled for the architecture 90a; and a tuning of one's own beside the library's.
#include <switchyard/switchyard.cuh>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string_view>
#include <vector>

namespace sy = switchyard;

template <class Backend>
using mixtral =
    sy::layer<sy::shape{.hidden = 64, .intermediate = 224, .experts = 8, .top_k = 2}, sy::router::softmax_top_k,
              sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>, Backend, sy::bfloat16>;

// Leaves half of an H200 to other work.
struct beside_others {
  static constexpr std::string_view name = "beside_others";
  template <class Layer>
  static constexpr sy::hopper_tuning of() {
    sy::hopper_tuning tuning = sy::default_hopper_tuning::of<Layer>();
    tuning.most_blocks = 66;
    return tuning;
  }
};

void check(cudaError_t code) {
  if (code == cudaSuccess) return;
  std::printf("CUDA: %s\n", cudaGetErrorString(code));
  std::exit(1);
}

// Device memory, held until the program ends; stands in for a checkpoint.
template <class T>
T* numbers(std::size_t count) {
  static std::minstd_rand random(1);
  std::vector<T> values(count);
  for (T& value : values) value = T(static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f);
  T* memory = nullptr;
  check(cudaMalloc(&memory, count * sizeof(T)));
  check(cudaMemcpy(memory, values.data(), count * sizeof(T), cudaMemcpyHostToDevice));
  return memory;
}

constexpr int token_count = 64;
struct {
  sy::bfloat16 *x, *y, *gate_up, *down;
  float* router;
  std::byte* scratch;
} on_device;

template <class Layer>
std::vector<sy::bfloat16> run() {
  auto const in = Layer::split_gate_up(on_device.gate_up);
  typename Layer::args const args{.tokens = Layer::rows(static_cast<sy::bfloat16 const*>(on_device.x), token_count),
                                  .weights = {.router = {.weight = on_device.router},
                                              .gate_proj = in.gate,
                                              .up_proj = in.up,
                                              .down_proj = Layer::out_proj(on_device.down)},
                                  .output = Layer::rows(on_device.y, token_count),
                                  .workspace = {on_device.scratch, Layer::workspace_bytes(token_count)}};
  bool const grouped = Layer::backend::template products_of<Layer>(args) == sy::product_kind::grouped;
  std::printf("%s, products of %s\n", sy::describe<Layer>().c_str(), grouped ? "Hopper" : "backend::cuda");
  Layer::forward(args);
  std::vector<sy::bfloat16> result(token_count * 64);
  check(cudaMemcpy(result.data(), on_device.y, result.size() * sizeof result[0], cudaMemcpyDeviceToHost));
  return result;
}

int main() {
  cudaDeviceProp device;
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess || device.major != 9) {
    std::printf("skipped: no CUDA device of compute capability 9.0\n");
    return 0;
  }
  using ours = mixtral<sy::backend::hopper>;
  using own = mixtral<sy::backend::hopper_with<beside_others>>;
  on_device = {.x = numbers<sy::bfloat16>(token_count * 64),
               .y = numbers<sy::bfloat16>(token_count * 64),
               .gate_up = numbers<sy::bfloat16>(8 * 2 * 224 * 64),
               .down = numbers<sy::bfloat16>(8 * 64 * 224),
               .router = numbers<float>(8 * 64),
               .scratch = nullptr};
  check(cudaMalloc(&on_device.scratch, ours::workspace_bytes(token_count)));
  auto const first = run<ours>(), second = run<own>();
  for (std::size_t i = 0; i < first.size(); ++i) {
    if (static_cast<float>(first[i]) != static_cast<float>(second[i])) return 1;  // where tiles run changes no bit
  }
  return 0;
}
