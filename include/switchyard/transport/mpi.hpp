#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/transport/transport.hpp>

// Not the C++ classes that MPI 3 has dropped, which want a library of their own.
#ifndef OMPI_SKIP_MPICXX
#define OMPI_SKIP_MPICXX 1
#endif
#ifndef MPICH_SKIP_MPICXX
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard::transport {

/// Messages by MPI 3, between the processes of a communicator. Needs MPI_THREAD_FUNNELED or SERIALIZED where the program has threads: the
/// thread that calls `forward` is the only one that calls MPI. Memory is the host's, or a device's where the MPI takes it.
///
/// After a failure the memory of the call must stay where it is until the transport is destroyed: a peer that died in the middle of a
/// message may have left one that cannot be called back.
class mpi {
 public:
  static constexpr std::string_view name = "mpi";
  static constexpr bool any_length = true, any_order = true, follows_streams = false;
  template <class T>
  using allocator = std::allocator<T>;

  /// All ranks of `communicator` make one together; MPI is initialised. Throws `error` where MPI says no.
  explicit mpi(MPI_Comm communicator) {
    check(MPI_Comm_dup(communicator, &communicator_), "MPI_Comm_dup");
    check(MPI_Comm_set_errhandler(communicator_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check(MPI_Comm_rank(communicator_, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(communicator_, &ranks_), "MPI_Comm_size");
    open_.reserve(static_cast<std::size_t>(ranks_) * messages_of_rank);
  }
  mpi(mpi const&) = delete;
  mpi& operator=(mpi const&) = delete;
  /// Frees the communicator, which all ranks do together, unless there was a failure: then others may be gone.
  ~mpi() {
    int finalised = 0;
    MPI_Finalized(&finalised);
    if (finalised == 0 && !failed_ && open_.empty()) MPI_Comm_free(&communicator_);
  }

  int rank() const { return rank_; }
  int ranks() const { return ranks_; }

  void start(int tag, std::span<message const> sends, std::span<message const> receives) {
    for (message const& m : receives) in_pieces(m, [&](char* at, int bytes) { receive(m.rank, tag, at, bytes); });
    for (message const& m : sends) in_pieces(m, [&](char* at, int bytes) { send(m.rank, tag, at, bytes); });
  }

  bool done(int tag) {
    bool all = true;
    for (std::size_t i = 0; i < open_.size();) {
      if (open_[i].tag != tag) {
        ++i;
        continue;
      }
      int through = 0;
      int const result = MPI_Test(&open_[i].request, &through, MPI_STATUS_IGNORE);
      if (result != MPI_SUCCESS) {
        int const from = open_[i].rank;
        open_[i] = open_.back();
        open_.pop_back();
        fail_call(result, "a message of rank " + std::to_string(from));
      }
      if (through != 0) {
        open_[i] = open_.back();
        open_.pop_back();
      } else {
        all = false;
        ++i;
      }
    }
    return all;
  }

  int missing(int tag) const {
    int lowest = -1;
    bool received = false;  // what has not come says more than what was not taken
    for (open_message const& m : open_) {
      if (m.tag != tag || (received && !m.receives)) continue;
      if (lowest < 0 || m.rank < lowest || (m.receives && !received)) lowest = m.rank;
      received = received || m.receives;
    }
    return lowest;
  }

  void abandon() {
    failed_ = true;
    for (open_message& m : open_) {
      int through = 0;
      if (m.receives) MPI_Cancel(&m.request);
      MPI_Test(&m.request, &through, MPI_STATUS_IGNORE);
      if (through == 0) MPI_Request_free(&m.request);
    }
    open_.clear();
  }

  void tell_failure(std::string_view text) {
    failed_ = true;
    std::size_t const length = std::min<std::size_t>(text.size(), most_failure_bytes);
    std::copy_n(text.begin(), length, told_.begin());
    for (int to = 0; to < ranks_; ++to) {
      if (to == rank_) continue;
      MPI_Request request;
      int const result =
          MPI_Isend(told_.data(), static_cast<int>(length), MPI_CHAR, to, failure_tag, communicator_, &request);
      if (result == MPI_SUCCESS) MPI_Request_free(&request);
    }
  }

  failure_notice failure() {
    int there = 0, length = 0;
    MPI_Status status;
    if (MPI_Iprobe(MPI_ANY_SOURCE, failure_tag, communicator_, &there, &status) != MPI_SUCCESS || there == 0) return {};
    MPI_Get_count(&status, MPI_CHAR, &length);
    MPI_Recv(heard_.data(), most_failure_bytes, MPI_CHAR, status.MPI_SOURCE, failure_tag, communicator_,
             MPI_STATUS_IGNORE);
    return {status.MPI_SOURCE, {heard_.data(), static_cast<std::size_t>(length)}};
  }

 private:
  static constexpr std::int64_t most_piece = std::int64_t{1} << 30;  // MPI counts with int
  static constexpr int failure_tag = most_tags;
  static constexpr std::size_t messages_of_rank = 64;  // room for so many from the beginning

  struct open_message {
    MPI_Request request;
    int tag, rank;
    bool receives;
  };

  template <class Piece>
  static void in_pieces(message const& m, Piece const& piece) {
    for (std::int64_t at = 0; at < m.bytes; at += most_piece) {
      piece(static_cast<char*>(m.data) + at, static_cast<int>(std::min(most_piece, m.bytes - at)));
    }
  }
  void send(int to, int tag, char const* from, int bytes) {
    open_.push_back({MPI_REQUEST_NULL, tag, to, false});
    check(MPI_Isend(from, bytes, MPI_BYTE, to, tag, communicator_, &open_.back().request), "MPI_Isend");
  }
  void receive(int from, int tag, char* to, int bytes) {
    open_.push_back({MPI_REQUEST_NULL, tag, from, true});
    check(MPI_Irecv(to, bytes, MPI_BYTE, from, tag, communicator_, &open_.back().request), "MPI_Irecv");
  }
  static void check(int result, char const* call) {
    if (result != MPI_SUCCESS) fail_call(result, call);
  }
  [[noreturn]] static void fail_call(int result, std::string const& what) {
    char text[MPI_MAX_ERROR_STRING] = {};
    int length = 0;
    MPI_Error_string(result, text, &length);
    fail("transport::mpi, " + what, "success", std::string(text, static_cast<std::size_t>(length)));
  }

  MPI_Comm communicator_ = MPI_COMM_NULL;
  int rank_ = 0, ranks_ = 1;
  bool failed_ = false;
  std::vector<open_message> open_;
  std::array<char, most_failure_bytes> told_{}, heard_{};
};

static_assert(transport_policy<mpi>);

}  // namespace switchyard::transport
