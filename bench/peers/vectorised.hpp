#pragma once

#include <cstdint>

namespace switchyard::bench::peers {

/// What surrounds the peers' products. Its file alone is compiled with -ffast-math, which the headers of switchyard refuse: so elements come as bits.
///
/// to[i] = silu(gate[i]) * up[i], for n values; the second as bfloat16, nearest, ties to even.
void silu_gated(float const* gate, float const* up, float* to, int n);
void silu_gated(float const* gate, float const* up, std::uint16_t* to, int n);

/// to[i] = from[i] over the scale that it gives, to the nearest of -127 to 127.
float round_to_bytes(float const* from, int n, std::int8_t* to);

}  // namespace switchyard::bench::peers
