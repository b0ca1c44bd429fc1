// expect: switchyard: expert::low_rank has an expert for each path, and a token's languages are always one of them, so that nothing would choose expert::with_null_experts.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using by_language = sy::expert::low_rank<sy::languages<2>, 4, sy::expert::mlp<sy::relu>>;
auto const wrong = sy::expert::with_null_experts<by_language, sy::null_experts{.zero = 1}>::name;
