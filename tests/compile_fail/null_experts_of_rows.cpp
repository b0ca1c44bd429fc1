// expect: switchyard: expert::with_null_experts goes with expert::mlp and expert::gated_mlp.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::expert::with_null_experts<sy::expert::value_row, sy::null_experts{.zero = 1}>::name;
