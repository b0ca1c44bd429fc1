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

/// Where the weights of all routed experts stand while they are not needed. One expert of one layer is one piece: its matrices and
/// biases side by side, in the order of `piece`. All pieces of a store are of one size.
///
/// `read` puts a piece into `place_bytes(piece_bytes())` bytes at a multiple of `block_bytes`, where what comes after the piece may be
/// overwritten. It returns nothing, or what went wrong, as the end of a sentence: `"experts.bin" ends at byte 81920`. Several threads of the
/// cache call it at the same time.
template <class Store>
concept expert_store = requires(Store& store, Store const& same, std::byte* place) {
  { same.layers() } -> std::convertible_to<int>;
  { same.experts() } -> std::convertible_to<int>;  // of each layer
  { same.piece_bytes() } -> std::convertible_to<std::int64_t>;
  { store.read(0, 0, place) } -> std::same_as<std::string>;  // layer, expert
};

/// A store whose pieces stand in memory, which a GPU copies from there: `at(layer, expert)`.
template <class Store>
concept store_in_memory = expert_store<Store> && requires(Store const& store) {
  { store.at(0, 0) } -> std::same_as<std::byte const*>;
};

}  // namespace switchyard::offload
