// expect: switchyard: a projection stands in the place of another one. gate_proj and up_proj, and their biases, are
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using model = layer<shape{8, 8, languages<3>::count, 1}, router::by_language<3>, capacity::dropless,
                    expert::low_rank<languages<3>, 4, expert::mlp<relu>>>;

void wrong(model::args& args, float const* w, float const* a, float const* f) {
  args.weights.up_proj = model::out_proj(w, a, f);
}
