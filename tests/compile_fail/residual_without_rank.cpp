// expect: switchyard: low_rank_residuals needs the rank of its factors, at least 1.
#include <switchyard/switchyard.hpp>

using namespace switchyard;

auto const wrong = expert::residual<expert::mlp<relu>, low_rank_residuals<0>>::name;
