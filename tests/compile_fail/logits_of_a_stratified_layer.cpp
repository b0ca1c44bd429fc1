// expect: switchyard: router::stratified makes logits anew in each stratum, and does not report them.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using model =
    layer<shape{8, 8, 4, 2}, router::stratified<router::softmax_top_k, 2, 2>, capacity::dropless, expert::mlp<relu>>;

void wrong(model::args& args, float* memory) { args.report = {.logits = memory}; }
