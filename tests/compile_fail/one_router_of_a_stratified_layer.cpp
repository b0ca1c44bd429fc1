// expect: switchyard: router::stratified has a router weight for each stratum. Set .stratum[0], .stratum[1], ... instead of .weight.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using layer_type = layer<shape{.hidden = 16, .intermediate = 32, .experts = 8, .top_k = 2},
                         router::stratified<router::softmax_top_k, 4, 4>, capacity::dropless, expert::mlp<relu>>;

void wrong(layer_type::args& args, float const* memory) { args.weights.router.weight = memory; }
