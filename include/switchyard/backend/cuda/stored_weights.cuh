#pragma once

#include <switchyard/backend/cuda/instructions.cuh>
#include <switchyard/backend/cuda/stored_formats.cuh>
#include <switchyard/expert/stored_as.hpp>

#include <cuda_runtime.h>

#include <cstdint>

/// The quantised weights of a tile, brought by the threads of a block or a warpgroup.
namespace switchyard::cuda {

/// The lines of an operand, where it has any; nothing of elements of four bytes, whose products are others.
template <class Operand, int Lines, int Stages>
struct stored_lines_of {
  static constexpr bool exists = false;
  static constexpr int bytes = 0;
};
template <class Element, class Format, int Lines, int Stages>
requires(sizeof(Element) == 2) struct stored_lines_of<quantised_matrix<Element, Format>, Lines, Stages>
    : stored_lines<Format, Lines, Stages> {
};

/// The weights of a tile, of `Features` features, or of so many of gate and then of weight: `threads` bring all of them.
template <class Stored, int Columns, int Features, int Threads, class Operand>
class stored_weights {
  static constexpr int lines_at_once = Threads / 2;
  static_assert(Columns % lines_at_once == 0 && Features % 16 == 0, "all warps are as busy, each with one matrix");

 public:
  /// `side` is a `product_side`; `memory` has `Stored::bytes` for each of its matrices.
  template <class Side>
  __device__ stored_weights(Side const& side, int expert, int first_feature, std::uint32_t memory)
      : gate_(Columns > Features ? side.gate.operand : side.weight.operand),
        weights_(side.weight.operand),
        expert_(expert),
        first_feature_(first_feature),
        features_(side.features),
        depth_(side.depth),
        memory_(memory) {}

  __device__ void enqueue(int stage) const {
#pragma unroll 1
    for (int number = line(); number < Columns; number += lines_at_once) {
      int const feature = first_feature_ + number % Features;
      if (Stored::shared_by_warps || feature < features_) {
        Stored::enqueue(memory(number), matrix(number), expert_, feature, number % Features, half(), stage);
      }
    }
  }

  /// Writes a stage that has come, where copies would bring elements.
  __device__ void widen(std::uint32_t to, int stage) const {
#pragma unroll 1
    for (int number = line(); number < Columns; number += lines_at_once) {
      int const feature = first_feature_ + number % Features;
      std::uint32_t pairs[16] = {};
      if (feature < features_ && stage * stored_depth + 32 * half() < depth_) {
        Stored::template widen<typename Operand::element>(memory(number), matrix(number), expert_, feature,
                                                          number % Features, half(), stage, pairs);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        store_shared(to + static_cast<std::uint32_t>(number * 128 + ((4 * half() + i) ^ (number & 7)) * chunk_bytes),
                     make_uint4(pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]));
      }
    }
  }

 private:
  __device__ static int line() {
    int const thread = static_cast<int>(threadIdx.x) % Threads;
    return thread / 32 * 16 + thread % 16;
  }
  __device__ static int half() { return static_cast<int>(threadIdx.x) / 16 % 2; }
  // A matrix has memory of its own, for its format may be one of its own.
  __device__ std::uint32_t memory(int number) const {
    return memory_ + static_cast<std::uint32_t>(number / Features * Stored::bytes);
  }
  __device__ auto const& matrix(int number) const {
    return (Columns > Features && number < Features ? gate_ : weights_).of;
  }

  Operand const &gate_, &weights_;
  int expert_, first_feature_, features_, depth_;
  std::uint32_t memory_;
};

}  // namespace switchyard::cuda
