// expect: switchyard: expert::low_rank has an expert for each path, and a token's languages are always one of them, so that nothing would choose expert::with_null_experts.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using with_zero = sy::expert::with_null_experts<sy::expert::mlp<sy::relu>, sy::null_experts{.zero = 1}>;
auto const wrong = sy::expert::low_rank<sy::languages<2>, 4, with_zero>::name;
