// expect: switchyard: expert::top_k_units goes with no expert::adapters, and with the restored form of
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using factored = sy::expert::low_rank<sy::languages<3>, 4, sy::expert::mlp<sy::relu>>;
auto const wrong = sy::expert::top_k_units<factored, 4>::name;
