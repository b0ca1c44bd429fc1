#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/parallel/placement.hpp>
#include <switchyard/transport/transport.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace switchyard::parallel {

/// How the results of a token's experts are added.
enum class sums {
  /// As one device adds them, with the same bits for any number of ranks and any placement: in the order of choice. Results of a token's
  /// first choices that stand on one rank come back as one sum, all others one by one.
  in_order_of_choice,
  /// Each rank adds the results that it has of a token, and one row comes back from each. Bits are the same on every run, but depend on the
  /// placement.
  by_rank
};

/// Whose tokens queue for the slots of a capacity.
enum class capacity_scope {
  all_ranks,  ///< those of all ranks, in the order of ranks: the same pairs are dropped as on one device with all tokens
  per_rank    ///< each rank has a queue of its own, and as many slots as its tokens alone would have
};

/// More chunks than this are not made.
inline constexpr int most_chunks = 8;
/// Null experts that there are tables for (expert/null_experts.hpp).
inline constexpr int most_null_experts = 64;

/// What all ranks have to agree about, before anything else is believed.
struct facts {
  static constexpr char const* names[] = {"version of the library",
                                          "shape.hidden",
                                          "shape.intermediate",
                                          "shape.experts",
                                          "shape.top_k",
                                          "layer (a number made of its names)",
                                          "context.local (a number made of instruction set and products)",
                                          "context.sums",
                                          "context.capacity",
                                          "context.chunks",
                                          "placement (a number made of it)",
                                          "tokens_per_group",
                                          "whether auxiliary values are asked for",
                                          "inputs (a number made of what all tokens have in common)",
                                          "pass"};
  static constexpr int count = static_cast<int>(std::size(names));
  std::int64_t value[count] = {};
};

/// Bytes to send or to receive.
struct part {
  void* data = nullptr;
  std::int64_t bytes = 0;
};

/// Some ranks that run layers together. Each makes one, with its transport, the same placement and the same time-out; it is used for one call
/// after the other, of any layers with the placement's number of experts. All that a call needs in proportion to the number of ranks is
/// allocated here.
template <transport_policy Transport>
class group {
 public:
  struct options {
    /// Seconds that a call waits for another rank before it says which one is missing: longer than ranks are apart where they call.
    double time_out = 60.0;
  };

  group(Transport& transport, parallel::placement where, options const& wanted)
      : transport_(&transport), placement_(std::move(where)), options_(wanted) {
    if (placement_.ranks() != transport.ranks()) {
      fail("parallel::group, placement", std::to_string(transport.ranks()) + " ranks, as many as the transport has",
           std::to_string(placement_.ranks()));
    }
    if (!(wanted.time_out > 0.0)) {
      fail("parallel::group, options.time_out", "more than 0 seconds", std::to_string(wanted.time_out));
    }
    auto const all = static_cast<std::size_t>(ranks());
    sends_.reserve(all);
    receives_.reserve(all);
    sent_.resize(all * static_cast<std::size_t>(words_of_announcement()));
    received_.resize(sent_.size());
    for (std::vector<std::int64_t>* table :
         {&first_entry, &first_word, &first_return, &first_received, &first_returned})
      table->resize(all * most_chunks + 1);
    cursor.resize(all * most_chunks * 3);
  }
  group(Transport& transport, parallel::placement where) : group(transport, std::move(where), options{}) {}
  group(group const&) = delete;
  group& operator=(group const&) = delete;

  Transport& transport() { return *transport_; }
  parallel::placement const& placement() const { return placement_; }
  int rank() const { return transport_->rank(); }
  int ranks() const { return transport_->ranks(); }

