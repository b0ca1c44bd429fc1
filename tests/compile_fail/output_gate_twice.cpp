// expect: switchyard: expert::with_output_gate stands twice.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using once = expert::with_output_gate<expert::value_row>;

auto const wrong = expert::with_output_gate<once>::name;
