// expect: switchyard: quantised_products::tokens_in_fp8 is for experts stored as quantised::fp8_block or quantised::fp8_tensor, with bfloat16 or half tokens.
// expect: switchyard: with quantised_products::tokens_in_fp8 shape.hidden and shape.intermediate are multiples of 128, which have a scale.
// expect: switchyard: backend::hopper multiplies quantised weights exactly, or with tokens in fp8.
#include <switchyard/expert/stored_as.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/scaled.hpp>
#include <switchyard/switchyard.cuh>

using namespace switchyard;
struct in_int8 {
  static constexpr std::string_view name = "in_int8";
  template <class Layer>
  static constexpr hopper_tuning of() {
    hopper_tuning tuning = default_hopper_tuning::of<Layer>();
    tuning.quantised = quantised_products::tokens_in_int8;
    return tuning;
  }
};
template <int Hidden, class Format, class Tuning>
using wrong =
    layer<shape{.hidden = Hidden, .intermediate = 128, .experts = 8, .top_k = 2}, router::softmax_top_k,
          capacity::dropless, expert::stored_as<expert::mlp<relu>, Format>, backend::hopper_with<Tuning>, bfloat16>;
std::size_t of_blocks() {
  return wrong<128, quantised::block_matrix<quantised::q8_0>, tokens_in_fp8>::workspace_bytes(1);
}
std::size_t of_a_width() { return wrong<192, quantised::fp8_block, tokens_in_fp8>::workspace_bytes(1); }
std::size_t in_bytes() { return wrong<128, quantised::block_matrix<quantised::q8_0>, in_int8>::workspace_bytes(1); }