  /// Tells all ranks what this one is about to do, with `value_count` of its `values` and what it has for each of them in `sent_counts`, and
  /// learns theirs. Throws `error` on all ranks where one of them has failed, or where two differ in a fact. The group can be used again
  /// then, for all ranks are at the same place. `workspace` are the bytes that the rank has left for the call, and `layer` is what it
  /// calls the layer in an error.
  void announce(facts const& of_call, std::string_view layer, std::int64_t tokens, std::int64_t workspace,
                int value_count) {
    announcement mine;
    mine.of_call = of_call;
    mine.tokens = tokens;
    mine.workspace = workspace;
    exchange_announcements(mine, value_count);
    for (int r = 0; r < ranks(); ++r) {
      if (announced(r).failed == 0) continue;
      raise(error("switchyard: backend::expert_parallel: rank " + std::to_string(r) +
                  " has failed: " + std::string(reinterpret_cast<char const*>(values(r)))));
    }
    for (int i = 0; i < facts::count; ++i) {
      for (int r = 1; r < ranks(); ++r) {
        std::int64_t const expected = announced(0).of_call.value[i], got = announced(r).of_call.value[i];
        if (expected == got) continue;
        fail("backend::expert_parallel, " + std::string(facts::names[i]) + " of rank " + std::to_string(r),
             std::to_string(expected) + " as on rank 0",
             std::to_string(got) + " (rank " + std::to_string(rank()) + " runs " + std::string(layer) + ")");
      }
    }
  }
  /// Does this rank's own part of a call up to its next announcement. What it throws, all others throw then, with the rank's number.
  template <class Work>
  void in_step(Work const& work) {
#if defined(__cpp_exceptions)
    try {
      work();
    } catch (std::exception const& e) {
      if (!broken_) announce_failure(e.what());
      throw;
    }
#else
    work();
#endif
  }

  /// Does a part of a call in the middle of which others wait. What it throws, they throw where they wait, and the group is of no use any more.
  template <class Work>
  void midway(Work const& work) {
#if defined(__cpp_exceptions)
    try {
      work();
    } catch (std::exception const& e) {
      if (!broken_) give_up(e.what());
      throw;
    }
#else
    work();
#endif
  }

  std::int64_t tokens_of(int rank) const { return announced(rank).tokens; }
  std::int64_t workspace_of(int rank) const { return announced(rank).workspace; }
  /// The number of a rank's first token among those of all; with the number of ranks, all tokens.
  std::int64_t first_token(int rank) const {
    std::int64_t first = 0;
    for (int r = 0; r < rank; ++r) first += tokens_of(r);
    return first;
  }
  std::int64_t all_tokens() const { return first_token(ranks()); }

  /// Numbers that every rank tells all others with its announcement, `most_values()` words at most; why it has failed, if it has.
  int most_values() const { return 8 * (placement_.experts() + most_null_experts) + 16; }
  std::int64_t* values(int rank) { return slot(received_, rank) + header_words; }
  std::int64_t const* values(int rank) const { return slot(received_, rank) + header_words; }

  /// What this rank has for each other one, and they for it: entries and returns by chunk, then pairs.
  static constexpr std::size_t counts_of_rank = 2 * most_chunks + 1;
  std::int64_t* sent_counts(int rank) { return header(sent_, rank).counts; }
  std::int64_t const* received_counts(int rank) const { return header(received_, rank).counts; }

  /// Begins to send `to(rank)` to every other rank, and to receive `from(rank)`; nothing where a part has no bytes.
  template <class To, class From>
  void start(int tag, To const& to, From const& from) {
    check_not_broken();
    sends_.clear();
    receives_.clear();
    for (int i = 1; i < ranks(); ++i) {
      int const next = (rank() + i) % ranks(), before = (rank() - i + ranks()) % ranks();
      if (part const p = to(next); p.bytes > 0) sends_.push_back({next, p.data, p.bytes});
      if (part const p = from(before); p.bytes > 0) receives_.push_back({before, p.data, p.bytes});
    }
    attempt([&] { transport_->start(tag, sends_, receives_); });
  }
  /// Waits for all that was begun with a tag. Throws `error` where a rank fails meanwhile, or does not come in time.
  void wait(int tag) {
    check_not_broken();
    auto const begin = std::chrono::steady_clock::now();
    for (;;) {
      bool through = false;
      attempt([&] { through = transport_->done(tag); });
      if (through) return;
      check_failure();
      std::chrono::duration<double> const waited = std::chrono::steady_clock::now() - begin;
      if (waited.count() > options_.time_out) {
        int const late = transport_->missing(tag);
        give_up(sentence("backend::expert_parallel, rank " + (late < 0 ? "unknown" : std::to_string(late)),
                         "its message within " + std::to_string(options_.time_out) + " s", "none"));
      }
      std::this_thread::yield();
    }
  }
  /// Makes what progress there is, without waiting.
  void progress(int tag) {
    attempt([&] { static_cast<void>(transport_->done(tag)); });
  }
  /// Throws where another rank has told a failure.
  void check_failure() {
    failure_notice const notice = transport_->failure();
    if (notice.rank < 0) return;
    std::string const text = "switchyard: backend::expert_parallel: rank " + std::to_string(notice.rank) +
                             " has failed: " + std::string(notice.text);
    broken_ = true;
    transport_->abandon();
    raise(error(text));
  }
  /// `text` is an error of this rank in the middle of a call: all others learn of it, and the group is of no use any more.
  [[noreturn]] void give_up(std::string const& text) {
    broken_ = true;
    transport_->tell_failure(text);
    transport_->abandon();
    raise(error(text));
  }
  void check_not_broken() const {
    if (broken_) {
      fail("backend::expert_parallel, group", "one whose ranks are all there; make a new one",
           "one that an earlier call has left broken");
    }
  }
  bool broken() const { return broken_; }

