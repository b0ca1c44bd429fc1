// expect: switchyard: factored residuals of expert::residual go with no expert::top_k_units and no
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using kept = expert::top_k_units<expert::mlp<relu>, 4>;

auto const wrong = expert::residual<kept, low_rank_residuals<4>>::name;
