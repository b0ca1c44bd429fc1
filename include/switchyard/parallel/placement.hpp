#pragma once

#include <switchyard/core/error.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace switchyard::parallel {

/// Which ranks have which experts, the same on all ranks. An expert is on one rank or on several, which share its rows out; a rank has any
/// number of experts, or none.
class placement {
 public:
  /// `of_ranks[r]` are the experts of rank r, ids from 0 to experts - 1, in the order in which their weights stand there. Throws `error`
  /// where an expert is nowhere, or twice on one rank.
  placement(int experts, std::vector<std::vector<int>> of_ranks) : experts_(experts), of_ranks_(std::move(of_ranks)) {
    ranks_of_.resize(static_cast<std::size_t>(experts));
    local_.assign(of_ranks_.size() * ranks_of_.size(), -1);
    for (int r = 0; r < ranks(); ++r) {
      int number = 0;
      for (int const e : experts_of(r)) {
        if (e < 0 || e >= experts) {
          fail("parallel::placement, rank " + std::to_string(r), "ids from 0 to " + std::to_string(experts - 1),
               std::to_string(e));
        }
        if (local(r, e) >= 0) {
          fail("parallel::placement, rank " + std::to_string(r), "every expert once",
               "expert " + std::to_string(e) + " twice");
        }
        local_[index(r, e)] = number++;
        ranks_of_[static_cast<std::size_t>(e)].push_back(r);
      }
    }
    for (int e = 0; e < experts; ++e) {
      if (ranks_of(e).empty())
        fail("parallel::placement", "a rank for every expert", "none for expert " + std::to_string(e));
      replicates_ = replicates_ || ranks_of(e).size() > 1;
    }
  }

  /// Neighbouring experts, as many on each rank or one more on the first ones.
  static placement blocks(int experts, int ranks) {
    std::vector<std::vector<int>> of_ranks(static_cast<std::size_t>(ranks));
    for (int r = 0, e = 0; r < ranks; ++r) {
      int const count = experts / ranks + (r < experts % ranks ? 1 : 0);
      for (int i = 0; i < count; ++i) of_ranks[static_cast<std::size_t>(r)].push_back(e++);
    }
    return {experts, std::move(of_ranks)};
  }

  int experts() const { return experts_; }
  int ranks() const { return static_cast<int>(of_ranks_.size()); }
  bool replicates() const { return replicates_; }
  std::span<int const> experts_of(int rank) const { return of_ranks_[static_cast<std::size_t>(rank)]; }
  std::span<int const> ranks_of(int expert) const { return ranks_of_[static_cast<std::size_t>(expert)]; }
  /// The number of an expert among those of a rank, -1 where it is not there.
  int local(int rank, int expert) const { return local_[index(rank, expert)]; }

  /// Which of an expert's ranks computes row `number` of those that `source` has for it.
  int rank_of_row(int expert, int source, std::int64_t number) const {
    std::span<int const> const at = ranks_of(expert);
    return at[static_cast<std::size_t>((number + source) % static_cast<std::int64_t>(at.size()))];
  }
  /// How many of `rows` rows that `source` has for an expert a rank computes.
  std::int64_t rows_of(int rank, int expert, int source, std::int64_t rows) const {
    std::span<int const> const at = ranks_of(expert);
    auto const copies = static_cast<std::int64_t>(at.size());
    for (std::int64_t i = 0; i < copies; ++i) {
      if (at[static_cast<std::size_t>(i)] != rank) continue;
      std::int64_t const first = ((i - source) % copies + copies) % copies;  // its first row
      return rows > first ? (rows - first - 1) / copies + 1 : 0;
    }
    return 0;
  }

  /// A number that differs where placements do, but for accidents.
  std::int64_t fingerprint() const {
    std::uint64_t hash = 1469598103934665603u;
    for (int const number : local_) hash = (hash ^ static_cast<std::uint64_t>(number + 2)) * 1099511628211u;
    return static_cast<std::int64_t>(hash >> 1);
  }

 private:
  std::size_t index(int rank, int expert) const {
    return static_cast<std::size_t>(rank) * static_cast<std::size_t>(experts_) + static_cast<std::size_t>(expert);
  }

  int experts_;
  bool replicates_ = false;
  std::vector<std::vector<int>> of_ranks_, ranks_of_;
  std::vector<int> local_;  // [ranks, experts]
};

}  // namespace switchyard::parallel
