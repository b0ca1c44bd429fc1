#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/core/finite.hpp>
#include <switchyard/core/view.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace switchyard::moefication {

namespace detail {

inline void check_split(char const* function, std::int64_t units, int experts) {
  if (experts >= 1 && units >= 1 && units % experts == 0 && units <= std::numeric_limits<std::int32_t>::max()) return;
  fail(std::string("moefication::") + function, "at least 1 expert, and a multiple of their number of units",
       std::to_string(units) + " units and " + std::to_string(experts) + " experts");
}

/// Moves units between clusters until each has as many, at least cost: a flow from clusters with too many to those with too few, along
/// shortest paths. A path's step from cluster a to b moves the unit of a that this costs least.
class balancing_flow {
 public:
  balancing_flow(view<float const> const& costs, std::int32_t* labels)
      : costs_(costs),
        labels_(labels),
        experts_(static_cast<int>(costs.columns)),
        members_(static_cast<std::size_t>(experts_)),
        cost_(static_cast<std::size_t>(experts_) * experts_),
        unit_(cost_.size()),
        potential_(static_cast<std::size_t>(experts_), 0.0) {}

  void run() {
    std::int64_t const size = costs_.rows / experts_;
    for (std::int64_t i = 0; i < costs_.rows; ++i) {
      float const* const row = costs_.row(i);
      labels_[i] = static_cast<std::int32_t>(std::min_element(row, row + experts_) - row);
      members_[at(labels_[i])].push_back(static_cast<std::int32_t>(i));
    }
    for (int a = 0; a < experts_; ++a) refresh(a);
    auto const has_too_many = [&](int a) { return static_cast<std::int64_t>(members_[at(a)].size()) > size; };
    auto const has_too_few = [&](int a) { return static_cast<std::int64_t>(members_[at(a)].size()) < size; };
    std::vector<double> distance(potential_.size());
    std::vector<int> before(potential_.size());
    std::vector<char> done(potential_.size());
    for (;;) {
      // Dijkstra from all clusters with too many units, on costs that potentials make positive.
      bool any = false;
      for (int a = 0; a < experts_; ++a) {
        distance[at(a)] = has_too_many(a) ? -potential_[at(a)] : infinite;
        any = any || has_too_many(a);
        before[at(a)] = -1;
        done[at(a)] = 0;
      }
      if (!any) return;
      for (int round = 0; round < experts_; ++round) {
        int nearest = -1;
        for (int a = 0; a < experts_; ++a) {
          if (done[at(a)] == 0 && (nearest < 0 || distance[at(a)] < distance[at(nearest)])) nearest = a;
        }
        done[at(nearest)] = 1;
        for (int b = 0; b < experts_; ++b) {
          if (done[at(b)] != 0 || cost_[edge(nearest, b)] == infinite) continue;
          double const step = cost_[edge(nearest, b)] + potential_[at(nearest)] - potential_[at(b)];
          double const there = distance[at(nearest)] + std::max(step, 0.0);  // rounding
          if (there >= distance[at(b)]) continue;
          distance[at(b)] = there;
          before[at(b)] = nearest;
        }
      }
      int end = -1;
      for (int a = 0; a < experts_; ++a) {
        potential_[at(a)] += distance[at(a)];
        if (has_too_few(a) && (end < 0 || potential_[at(a)] < potential_[at(end)])) end = a;
      }
      std::vector<int> changed{end};
      for (int b = end; before[at(b)] >= 0; b = before[at(b)]) {
        int const a = before[at(b)];
        std::int32_t const moved = unit_[edge(a, b)];
        std::vector<std::int32_t>& from = members_[at(a)];
        from.erase(std::find(from.begin(), from.end(), moved));
        members_[at(b)].push_back(moved);
        labels_[moved] = b;
        changed.push_back(a);
      }
      for (int a : changed) refresh(a);
    }
  }

 private:
  static constexpr double infinite = std::numeric_limits<double>::infinity();

  static std::size_t at(int cluster) { return static_cast<std::size_t>(cluster); }
  std::size_t edge(int from, int to) const { return at(from) * at(experts_) + at(to); }

  /// What it costs to move a unit of `a` to each cluster, and which: of equal ones the lowest.
  void refresh(int a) {
    for (int b = 0; b < experts_; ++b) {
      cost_[edge(a, b)] = infinite;
      unit_[edge(a, b)] = -1;
    }
    for (std::int32_t i : members_[at(a)]) {
      float const* const row = costs_.row(i);
      for (int b = 0; b < experts_; ++b) {
        double const cost = static_cast<double>(row[b]) - static_cast<double>(row[a]);
        double const least = cost_[edge(a, b)];
        if (b == a || cost > least || (cost == least && i > unit_[edge(a, b)])) continue;
        cost_[edge(a, b)] = cost;
        unit_[edge(a, b)] = i;
      }
    }
  }

  view<float const> costs_;
  std::int32_t* labels_;
  int experts_;
  std::vector<std::vector<std::int32_t>> members_;
  std::vector<double> cost_;        // [experts, experts]
  std::vector<std::int32_t> unit_;  // [experts, experts]
  std::vector<double> potential_;   // [experts], the length of the shortest path to a cluster
};

}  // namespace detail

/// labels[i] = the cluster of unit i, so that every cluster has as many units and the sum of their costs is least: the exact solution of
/// the transportation problem, by successive shortest paths. `costs` is [units, experts]. Throws `error` unless units are a multiple of
/// experts and costs finite.
inline void assign_balanced(view<float const> const& costs, std::int32_t* labels) {
  detail::check_split("assign_balanced, costs", costs.rows, static_cast<int>(costs.columns));
  for (std::int64_t i = 0; i < costs.rows; ++i) {
    for (std::int64_t e = 0; e < costs.columns; ++e) {
      float const cost = costs.row(i)[e];
      if (is_finite(cost)) continue;
      fail("moefication::assign_balanced, costs", "finite numbers (are the weights free of NaN and infinity?)",
           std::to_string(cost) + " for unit " + std::to_string(i));
    }
  }
  detail::balancing_flow(costs, labels).run();
}

}  // namespace switchyard::moefication
