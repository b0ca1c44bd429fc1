// expect: switchyard: this router makes no logits: it takes its experts from .inputs
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using model = layer<shape{8, 8, 4, 2}, router::precomputed, capacity::dropless, expert::mlp<relu>>;

void wrong(model::args& args, float* memory) { args.report.logits = memory; }
