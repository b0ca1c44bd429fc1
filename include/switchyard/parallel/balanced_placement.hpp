#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/parallel/placement.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace switchyard::parallel {

/// Rows that each rank computes, if an expert's rows are shared out evenly among its ranks. `loads` are rows by expert, such as
/// `decisions.counts` added up over many calls.
inline std::vector<double> loads_of_ranks(std::span<std::int64_t const> loads, placement const& where) {
  std::vector<double> result;
  for (int r = 0; r < where.ranks(); ++r) {
    double sum = 0.0;
    for (int const e : where.experts_of(r)) {
      sum += static_cast<double>(loads[static_cast<std::size_t>(e)]) / static_cast<double>(where.ranks_of(e).size());
    }
    result.push_back(sum);
  }
  return result;
}

namespace detail {

/// A placement that is being changed.
class placement_search {
 public:
  /// With `copied`, all room is filled with copies before experts are placed, else there are none.
  placement_search(std::span<std::int64_t const> loads, int ranks, int most_experts, bool copied)
      : loads_(loads.begin(), loads.end()),
        most_(static_cast<std::size_t>(most_experts)),
        copies_(loads.size(), 1),
        of_ranks_(static_cast<std::size_t>(ranks)) {
    std::vector<int> wanted(loads.size(), 1), order;
    auto const share = [&](int e) { return load(e) / wanted[static_cast<std::size_t>(e)]; };
    auto room = static_cast<std::int64_t>(of_ranks_.size() * most_) - static_cast<std::int64_t>(loads.size());
    for (; copied && room > 0; --room) {
      int heaviest = -1;
      for (int e = 0; e < static_cast<int>(loads.size()); ++e) {
        if (wanted[static_cast<std::size_t>(e)] < ranks && (heaviest < 0 || share(e) > share(heaviest))) heaviest = e;
      }
      if (heaviest < 0) break;
      ++wanted[static_cast<std::size_t>(heaviest)];
    }
    for (int e = 0; e < static_cast<int>(loads.size()); ++e) {
      order.insert(order.end(), static_cast<std::size_t>(wanted[static_cast<std::size_t>(e)]), e);
    }
    std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return share(x) > share(y); });
    copies_ = wanted;
    for (bool const first : {true, false}) {  // every expert has a place before any is copied
      for (std::size_t i = 0; i < order.size(); ++i) {
        if ((i == 0 || order[i] != order[i - 1]) == first) place(order[i]);
      }
    }
    for (int e = 0; e < static_cast<int>(loads.size()); ++e) {
      copies(e) = 0;
      for (std::size_t r = 0; r < of_ranks_.size(); ++r) copies(e) += has(r, e) ? 1 : 0;
    }
  }

  /// Changes one or two experts of the rank that has most, as long as that makes it better.
  void improve() {
    while (step()) {
    }
  }

  using score = std::pair<double, double>;  // the most of a rank, and the sum of the squares

  score now() const {
    score result{0.0, 0.0};
    for (std::size_t r = 0; r < of_ranks_.size(); ++r) {
      double const s = sum(r);
      result.first = std::max(result.first, s);
      result.second += s * s;
    }
    return result;
  }
  std::vector<std::vector<int>> ranks() && {
    for (auto& of : of_ranks_) std::sort(of.begin(), of.end());
    return std::move(of_ranks_);
  }

 private:
  /// To the rank that has least, where one has room.
  void place(int e) {
    std::size_t least = of_ranks_.size();
    for (std::size_t r = 0; r < of_ranks_.size(); ++r) {
      if (of_ranks_[r].size() < most_ && !has(r, e) && (least == of_ranks_.size() || sum(r) < sum(least))) least = r;
    }
    if (least < of_ranks_.size()) of_ranks_[least].push_back(e);
  }

  double load(int e) const { return static_cast<double>(loads_[static_cast<std::size_t>(e)]); }
  int& copies(int e) { return copies_[static_cast<std::size_t>(e)]; }
  double sum(std::size_t r) const {
    double result = 0.0;
    for (int const e : of_ranks_[r]) result += load(e) / copies_[static_cast<std::size_t>(e)];
    return result;
  }
  bool has(std::size_t r, int e) const {
    return std::find(of_ranks_[r].begin(), of_ranks_[r].end(), e) != of_ranks_[r].end();
  }
  void add(int e, std::size_t r) {
    of_ranks_[r].push_back(e);
    ++copies(e);
  }
  void remove(int e, std::size_t r) {
    of_ranks_[r].erase(std::find(of_ranks_[r].begin(), of_ranks_[r].end(), e));
    --copies(e);
  }
  std::size_t fullest() const {
    std::size_t result = 0;
    for (std::size_t r = 1; r < of_ranks_.size(); ++r) result = sum(r) > sum(result) ? r : result;
    return result;
  }

  /// Expert `out` leaves rank `from` where `leaves`, and comes to rank `to`, in the place of `in`, which goes the other way where `returns`.
  struct change {
    int out = -1, in = -1;
    std::size_t from = 0, to = 0;
    bool leaves = false, arrives = false, returns = false;
  };
  void apply(change const& c) {
    if (c.leaves) remove(c.out, c.from);
    if (c.in >= 0) remove(c.in, c.to);
    if (c.arrives) add(c.out, c.to);
    if (c.returns) add(c.in, c.from);
  }
  void undo(change const& c) {
    if (c.returns) remove(c.in, c.from);
    if (c.arrives) remove(c.out, c.to);
    if (c.in >= 0) add(c.in, c.to);
    if (c.leaves) add(c.out, c.from);
  }

  bool step() {
    std::size_t const from = fullest();
    score best = now();
    change chosen;
    auto const attempt = [&](change const& c) {
      apply(c);
      if (score const s = now();
          s.first < best.first * (1 - 1e-12) || (s.first <= best.first && s.second < best.second * (1 - 1e-12))) {
        best = s;
        chosen = c;
      }
      undo(c);
    };
    std::vector<int> const here = of_ranks_[from];
    for (int const e : here) {
      if (copies(e) > 1) attempt({.out = e, .from = from, .leaves = true});
      for (std::size_t to = 0; to < of_ranks_.size(); ++to) {
        if (to == from || has(to, e)) continue;
        if (of_ranks_[to].size() < most_) {
          attempt({.out = e, .from = from, .to = to, .leaves = true, .arrives = true});
          attempt({.out = e, .from = from, .to = to, .arrives = true});
        }
        std::vector<int> const there = of_ranks_[to];
        for (int const other : there) {
          if (copies(other) > 1) attempt({.out = e, .in = other, .from = from, .to = to, .arrives = true});
          if (has(from, other)) continue;
          attempt({.out = e, .in = other, .from = from, .to = to, .leaves = true, .arrives = true, .returns = true});
          if (copies(e) > 0 && here.size() < most_) {
            attempt({.out = e, .in = other, .from = from, .to = to, .arrives = true, .returns = true});
          }
        }
      }
    }
    if (chosen.out < 0) return false;
    apply(chosen);
    return true;
  }

  std::vector<std::int64_t> loads_;
  std::size_t most_;
  std::vector<int> copies_;
  std::vector<std::vector<int>> of_ranks_;
};

}  // namespace detail

/// A placement whose fullest rank has as few rows as a search finds, from rows by expert that were recorded: no rank has more than
/// `most_experts`, and where that leaves room, experts with many rows are on several ranks. The heaviest experts are placed first, with
/// copies and without; then experts of the fullest rank are moved, exchanged and copied while that helps. Throws `error` where there is no room for all experts.
inline placement balanced_placement(std::span<std::int64_t const> loads, int ranks, int most_experts) {
  auto const experts = static_cast<int>(loads.size());
  if (ranks < 1 || std::int64_t{ranks} * most_experts < experts) {
    fail("parallel::balanced_placement", "room for " + std::to_string(experts) + " experts",
         std::to_string(ranks) + " ranks with " + std::to_string(most_experts) + " each");
  }
  for (std::int64_t const load : loads) {
    if (load < 0) fail("parallel::balanced_placement, loads", "rows of at least 0", std::to_string(load));
  }
  detail::placement_search single(loads, ranks, most_experts, false), copied(loads, ranks, most_experts, true);
  single.improve();
  copied.improve();
  return {experts, std::move(copied.now() < single.now() ? copied : single).ranks()};
}

}  // namespace switchyard::parallel
