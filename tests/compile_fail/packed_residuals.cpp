// expect: the matrices of this layer are not in memory as elements
#include <switchyard/offload/pack_experts.hpp>
#include <switchyard/switchyard.hpp>

using namespace switchyard;

using compressed = layer<shape{.hidden = 64, .intermediate = 128, .experts = 4, .top_k = 2}, router::softmax_top_k,
                         capacity::dropless, expert::residual<expert::gated_mlp<silu>>>;

void pack(compressed::weights const& weights, std::byte* place) { offload::pack_expert<compressed>(weights, 0, place); }
