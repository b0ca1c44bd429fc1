// expect: switchyard: router::adaptive_clustering puts a token into the cluster of its first choice, and no publication says whether an expert that computes nothing has one.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong = layer<shape{.hidden = 16, .intermediate = 32, .experts = 8, .top_k = 2},
                    router::adaptive_clustering<router::softmax_top_k>, capacity::dropless,
                    expert::with_null_experts<expert::mlp<relu>, null_experts{.identity = 1}>>;
constexpr auto bytes = wrong::workspace_bytes(1);
