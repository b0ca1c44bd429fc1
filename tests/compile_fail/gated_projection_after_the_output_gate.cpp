// expect: switchyard: the output gate multiplies what the projection makes. Write expert::with_output_gate<expert::with_gated_projection<...>>.
#include <switchyard/switchyard.hpp>

using namespace switchyard;

auto const wrong = expert::with_gated_projection<expert::with_output_gate<expert::value_row>>::name;
