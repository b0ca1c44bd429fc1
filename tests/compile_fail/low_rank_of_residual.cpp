// expect: switchyard: expert::low_rank has one matrix for all paths, and expert::residual one for each expert. Take one of
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using compressed = expert::residual<expert::mlp<relu>>;

auto const wrong = expert::low_rank<languages<3>, 4, compressed>::name;
