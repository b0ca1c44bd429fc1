#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

namespace switchyard::offload {

/// What a place that takes a piece begins at a multiple of, and is as long as a multiple of: what a file is read by without the
/// page cache.
inline constexpr std::int64_t block_bytes = 4096;

/// Bytes of the place that takes a piece.
constexpr std::int64_t place_bytes(std::int64_t piece_bytes) {
  return (piece_bytes + block_bytes - 1) / block_bytes * block_bytes;
}

/// Reads that run at the same time unless somebody says otherwise: one waits for the disk while another one's bytes are looked at. What
/// more of them would gain: README.md.
inline constexpr int default_readers = 2;

/// Where the weights of all routed experts stand while they are not needed. One expert of one layer is one piece: its matrices and
/// biases side by side, in the order of `piece`. All pieces of a store are of one size.
///
/// `read` puts a piece into `place_bytes(piece_bytes())` bytes at a multiple of `block_bytes`, where what comes after the piece may be
/// overwritten. It returns nothing, or what went wrong, with the piece and what to do, as the end of a sentence: `"experts.bin" ended at byte
/// 81920, in layer 0, expert 3: …`. Several threads of the
/// cache call it at the same time.
template <class Store>
concept expert_store = requires(Store& store, Store const& same, std::byte* place) {
  { same.layers() } -> std::convertible_to<int>;
  { same.experts() } -> std::convertible_to<int>;  // of each layer
  { same.piece_bytes() } -> std::convertible_to<std::int64_t>;
  { store.read(0, 0, place) } -> std::same_as<std::string>;  // layer, expert
};  // It may have `format()`, too: `piece<Layer>::format()` of the layers that the pieces are for, empty where that is not known.

/// A store whose pieces stand in memory, which a GPU copies from there: `at(layer, expert)`.
template <class Store>
concept store_in_memory = expert_store<Store> && requires(Store const& store) {
  { store.at(0, 0) } -> std::same_as<std::byte const*>;
};

namespace detail {

/// The end of a sentence about a piece that no store has; empty where it has it.
inline std::string no_such_piece(int layers, int experts, int layer, int expert) {
  if (layer >= 0 && layer < layers && expert >= 0 && expert < experts) return {};
  return "no layer " + std::to_string(layer) + ", expert " + std::to_string(expert) + " in a store of " +
         std::to_string(layers) + " layers of " + std::to_string(experts) + " experts";
}

}  // namespace detail

}  // namespace switchyard::offload
