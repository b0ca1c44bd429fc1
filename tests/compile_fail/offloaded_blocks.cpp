// expect: switchyard: rows of shape.hidden and of shape.intermediate weights are no whole blocks of this
#include <switchyard/expert/stored_as.hpp>
#include <switchyard/offload.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using layer =
    sy::layer<sy::shape{.hidden = 256, .intermediate = 32, .experts = 16, .top_k = 4}, sy::router::softmax_top_k,
              sy::capacity::dropless,
              sy::expert::stored_as<sy::expert::mlp<sy::relu>, sy::quantised::block_matrix<sy::quantised::q4_K>>,
              sy::backend::offloaded<sy::backend::cpu>>;

void run(layer::args const& args) { layer::forward(args); }
