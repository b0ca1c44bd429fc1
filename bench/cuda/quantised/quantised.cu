#include "../erase.cuh"
#include "../hopper.cuh"

#include <switchyard/expert/stored_as.hpp>
#include <switchyard/offload.cuh>
#include <switchyard/offload/host_store.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/grouped.hpp>
#include <switchyard/quantised/scaled.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>

// Layers of quantised experts, and of offloaded ones, beside the same one with dense ones in memory.
namespace switchyard::bench {

// Which of the three matrices, of a layer's experts.
struct matrix_place {
  int number, experts, rows, columns;
  std::int64_t weights() const { return std::int64_t{experts} * rows * columns; }
};

inline quantised::mxfp4 make(quantised::mxfp4, quantised_bytes const& from, matrix_place const& at) {
  return {from.codes + at.number * at.weights() / 2, from.exponents, at.rows, at.columns};
}
inline quantised::fp8_block make(quantised::fp8_block, quantised_bytes const& from, matrix_place const& at) {
  return {from.codes + at.number * at.weights(), from.floats, at.rows, at.columns};
}
template <class Block>
quantised::block_matrix<Block> make(quantised::block_matrix<Block>, quantised_bytes const& from,
                                    matrix_place const& at) {
  return quantised::block_matrix<Block>::packed(from.codes + at.number * at.weights() / Block::weights * Block::bytes,
                                                at.rows, at.columns);
}
inline quantised::gptq make(quantised::gptq, quantised_bytes const& from, matrix_place const& at) {
  auto const* const words = reinterpret_cast<std::uint32_t const*>(from.codes);
  return {words + at.number * at.weights() / 8, words, from.halves, at.rows, at.columns};
}

template <class Format>
constexpr double bits_of(Format) {
  return 8.0;
}
constexpr double bits_of(quantised::mxfp4) { return 4.25; }
constexpr double bits_of(quantised::gptq) { return 4.0 + (16.0 + 4.0) / 128.0; }
template <class Block>
constexpr double bits_of(quantised::block_matrix<Block>) {
  return 8.0 * Block::bytes / Block::weights;
}

template <shape Dims, class Expert>
using quantised_layer = layer<Dims, router::softmax_top_k, capacity::dropless, Expert, gpu_backend, bfloat16>;

template <class Layer, class Format>
void enqueue_quantised(gpu_memory const& memory, quantised_bytes const& bytes, cudaStream_t stream) {
  constexpr shape dims = Layer::dims;
  typename Layer::args args{};
  args.tokens = Layer::rows(memory.input, memory.tokens);
  args.output = Layer::rows(memory.output, memory.tokens);
  args.workspace = memory.workspace;
  args.weights.router.weight = memory.router.weight;
  args.weights.gate_proj = make(Format{}, bytes, {0, dims.experts, dims.intermediate, dims.hidden});
  args.weights.up_proj = make(Format{}, bytes, {1, dims.experts, dims.intermediate, dims.hidden});
  args.weights.down_proj = make(Format{}, bytes, {2, dims.experts, dims.hidden, dims.intermediate});
  Layer::forward(args, {.stream = stream});
}

template <class Layer, class Format>
gpu_format of_format(char const* name) {
  return {name, bits_of(Format{}), &enqueue_quantised<Layer, Format>, &Layer::workspace_bytes};
}

// A layer's experts in pinned memory of the host. They are kept until the program ends, as caches are: the GPU may be gone when static objects
// are destroyed.
template <class Layer>
offload::host_store& pinned_experts() {
  constexpr std::int64_t bytes = offload::piece<Layer>::bytes, all = Layer::dims.experts * offload::place_bytes(bytes);
  static offload::host_store& store = *new offload::host_store([] {
    auto& pieces = *new offload::pinned_memory(all);
    std::memset(pieces.data(), 0, all);
    return offload::host_store(
        {.pieces = pieces.data(), .layers = 1, .experts = Layer::dims.experts, .piece_bytes = bytes});
  }());
  return store;
}

// With room on the device for so many of them.
template <class Layer, int Places>
void enqueue_offloaded(gpu_memory const& memory, quantised_bytes const&, cudaStream_t stream) {
  using cache_type = offload::expert_cache<offload::host_store, offload::lru_with_lookahead, offload::device_memory>;
  static cache_type& cache = *new cache_type(
      pinned_experts<Layer>(), {.budget_bytes = Places * offload::place_bytes(offload::piece<Layer>::bytes)});
  typename Layer::args args{};
  args.tokens = Layer::rows(memory.input, memory.tokens);
  args.output = Layer::rows(memory.output, memory.tokens);
  args.workspace = memory.workspace;
  args.weights.router.weight = memory.router.weight;
  args.weights.experts = cache.layer(0);
  Layer::forward(args, {.stream = stream});
}

template <class Layer, int Places>
gpu_format in_cache(char const* name) {
  return {name, 16.0, &enqueue_offloaded<Layer, Places>, &Layer::workspace_bytes};
}

template <shape Dims, class... Formats>
bool compile_quantised(bool small) {
  using dense = expert::gated_mlp<silu>;
  gpu_quantised result;
  result.small = small;
  result.base = erase_planning<quantised_layer<Dims, dense>>();
  (result.formats.push_back(
       of_format<quantised_layer<Dims, expert::stored_as<dense, Formats>>, Formats>(Formats::name)),
   ...);
  if constexpr (on_hopper) {
    using format = quantised::fp8_block;
    using widened = quantised_layer<Dims, expert::stored_as<dense, format>>;
    result.formats.push_back(
        of_format<on_backend<widened, backend::hopper_with<tokens_in_fp8>>, format>("fp8_block x fp8"));
  }
  using offloaded = on_backend<quantised_layer<Dims, dense>, backend::offloaded<gpu_backend>>;
  result.formats.push_back(in_cache<offloaded, Dims.experts>("offloaded, all"));
  result.formats.push_back(in_cache<offloaded, Dims.experts / 2>("offloaded, half"));
  compiled_quantised().push_back(result);
  return true;
}

template <shape Dims>
bool compile_formats(bool small) {
  return compile_quantised<Dims, quantised::mxfp4, quantised::fp8_block, quantised::block_matrix<quantised::q4_K>,
                           quantised::gptq>(small);
}
static bool const compiled =
    compile_formats<shape{.hidden = 256, .intermediate = 256, .experts = 4, .top_k = 2}>(true) &&
    compile_formats<shape{.hidden = 2048, .intermediate = 1024, .experts = 64, .top_k = 8}>(false);

}  // namespace switchyard::bench
