#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace switchyard::offload {

/// XXH64 of some bytes with the seed 0, what `xxhsum -H1` prints. Four lanes take 32 bytes a step: lane = rotate(lane + word * p2, 31) * p1.
///
/// A damaged piece has the checksum that it had before by a chance of 2^-64.
/// Source: Y. Collet, XXH64 algorithm description, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md.
inline std::uint64_t checksum(std::byte const* bytes, std::int64_t count) {
  static_assert(std::endian::native == std::endian::little, "words are taken from memory as they stand");
  constexpr std::uint64_t p1 = 0x9e3779b185ebca87u, p2 = 0xc2b2ae3d27d4eb4fu, p3 = 0x165667b19e3779f9u,
                          p4 = 0x85ebca77c2b2ae63u, p5 = 0x27d4eb2f165667c5u;
  auto const word = [](std::byte const* from) {
    std::uint64_t result;
    std::memcpy(&result, from, 8);
    return result;
  };
  auto const step = [](std::uint64_t lane, std::uint64_t input) { return std::rotl(lane + input * p2, 31) * p1; };

  std::byte const *at = bytes, *const end = bytes + count;
  std::uint64_t hash = p5;
  if (count >= 32) {
    std::uint64_t a = p1 + p2, b = p2, c = 0, d = 0 - p1;
    for (; end - at >= 32; at += 32) {
      a = step(a, word(at));
      b = step(b, word(at + 8));
      c = step(c, word(at + 16));
      d = step(d, word(at + 24));
    }
    hash = std::rotl(a, 1) + std::rotl(b, 7) + std::rotl(c, 12) + std::rotl(d, 18);
    for (std::uint64_t lane : {a, b, c, d}) hash = (hash ^ step(0, lane)) * p1 + p4;
  }
  hash += static_cast<std::uint64_t>(count);
  for (; end - at >= 8; at += 8) hash = std::rotl(hash ^ step(0, word(at)), 27) * p1 + p4;
  if (end - at >= 4) {
    std::uint32_t half;
    std::memcpy(&half, at, 4);
    hash = std::rotl(hash ^ half * p1, 23) * p2 + p3;
    at += 4;
  }
  for (; at != end; ++at) hash = std::rotl(hash ^ std::to_integer<std::uint64_t>(*at) * p5, 11) * p1;
  hash = (hash ^ hash >> 33) * p2;
  hash = (hash ^ hash >> 29) * p3;
  return hash ^ hash >> 32;
}

}  // namespace switchyard::offload
