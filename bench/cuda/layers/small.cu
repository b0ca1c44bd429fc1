#include "../layer_bench.cuh"

// Everything that the bench knows: biases, a capacity that drops, a gated expert.
namespace sy = switchyard;
using small_layer =
    sy::layer<sy::shape{.hidden = 64, .intermediate = 96, .experts = 8, .top_k = 2},
              sy::router::with_bias<sy::router::softmax_top_k>, sy::capacity::factor<5, 4>,
              sy::expert::with_bias<sy::expert::gated_mlp<sy::silu>>, sy::bench::gpu_backend, sy::bfloat16>;

static bool const added = sy::bench::add_layer<small_layer>(true);
