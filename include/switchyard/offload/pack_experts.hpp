#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/offload/piece.hpp>
#include <switchyard/offload/store.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>

namespace switchyard::offload {

namespace detail {

/// Copies a matrix of any strides, in elements, to one whose rows stand back to back.
template <class T>
void copy_matrix(T const* from, std::int64_t row_stride, std::int64_t column_stride, std::int64_t rows,
                 std::int64_t columns, T* to) {
  if (column_stride == 1) {
    for (std::int64_t r = 0; r < rows; ++r) {
      std::memcpy(to + r * columns, from + r * row_stride, static_cast<std::size_t>(columns) * sizeof(T));
    }
    return;
  }
  // Squares of cache lines: a whole column would leave the cache before its neighbour is read.
  constexpr std::int64_t side = 64 / sizeof(T);
  for (std::int64_t first_row = 0; first_row < rows; first_row += side) {
    std::int64_t const end_row = std::min(rows, first_row + side);
    for (std::int64_t first = 0; first < columns; first += side) {
      std::int64_t const end = std::min(columns, first + side);
      for (std::int64_t r = first_row; r < end_row; ++r) {
        for (std::int64_t c = first; c < end; ++c) to[r * columns + c] = from[r * row_stride + c * column_stride];
      }
    }
  }
}

/// The same to a part of a piece. What stands before the next part is zeros, so that equal experts are equal pieces.
template <class T>
void put_matrix(T const* from, std::int64_t row_stride, std::int64_t column_stride, std::int64_t rows,
                std::int64_t columns, std::byte* part) {
  copy_matrix(from, row_stride, column_stride, rows, columns, reinterpret_cast<T*>(part));
  std::int64_t const bytes = rows * columns * static_cast<std::int64_t>(sizeof(T));
  std::memset(part + bytes, 0, static_cast<std::size_t>((64 - bytes % 64) % 64));
}

}  // namespace detail

/// Puts one expert of a resident layer into a place: its matrices and biases, which may stand in memory in any order that strides
/// describe (transposed, interleaved; of quantised blocks row by row). Throws where one is missing.
template <class Layer>
void pack_expert(typename Layer::weights const& weights, int expert, std::byte* place) {
  using element = typename Layer::element;
  using matrices = std::remove_cvref_t<decltype(weights.up_proj)>;
  using of_expert = typename Layer::expert::template operand<element, projection::in>;
  constexpr bool in_memory = std::is_same_v<matrices, of_expert> && fits_pieces<of_expert>;
  static_assert(in_memory,
                "switchyard: the matrices of this layer are not in memory as elements, nor in quantised blocks. "
                "offload::pack_experts packs the experts of a layer of expert::mlp, expert::gated_mlp or "
                "expert::stored_as, with the backend that keeps them in memory.");
  if constexpr (in_memory) {
    using at = piece<Layer>;
    auto const put = [&](element const* from, char const* name, std::int64_t offset, std::int64_t rows,
                         std::int64_t columns, std::int64_t row_stride, std::int64_t column_stride) {
      if (from == nullptr) fail(std::string("offload::pack_experts, weights.") + name, "numbers", "a null pointer");
      detail::put_matrix(from, row_stride, column_stride, rows, columns, place + offset);
    };
    if constexpr (!matrices::in_place) Layer::expert::template check<Layer>(weights);
    auto const matrix = [&](auto const& w, char const* name, std::int64_t offset, int rows, int columns) {
      if constexpr (matrices::in_place) {
        put(w.data == nullptr ? nullptr : w.at(expert, 0, 0), name, offset, rows, columns, w.row_stride,
            w.column_stride);
      } else {
        std::int64_t const bytes = matrices::bytes_of(rows, columns);
        w.copy_expert(expert, place + offset);
        std::memset(place + offset + bytes, 0, static_cast<std::size_t>((64 - bytes % 64) % 64));
      }
    };
    auto const bias = [&](auto const& b, char const* name, std::int64_t offset, std::int64_t size) {
      put(b.data == nullptr ? nullptr : b.data + expert * b.expert_stride, name, offset, 1, size, 0, b.stride);
    };
    if constexpr (at::gated) matrix(weights.gate_proj, "gate_proj", at::gate, at::intermediate, at::hidden);
    matrix(weights.up_proj, "up_proj", at::up, at::intermediate, at::hidden);
    matrix(weights.down_proj, "down_proj", at::down, at::hidden, at::intermediate);
    if constexpr (at::has_bias) {
      if constexpr (at::gated) bias(weights.bias.gate, "bias.gate", at::gate_bias, at::intermediate);
      bias(weights.bias.up, "bias.up", at::up_bias, at::intermediate);
      bias(weights.bias.down, "bias.down", at::down_bias, at::hidden);
    }
  }
}

/// Puts all experts of a resident layer one after the other, each into `place_bytes(piece<Layer>::bytes)` bytes: what `host_store`
/// takes.
template <class Layer>
void pack_experts(typename Layer::weights const& weights, std::byte* to) {
  for (int expert = 0; expert < Layer::dims.experts; ++expert) {
    pack_expert<Layer>(weights, expert, to + expert * place_bytes(piece<Layer>::bytes));
  }
}

/// The experts of resident layers as a store, which puts a piece together whenever it is read: to pack them into a file, or to see a cache
/// work without one. The weights have to outlive it.
template <class Layer>
class weights_store {
 public:
  explicit weights_store(std::span<typename Layer::weights const> layers) : weights_(layers) {
    if (layers.empty()) fail("offload::weights_store, layers", "one at least", "none");
  }

  int layers() const { return static_cast<int>(weights_.size()); }
  int experts() const { return Layer::dims.experts; }
  std::int64_t piece_bytes() const { return piece<Layer>::bytes; }
  std::string format() const { return std::string(piece<Layer>::format()); }

  std::string read(int layer, int expert, std::byte* place) const {
    if (std::string none = detail::no_such_piece(layers(), experts(), layer, expert); !none.empty()) return none;
    pack_expert<Layer>(weights_[static_cast<std::size_t>(layer)], expert, place);
    return {};
  }

 private:
  std::span<typename Layer::weights const> weights_;
};

}  // namespace switchyard::offload
