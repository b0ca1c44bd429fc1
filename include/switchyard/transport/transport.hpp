#pragma once

#include <concepts>
#include <cstdint>
#include <span>
#include <string_view>

namespace switchyard {

/// One message of a batch: to a rank or from it.
struct message {
  int rank;            ///< not one's own
  void* data;          ///< where it stands or goes; it stays there until the batch is done
  std::int64_t bytes;  ///< at least 1; as many on both sides, or fewer than there is room for with `any_length`
};

/// What another rank has said by `tell_failure`.
struct failure_notice {
  int rank = -1;          ///< -1: nobody has
  std::string_view text;  ///< until the next call of the transport
};

namespace transport {

/// Tags of batches are below this.
inline constexpr int most_tags = 1024;

/// The longest text of a failure; what is longer is cut.
inline constexpr int most_failure_bytes = 256;

}  // namespace transport

/// How messages travel between the ranks of `backend::expert_parallel`. Nothing here waits: waiting, time-outs and what an error says are
/// written once, in parallel/group.hpp.
///
/// - `start(tag, sends, receives)` begins a batch. Messages from one rank to another with one tag come in the order in which they were
///   begun. Several batches may have one tag.
/// - `done(tag)` makes what progress there is, and says whether all messages begun here with the tag are through: sent ones may be
///   overwritten, received ones be read. It throws `error` where the transport itself fails.
/// - `missing(tag)` is the lowest rank whose message is not, -1 where none is known.
/// - `any_length`: a message may be shorter than the room for it. `any_order`: tags tell batches apart; else ranks begin them in one order.
/// - `follows_streams`: messages may stand in memory of a device, and what is begun after `follow(stream)` comes behind all that is on the
///   stream then.
/// - `allocator<T>` has the memory of the host that messages may stand in.
/// - `abandon()` forgets all that was begun, after a failure.
/// - `tell_failure(text)` tells all other ranks, without waiting for them; `failure()` is what one of them told.
template <class Transport>
concept transport_policy = requires(Transport& t, Transport const& c, int tag, std::span<message const> list,
                                    std::string_view text) {
  { Transport::name } -> std::convertible_to<std::string_view>;
  { Transport::any_length } -> std::convertible_to<bool>;
  { Transport::any_order } -> std::convertible_to<bool>;
  { Transport::follows_streams } -> std::convertible_to<bool>;
  typename Transport::template allocator<int>;
  { c.rank() } -> std::same_as<int>;
  { c.ranks() } -> std::same_as<int>;
  { t.start(tag, list, list) } -> std::same_as<void>;
  { t.done(tag) } -> std::same_as<bool>;
  { c.missing(tag) } -> std::same_as<int>;
  { t.abandon() } -> std::same_as<void>;
  { t.tell_failure(text) } -> std::same_as<void>;
  { t.failure() } -> std::same_as<failure_notice>;
};

}  // namespace switchyard
