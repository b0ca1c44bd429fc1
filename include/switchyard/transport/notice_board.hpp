#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/transport/transport.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace switchyard::transport {

/// Where ranks that share memory tell each other that they have failed: threads of a process, or processes of a machine. For a transport
/// that carries nothing out of turn, as `transport::nccl`. Each rank makes one on the same memory.
class notice_board {
 public:
  static constexpr std::size_t alignment = 64;
  /// What `ranks` ranks need.
  static constexpr std::size_t bytes(int ranks) { return static_cast<std::size_t>(ranks) * sizeof(notice); }

  /// `memory` has `bytes(ranks)` at a multiple of `alignment`, all zero before the first rank makes its board. It stays until the last one
  /// has gone.
  notice_board(void* memory, int rank, int ranks) : notices_(static_cast<notice*>(memory)), rank_(rank), ranks_(ranks) {
    if (reinterpret_cast<std::uintptr_t>(memory) % alignment != 0) {
      fail("transport::notice_board, memory", "an address that is a multiple of " + std::to_string(alignment),
           "another one");
    }
    if (rank < 0 || rank >= ranks) {
      fail("transport::notice_board, rank", "a number below that of ranks, " + std::to_string(ranks),
           std::to_string(rank));
    }
  }

  /// The first text of a rank stays, as what has caused the others.
  void tell_failure(std::string_view text) {
    notice& mine = notices_[rank_];
    if (mine.length != 0) return;
    std::size_t const length = std::min<std::size_t>(text.size(), most_failure_bytes);
    std::copy_n(text.begin(), length, mine.text);
    std::atomic_ref(mine.length).store(static_cast<std::uint32_t>(length) + 1, std::memory_order_release);
  }

  /// That of the lowest other rank that has told one.
  failure_notice failure() const {
    for (int r = 0; r < ranks_; ++r) {
      if (r == rank_) continue;
      std::uint32_t const length = std::atomic_ref(notices_[r].length).load(std::memory_order_acquire);
      if (length > 0) return {r, {notices_[r].text, length - 1}};
    }
    return {};
  }

 private:
  struct alignas(alignment) notice {
    std::uint32_t length;  // of the text and 1; 0: none yet
    char text[most_failure_bytes];
  };

  notice* notices_;
  int rank_, ranks_;
};

}  // namespace switchyard::transport
