// expect: switchyard: expert::residual has a residual for each expert, and the experts of expert::low_rank are paths of
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using by_language = expert::low_rank<languages<3>, 4, expert::mlp<relu>, low_rank_form::restored>;

auto const wrong = expert::residual<by_language>::name;
