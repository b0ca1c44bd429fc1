// expect: switchyard: the factored form of expert::low_rank goes with no expert::top_k_units. Give
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using units = sy::expert::top_k_units<sy::expert::mlp<sy::relu>, 4>;
auto const wrong = sy::expert::low_rank<sy::languages<3>, 4, units>::name;
