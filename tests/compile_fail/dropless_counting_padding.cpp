// expect: switchyard: capacity::counting_padding changes what a capacity is a share of, and capacity::dropless is none. Remove the wrapper or wrap a capacity that drops.
#include <switchyard/switchyard.hpp>

using model = switchyard::capacity::counting_padding<switchyard::capacity::dropless>;

static_assert(model::traits.counts_padding);
