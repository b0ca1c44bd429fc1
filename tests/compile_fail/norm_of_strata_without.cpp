// expect: switchyard: router::without_stratum_norms takes the norms away.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using model = layer<shape{8, 8, 4, 2}, router::without_stratum_norms<router::stratified<router::softmax_top_k, 2, 2>>,
                    capacity::dropless, expert::mlp<relu>>;

void wrong(model::args& args) { args.inputs.norm = stratum_norms<2>{}; }
