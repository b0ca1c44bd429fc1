// expect: switchyard: expert::with_gated_projection is for experts that are rows: value_row and neuron.
#include <switchyard/switchyard.hpp>

using namespace switchyard;

auto const wrong = expert::with_gated_projection<expert::mlp<relu>>::name;
