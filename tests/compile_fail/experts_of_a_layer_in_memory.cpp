// expect: switchyard: this layer reads its experts where .gate_proj, .up_proj and .down_proj say. Take
#include <switchyard/offload.hpp>

namespace sy = switchyard;

using layer = sy::layer<sy::shape{.hidden = 8, .intermediate = 8, .experts = 4, .top_k = 2}, sy::router::softmax_top_k,
                        sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

layer::weights wrong(sy::offload::layer_experts<sy::offload::host_memory> const& experts) {
  return {.router = {}, .experts = experts};
}
