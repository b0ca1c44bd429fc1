// expect: switchyard: the constant experts of this layer are vectors alone. Make them .mixed_constant in expert::with_null_experts, or leave .constant_experts.mixing out.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 32, .experts = 8, .top_k = 2}, router::softmax_top_k,
                    capacity::dropless, expert::with_null_experts<expert::mlp<relu>, null_experts{.constant = 1}>>;
void use(wrong::args& args, float const* memory) { args.weights.constant_experts.mixing = memory; }
