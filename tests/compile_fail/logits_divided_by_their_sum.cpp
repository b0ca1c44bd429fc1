// expect: router::top_k cannot divide by the sum or norm of scores::logits
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

using router = sy::router::top_k<sy::router::scores::logits, sy::router::selection::best, sy::router::weighting::sum>;

void wrong(sy::per_expert<4, sy::serial_lanes> const& logits) { router::select<2>(sy::serial_lanes{}, logits, {}); }
