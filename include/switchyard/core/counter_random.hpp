#pragma once

#include <switchyard/core/host_device.hpp>

#include <cmath>
#include <cstdint>

namespace switchyard {

/// What Philox makes of one counter, and the counter itself.
struct philox_block {
  std::uint32_t word[4];

  friend constexpr bool operator==(philox_block const&, philox_block const&) = default;
};

/// Philox4x32-10: a bijection of counters for each key, whose values pass for random numbers.
/// Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3, section 3.3.
SWITCHYARD_HD constexpr philox_block philox(philox_block counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    std::uint64_t const first = std::uint64_t{0xD2511F53u} * counter.word[0];
    std::uint64_t const second = std::uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<std::uint32_t>(second >> 32) ^ counter.word[1] ^ key0, static_cast<std::uint32_t>(second),
                static_cast<std::uint32_t>(first >> 32) ^ counter.word[3] ^ key1, static_cast<std::uint32_t>(first)}};
    key0 += 0x9E3779B9u;  // the golden ratio
    key1 += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return counter;
}

/// Random numbers that depend on seed, stream and index alone: the same ones in whatever order, and by however many
/// threads, they are drawn. One seed has 2^64 streams; take one for each purpose, since number `i` of a stream has the
/// same bits behind it whether it is drawn as `uniform` or as `normal`. It has no state, and runs on the host and on a
/// device.
struct counter_random {
  std::uint64_t seed = 0;
  std::uint64_t stream = 0;

  /// The four words behind the numbers 4 * index to 4 * index + 3.
  SWITCHYARD_HD constexpr philox_block block(std::uint64_t index) const {
    return philox({{low(index), high(index), low(stream), high(stream)}}, low(seed), high(seed));
  }

  /// Number `index` of the uniform ones: a multiple of 2^-24, at least 0 and less than 1.
  SWITCHYARD_HD constexpr float uniform(std::uint64_t index) const {
    return uniform_of(block(index / 4).word[index % 4]);
  }
  /// The same from the word behind it.
  SWITCHYARD_HD static constexpr float uniform_of(std::uint32_t word) {
    return static_cast<float>(word >> 8) * 0x1p-24f;
  }

  /// Number `index` of the normal ones, with mean 0 and standard deviation 1; at most 6.7 in magnitude. It is computed
  /// in double and rounded at the end, so that libraries of mathematical functions hardly ever disagree, and then in
  /// the last bit.
  SWITCHYARD_HD float normal(std::uint64_t index) const {
    float four[4];
    normals(index / 4, four);
    return four[index % 4];
  }

  /// The normal numbers 4 * index to 4 * index + 3, for what one of them costs.
  /// Source: Box and Muller 1958, A note on the generation of random normal deviates.
  SWITCHYARD_HD void normals(std::uint64_t index, float (&four)[4]) const {
    philox_block const from = block(index);
    for (int pair = 0; pair < 4; pair += 2) {
      // Half a step above 0, which has no logarithm.
      double const radius = std::sqrt(-2.0 * std::log((from.word[pair] + 0.5) * 0x1p-32));
      double const angle = 6.283185307179586 * (from.word[pair + 1] * 0x1p-32);
      four[pair] = static_cast<float>(radius * std::cos(angle));
      four[pair + 1] = static_cast<float>(radius * std::sin(angle));
    }
  }

 private:
  SWITCHYARD_HD static constexpr std::uint32_t low(std::uint64_t value) { return static_cast<std::uint32_t>(value); }
  SWITCHYARD_HD static constexpr std::uint32_t high(std::uint64_t value) {
    return static_cast<std::uint32_t>(value >> 32);
  }
};

}  // namespace switchyard
