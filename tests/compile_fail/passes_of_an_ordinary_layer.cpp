// expect: switchyard: this router makes one pass. Only router::stratified reports .passes.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using model = layer<shape{8, 8, 4, 2}, router::softmax_top_k, capacity::dropless, expert::mlp<relu>>;

void wrong(model::args& args, std::uint8_t* passes) { args.report.passes = passes; }
