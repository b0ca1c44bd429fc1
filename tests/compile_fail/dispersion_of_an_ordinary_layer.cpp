// expect: switchyard: this router has no clusters whose weights it could report. Wrap it in router::adaptive_clustering.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using model = layer<shape{8, 8, 4, 2}, router::softmax_top_k, capacity::dropless, expert::mlp<relu>>;

void wrong(model::args& args, float* memory) { args.report.dispersion = memory; }
