// expect: switchyard: expert::with_gated_projection stands twice.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using once = expert::with_gated_projection<expert::value_row>;

auto const wrong = expert::with_gated_projection<once>::name;