  // Tables of a call, for dispatch across ranks (parallel/exchange.hpp).
  std::vector<std::int64_t> first_entry, first_word, first_return;  ///< [ranks, chunks] of what goes out
  std::vector<std::int64_t> first_received, first_returned;         ///< [ranks, chunks] of what comes in
  std::vector<std::int64_t> cursor;

 private:
  static constexpr int announce_tag = 0;
  using words = std::vector<std::int64_t, typename Transport::template allocator<std::int64_t>>;

  struct announcement {
    facts of_call;
    std::int64_t tokens = 0, workspace = 0, failed = 0;
    std::int64_t counts[counts_of_rank] = {};  // the last member: it is each rank's own
  };
  static constexpr int header_words = static_cast<int>(sizeof(announcement) / sizeof(std::int64_t));
  static_assert(sizeof(announcement) % sizeof(std::int64_t) == 0);

  int words_of_announcement() const { return header_words + most_values(); }
  template <class Words>
  auto* slot(Words& of, int rank) const {
    return of.data() + std::int64_t{rank} * words_of_announcement();
  }
  announcement& header(words& of, int rank) const { return *reinterpret_cast<announcement*>(slot(of, rank)); }
  announcement const& header(words const& of, int rank) const {
    return *reinterpret_cast<announcement const*>(slot(of, rank));
  }
  announcement const& announced(int rank) const { return header(received_, rank); }

  void exchange_announcements(announcement mine, int value_count) {
    for (int r = 0; r < ranks(); ++r) {
      announcement& to = header(sent_, r);
      std::copy(std::begin(to.counts), std::end(to.counts), std::begin(mine.counts));
      to = mine;
      if (r != rank()) {
        std::copy_n(values(rank()), value_count, slot(sent_, r) + header_words);
      } else {
        header(received_, r) = mine;
      }
    }
    auto const room = static_cast<std::int64_t>(sizeof(std::int64_t)) * words_of_announcement();
    auto const bytes =
        Transport::any_length ? static_cast<std::int64_t>(sizeof(std::int64_t)) * (header_words + value_count) : room;
    start(
        announce_tag,
        [&](int r) {
          return part{slot(sent_, r), bytes};
        },
        [&](int r) {
          return part{slot(received_, r), room};
        });
    wait(announce_tag);
  }
  /// In the place of `announce`, on a rank that cannot go on. Throws nothing.
  void announce_failure(std::string_view what) noexcept {
#if defined(__cpp_exceptions)
    try {
      constexpr int text_words = transport::most_failure_bytes / static_cast<int>(sizeof(std::int64_t));
      char* const text = reinterpret_cast<char*>(values(rank()));
      std::fill_n(text, transport::most_failure_bytes, '\0');
      std::copy_n(what.begin(), std::min<std::size_t>(what.size(), transport::most_failure_bytes - 1), text);
      announcement mine;
      mine.failed = 1;
      exchange_announcements(mine, text_words);
    } catch (std::exception const&) {
    }
#endif
  }
  /// What the transport throws is a failure of this rank.
  template <class Work>
  void attempt(Work const& work) {
#if defined(__cpp_exceptions)
    try {
      work();
    } catch (error const& e) {
      give_up(e.what());
    }
#else
    work();
#endif
  }

  Transport* transport_;
  parallel::placement placement_;
  options options_;
  bool broken_ = false;
  std::vector<message> sends_, receives_;
  words sent_, received_;  // [ranks, words_of_announcement()]
};

}  // namespace switchyard::parallel
