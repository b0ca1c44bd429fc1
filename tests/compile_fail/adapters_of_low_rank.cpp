// expect: switchyard: expert::adapters goes around expert::mlp or expert::gated_mlp, plain, with biases, or with a
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using changed = sy::expert::low_rank<sy::languages<3>, 4, sy::expert::mlp<sy::relu>>;
auto const wrong = sy::expert::adapters<2, 4, changed>::name;
