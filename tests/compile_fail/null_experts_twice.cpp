// expect: switchyard: expert::with_null_experts stands twice. Give all of them to one.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using once = sy::expert::with_null_experts<sy::expert::mlp<sy::relu>, sy::null_experts{.zero = 1}>;
auto const wrong = sy::expert::with_null_experts<once, sy::null_experts{.identity = 1}>::name;
