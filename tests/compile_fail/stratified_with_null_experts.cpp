// expect: switchyard: router::stratified lets a token climb by its first choice, and no publication says in which stratum an expert stands that computes nothing.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 32, .experts = 8, .top_k = 2},
                    router::stratified<router::softmax_top_k, 4, 4>, capacity::dropless,
                    expert::with_null_experts<expert::mlp<relu>, null_experts{.zero = 1}>>;
constexpr auto bytes = wrong::workspace_bytes(1);
