// Included by ceilings.cpp once per instruction set, each time inside another namespace, as tile.inl is in the
// library, with
//   SWITCHYARD_CEILING_TARGET  the attribute that lets a function use the instruction set
//   SWITCHYARD_CEILING_BYTES   bytes of one vector register

typedef float floats __attribute__((vector_size(SWITCHYARD_CEILING_BYTES)));
typedef std::int64_t integers __attribute__((vector_size(SWITCHYARD_CEILING_BYTES)));

/// `rounds` multiply-adds on 12 registers: enough to hide the latency of two units. Returns the flops done.
SWITCHYARD_CEILING_TARGET inline double multiply_add(std::int64_t rounds, float* sink) {
  constexpr int registers = 12;
  floats sum[registers];
  for (int r = 0; r < registers; ++r) sum[r] = floats{} + static_cast<float>(r);  // equal sums would be one
  floats const factor = floats{} + 0.999f;
  for (std::int64_t i = 0; i < rounds; ++i) {
    _Pragma("GCC unroll 12") for (int r = 0; r < registers; ++r) sum[r] = sum[r] * factor + factor;
  }
  for (int r = 1; r < registers; ++r) sum[0] += sum[r];
  *sink = sum[0][0];  // without it the compiler would leave the loop out
  return 2.0 * registers * (SWITCHYARD_CEILING_BYTES / 4) * static_cast<double>(rounds);
}

/// Reads `bytes` (a multiple of 32 KiB) in eight parallel streams, fetched 2 KiB ahead.
SWITCHYARD_CEILING_TARGET inline std::int64_t read(std::byte const* from, std::int64_t bytes) {
  constexpr int streams = 8;
  std::int64_t const length = bytes / streams;
  integers sum[streams] = {};
  for (std::int64_t i = 0; i < length; i += 64) {
    _Pragma("GCC unroll 8") for (int s = 0; s < streams; ++s) {
      std::byte const* const line = from + s * length + i;
      __builtin_prefetch(line + 2048);
      _Pragma("GCC unroll 4") for (int part = 0; part < 64; part += SWITCHYARD_CEILING_BYTES) {
        integers value;
        __builtin_memcpy(&value, line + part, sizeof value);
        sum[s] ^= value;
      }
    }
  }
  for (int s = 1; s < streams; ++s) sum[0] ^= sum[s];
  return sum[0][0];
}
