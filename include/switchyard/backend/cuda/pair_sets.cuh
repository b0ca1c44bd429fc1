#pragma once

#include <switchyard/core/divide_up.hpp>

#include <cuda_runtime.h>

#include <cstdint>

namespace switchyard::cuda {

/// For every expert a set of pairs, one bit each. The pairs are cut into token_blocks of equal size, and a token block begins with a
/// word of its own, so that whoever has the tokens of a token block can write it alone.
struct pair_sets {
  std::uint32_t* words = nullptr;  ///< [experts, token_blocks * block_words]
  std::int64_t token_blocks = 0;
  int block_pairs = 0;

  __host__ __device__ constexpr int block_words() const { return (block_pairs + 31) / 32; }
  __host__ __device__ constexpr std::int64_t words_per_expert() const { return token_blocks * block_words(); }
  __device__ std::uint32_t* of(int expert) const { return words + expert * words_per_expert(); }

  /// The pair of a word's first bit.
  __device__ std::int64_t first_pair(std::int64_t word) const {
    return word / block_words() * block_pairs + word % block_words() * 32;
  }

  /// Where the bit of a pair stands within an expert's words.
  struct bit_position {
    std::int64_t word;
    int bit;
  };
  __device__ bit_position bit_of(std::int64_t pair) const {
    int const within = static_cast<int>(pair % block_pairs);
    return {pair / block_pairs * block_words() + within / 32, within % 32};
  }

  /// `count` pairs (at most 32) from any pair on, as one word.
  __device__ std::uint32_t window(std::uint32_t const* set, std::int64_t first, int count) const {
    std::uint32_t bits = 0;
    for (int done = 0; done < count;) {
      int const within = static_cast<int>((first + done) % block_pairs), shift = within % 32;
      int const here = min(min(32 - shift, block_pairs - within), count - done);
      std::uint32_t const word = set[(first + done) / block_pairs * block_words() + within / 32] >> shift;
      bits |= (word & (~0u >> (32 - here))) << done;
      done += here;
    }
    return bits;
  }
};

}  // namespace switchyard::cuda
