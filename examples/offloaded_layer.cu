// A layer on a GPU that has memory for 3 of its 8 experts. The others stand in pinned memory of the host, and come when a token is
// routed to them.
#include <switchyard/offload.cuh>
#include <switchyard/offload/host_store.hpp>
#include <switchyard/offload/pack_experts.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace sy = switchyard;

template <class Backend>
using mixtral = sy::layer<sy::shape{.hidden = 64, .intermediate = 224, .experts = 8, .top_k = 2},
                          sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>, Backend>;
using layer = mixtral<sy::backend::offloaded<sy::backend::cuda>>;
using cache_type =
    sy::offload::expert_cache<sy::offload::host_store, sy::offload::lru_with_lookahead, sy::offload::device_memory>;

// Stands in for a checkpoint.
std::vector<float> numbers(std::size_t count) {
  static std::minstd_rand random(1);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f;
  return values;
}

// Device memory, held until the program ends.
template <class T>
T* on_device(std::size_t count, T const* values = nullptr) {
  void* memory = nullptr;
  sy::cuda::check("cudaMalloc", cudaMalloc(&memory, count * sizeof(T)));
  if (values != nullptr) {
    sy::cuda::check("cudaMemcpy", cudaMemcpy(memory, values, count * sizeof(T), cudaMemcpyHostToDevice));
  }
  return static_cast<T*>(memory);
}

int main() {
  if (int devices = 0; cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  using in_memory = mixtral<sy::backend::cpu>;
  constexpr std::int64_t place = sy::offload::place_bytes(sy::offload::piece<layer>::bytes);
  auto const gate = numbers(8 * 224 * 64), up = numbers(8 * 224 * 64), down = numbers(8 * 64 * 224);
  sy::offload::pinned_memory const pieces(8 * place);
  sy::offload::pack_experts<in_memory>({.gate_proj = in_memory::in_proj(gate.data()),
                                        .up_proj = in_memory::in_proj(up.data()),
                                        .down_proj = in_memory::out_proj(down.data())},
                                       pieces.data());
  sy::offload::host_store store(
      {.pieces = pieces.data(), .layers = 1, .experts = 8, .piece_bytes = sy::offload::piece<layer>::bytes});
  cache_type cache(store, {.budget_bytes = 3 * place});

  auto const router = numbers(8 * 64), x = numbers(4 * 64);
  float* const y = on_device<float>(4 * 64);
  std::byte* const scratch = on_device<std::byte>(layer::workspace_bytes(4));
  cudaStream_t stream = nullptr;
  sy::cuda::check("cudaStreamCreate", cudaStreamCreate(&stream));
  for (int call = 0; call < 2; ++call) {
    layer::forward(
        {.tokens = layer::rows(on_device(x.size(), x.data()), 4),
         .weights = {.router = {.weight = on_device(router.size(), router.data())}, .experts = cache.layer(0)},
         .output = layer::rows(y, 4),
         .workspace = {scratch, layer::workspace_bytes(4)}},
        {.stream = stream});
    auto const so_far = cache.measure();
    std::printf("call %d: %lld bytes copied so far, at most %lld on the device\n", call,
                static_cast<long long>(so_far.moved_bytes), static_cast<long long>(so_far.peak_bytes));
  }
  sy::cuda::check("cudaStreamSynchronize", cudaStreamSynchronize(stream));
  sy::cuda::check("cudaStreamDestroy", cudaStreamDestroy(stream));
  auto const measured = cache.measure();
  return measured.peak_bytes <= 3 * place && measured.layers[0].hits > 0 ? 0 : 1;
}
