// expect: switchyard: a layer of router::stratified routes, plans and computes once for every stratum
#include <switchyard/switchyard.cuh>

using namespace switchyard;
using layer_type =
    layer<shape{.hidden = 16, .intermediate = 32, .experts = 8, .top_k = 2},
          router::stratified<router::softmax_top_k, 4, 4>, capacity::dropless, expert::mlp<relu>, backend::cuda>;
void wrong(layer_type::args const& args) { backend::cuda::route<layer_type>(args); }
