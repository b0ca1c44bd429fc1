#pragma once

#include <switchyard/core/divide_up.hpp>

#include <cuda_runtime.h>

#include <cstdint>

namespace switchyard::cuda {

/// For every expert a set of pairs, one bit each. The pairs are cut into pieces of equal size, and a piece begins with a
/// word of its own, so that whoever has the tokens of a piece can write it alone.
struct pair_sets {
  std::uint32_t* words = nullptr;  ///< [experts, pieces * piece_words]
  std::int64_t pieces = 0;
  int piece_pairs = 0;

  __host__ __device__ constexpr int piece_words() const { return (piece_pairs + 31) / 32; }
  __host__ __device__ constexpr std::int64_t words_per_expert() const { return pieces * piece_words(); }
  __device__ std::uint32_t* of(int expert) const { return words + expert * words_per_expert(); }

  /// The pair of a word's first bit.
  __device__ std::int64_t first_pair(std::int64_t word) const {
    return word / piece_words() * piece_pairs + word % piece_words() * 32;
  }

  /// Where a pair's bit stands within an expert's words.
  struct place {
    std::int64_t word;
    int bit;
  };
  __device__ place place_of(std::int64_t pair) const {
    int const within = static_cast<int>(pair % piece_pairs);
    return {pair / piece_pairs * piece_words() + within / 32, within % 32};
  }

  /// `count` pairs (at most 32) from any pair on, as one word.
  __device__ std::uint32_t window(std::uint32_t const* set, std::int64_t first, int count) const {
    std::uint32_t bits = 0;
    for (int done = 0; done < count;) {
      int const within = static_cast<int>((first + done) % piece_pairs), shift = within % 32;
      int const here = min(min(32 - shift, piece_pairs - within), count - done);
      std::uint32_t const word = set[(first + done) / piece_pairs * piece_words() + within / 32] >> shift;
      bits |= (word & (~0u >> (32 - here))) << done;
      done += here;
    }
    return bits;
  }
};

}  // namespace switchyard::cuda
