// expect: switchyard: this router takes nothing from .inputs: it decides by the tokens alone.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using plain = layer<shape{8, 8, 4, 2}, router::softmax_top_k, capacity::dropless, expert::mlp<relu>>;
std::int32_t labels[1];
plain::args args{.inputs = {.labels = labels}};
