// expect: switchyard: a projection stands in the place of another one. gate_proj and up_proj, and their biases, are
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using model = layer<shape{8, 8, 2, 1}, router::switch_top1, capacity::dropless, expert::residual<expert::mlp<relu>>>;

void wrong(model::args& args, float const* centre, masked_change<float> const& residuals) {
  args.weights.up_proj = model::out_proj(centre, residuals);
}
