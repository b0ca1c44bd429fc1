// expect: switchyard: a layer of router::stratified routes, plans and computes once for every stratum
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using model =
    layer<shape{8, 8, 4, 2}, router::stratified<router::softmax_top_k, 2, 2>, capacity::dropless, expert::mlp<relu>>;
void wrong(model::args const& args) { backend::cpu::route<model>(args); }
