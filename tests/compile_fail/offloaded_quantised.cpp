// expect: switchyard: backend::offloaded keeps the dense matrices of expert::mlp and expert::gated_mlp, and those of
#include <switchyard/expert/stored_as.hpp>
#include <switchyard/offload.hpp>
#include <switchyard/quantised/scaled.hpp>

namespace sy = switchyard;

using layer =
    sy::layer<sy::shape{.hidden = 32, .intermediate = 32, .experts = 16, .top_k = 4}, sy::router::softmax_top_k,
              sy::capacity::dropless, sy::expert::stored_as<sy::expert::mlp<sy::relu>, sy::quantised::mxfp4>,
              sy::backend::offloaded<sy::backend::cpu>>;

layer::weights const wrong{};
