// expect: switchyard: expert::low_rank needs the rank of its factors, at least 1.
#include <switchyard/switchyard.hpp>

using namespace switchyard;

auto const wrong = expert::low_rank<languages<3>, 0, expert::mlp<relu>>::name;
