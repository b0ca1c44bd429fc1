#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/offload/store.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace switchyard::offload {

/// Pieces that stand in memory of somebody else, which has to outlive the store: piece (layer, expert) at
/// `pieces + (layer * experts + expert) * piece_stride`. `pack_experts` puts them there. For a GPU the memory is pinned, else each copy
/// waits for another one.
struct host_store_args {
  std::byte const* pieces;
  int layers, experts;            ///< experts of each layer
  std::int64_t piece_bytes;       ///< `piece<Layer>::bytes`
  std::int64_t piece_stride = 0;  ///< bytes from one piece to the next; 0: `place_bytes(piece_bytes)`
};

class host_store {
 public:
  explicit host_store(host_store_args const& args) : args_(args) {
    if (args_.piece_stride == 0) args_.piece_stride = place_bytes(args_.piece_bytes);
    auto const number = [](auto value) { return std::to_string(value); };
    if (args.layers < 1 || args.experts < 1 || args.piece_bytes < 1) {
      fail("offload::host_store, sizes", "at least one layer, expert and byte of a piece",
           number(args.layers) + ", " + number(args.experts) + " and " + number(args.piece_bytes));
    }
    if (args.pieces == nullptr) fail("offload::host_store, pieces", "memory", "nullptr");
    if (args_.piece_stride < args_.piece_bytes) {
      fail("offload::host_store, piece_stride", "at least the " + number(args_.piece_bytes) + " bytes of a piece",
           number(args_.piece_stride));
    }
  }

  int layers() const { return args_.layers; }
  int experts() const { return args_.experts; }
  std::int64_t piece_bytes() const { return args_.piece_bytes; }

  std::byte const* at(int layer, int expert) const {
    return args_.pieces + (std::int64_t{layer} * args_.experts + expert) * args_.piece_stride;
  }
  std::string read(int layer, int expert, std::byte* place) const {
    if (std::string none = detail::no_such_piece(layers(), experts(), layer, expert); !none.empty()) return none;
    std::memcpy(place, at(layer, expert), static_cast<std::size_t>(args_.piece_bytes));
    return {};
  }

 private:
  host_store_args args_;
};
static_assert(store_in_memory<host_store>);

}  // namespace switchyard::offload
