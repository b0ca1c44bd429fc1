// expect: switchyard: this layer has no constant experts. Give expert::with_null_experts some, or leave .constant_experts out.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 32, .experts = 8, .top_k = 2}, router::softmax_top_k,
                    capacity::dropless, expert::with_null_experts<expert::mlp<relu>, null_experts{.identity = 1}>>;
void use(wrong::args& args, float const* memory) { args.weights.constant_experts.vectors = memory; }
