#pragma once

#include <cstdint>

namespace switchyard::bench::peers {

/// to[i] = silu(gate[i]) * up[i], for n values; the second as bfloat16, nearest, ties to even. Its file alone is compiled with
/// -ffast-math, which the headers of switchyard refuse: so elements come as bits.
void silu_gated(float const* gate, float const* up, float* to, int n);
void silu_gated(float const* gate, float const* up, std::uint16_t* to, int n);

}  // namespace switchyard::bench::peers
