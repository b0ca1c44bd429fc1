// expect: switchyard: expert::low_rank stands twice. Put the factors together: ranks add up.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using once = expert::low_rank<languages<3>, 4, expert::mlp<relu>>;

auto const wrong = expert::low_rank<languages<3>, 4, once>::name;
