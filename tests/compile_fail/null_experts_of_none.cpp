// expect: switchyard: expert::with_null_experts takes how many there are of each kind, at least one together: null_experts{.identity = 8}.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

auto const wrong = sy::expert::with_null_experts<sy::expert::mlp<sy::relu>, sy::null_experts{}>::name;
