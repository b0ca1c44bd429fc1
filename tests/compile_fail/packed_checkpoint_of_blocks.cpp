// expect: switchyard: open_safetensors reads experts that a checkpoint has as elements
#include <switchyard/expert/stored_as.hpp>
#include <switchyard/offload/safetensors.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer =
    sy::layer<sy::shape{.hidden = 32, .intermediate = 32, .experts = 16, .top_k = 4}, sy::router::softmax_top_k,
              sy::capacity::dropless,
              sy::expert::stored_as<sy::expert::mlp<sy::relu>, sy::quantised::block_matrix<sy::quantised::q8_0>>>;

void open() { sy::offload::open_safetensors<layer>("folder", {}); }
