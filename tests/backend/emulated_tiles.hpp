#pragma once

#include <switchyard/core/bfloat16.hpp>

#include <cstdint>
#include <cstring>

namespace support {

/// What the instructions of AMX do to tiles of 16 rows of 64 bytes. Source: Intel 2024, Architecture Instruction Set
/// Extensions Programming Reference, TDPBF16PS.
struct emulated_tiles {
  static inline int begun = 0, ended = 0;

  unsigned char tile[8][16][64];

  void begin() { ++begun; }
  void end() { ++ended; }
  template <int Tile>
  void zero() {
    std::memset(tile[Tile], 0, sizeof tile[Tile]);
  }
  template <int Tile>
  void load(void const* from, std::int64_t stride) {
    for (int row = 0; row < 16; ++row) std::memcpy(tile[Tile][row], static_cast<char const*>(from) + row * stride, 64);
  }
  template <int Tile>
  void store(void* to, std::int64_t stride) {
    for (int row = 0; row < 16; ++row) std::memcpy(static_cast<char*>(to) + row * stride, tile[Tile][row], 64);
  }
  template <int Sums, int Weights, int Tokens>
  void multiply() {
    using switchyard::bfloat16;
    for (int m = 0; m < 16; ++m) {
      float sums[16];
      bfloat16 left[32], right[32];
      std::memcpy(sums, tile[Sums][m], 64);
      std::memcpy(left, tile[Weights][m], 64);
      for (int pair = 0; pair < 16; ++pair) {
        std::memcpy(right, tile[Tokens][pair], 64);
        for (int n = 0; n < 16; ++n) {
          sums[n] += static_cast<float>(left[2 * pair]) * static_cast<float>(right[2 * n]);
          sums[n] += static_cast<float>(left[2 * pair + 1]) * static_cast<float>(right[2 * n + 1]);
        }
      }
      std::memcpy(tile[Sums][m], sums, 64);
    }
  }
};

}  // namespace support
