// expect: switchyard: load_importance_loss needs at least two experts and a top_k from 1 to that number.
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

float wrong(sy::view<float const> logits) { return sy::load_importance_loss<1, 1>(logits); }
