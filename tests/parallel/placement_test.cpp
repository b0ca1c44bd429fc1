#include <switchyard/parallel/balanced_placement.hpp>
#include <switchyard/parallel/placement.hpp>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "catch.hpp"
#include "support/said.hpp"

namespace parallel = switchyard::parallel;

namespace {

/// The least that the fullest rank can have, by looking at all placements.
double least_of_all(std::vector<std::int64_t> const& loads, int ranks, int most_experts) {
  std::vector<int> chosen(loads.size());
  double least = 1e300;
  std::function<void(std::size_t)> const place = [&](std::size_t e) {
    if (e < loads.size()) {
      for (chosen[e] = 1; chosen[e] < 1 << ranks; ++chosen[e]) place(e + 1);
      return;
    }
    double most = 0.0;
    for (int r = 0; r < ranks; ++r) {
      double sum = 0.0;
      int experts = 0;
      for (std::size_t i = 0; i < loads.size(); ++i) {
        if ((chosen[i] >> r & 1) == 0) continue;
        ++experts;
        sum += static_cast<double>(loads[i]) / __builtin_popcount(static_cast<unsigned>(chosen[i]));
      }
      if (experts > most_experts) return;
      most = std::max(most, sum);
    }
    least = std::min(least, most);
  };
  place(0);
  return least;
}

}  // namespace

TEST_CASE("a placement from loads is near the best of all placements") {
  std::mt19937 random(3);
  double worst = 1.0, sum = 0.0;
  int cases = 0;
  for (int const ranks : {2, 3}) {
    for (int const most : {2, 3, 4}) {
      for (int i = 0; i < 12; ++i) {
        std::vector<std::int64_t> loads;
        for (int e = 0; e < 5; ++e) {
          auto const number = static_cast<std::int64_t>(random() % 1000);
          loads.push_back(i % 2 == 0 ? number : 5000 / (1 + number % 60));  // even ones, and some far above others
        }
        if (ranks * most < 5) continue;
        parallel::placement const found = parallel::balanced_placement(loads, ranks, most);
        auto const of_ranks = parallel::loads_of_ranks(loads, found);
        for (int r = 0; r < ranks; ++r) CHECK(static_cast<int>(found.experts_of(r).size()) <= most);
        double const ratio = *std::max_element(of_ranks.begin(), of_ranks.end()) / least_of_all(loads, ranks, most);
        worst = std::max(worst, ratio);
        sum += ratio;
        ++cases;
      }
    }
  }
  INFO("worst " << worst << ", mean " << sum / cases);
  CHECK(worst < 1.15);
  CHECK(sum / cases < 1.02);
}

TEST_CASE("rows of an expert are shared out among its ranks") {
  parallel::placement const where(4, {{0, 1, 2}, {}, {3, 1}, {1}});
  for (int source = 0; source < 4; ++source) {
    for (std::int64_t rows = 0; rows < 9; ++rows) {
      std::vector<std::int64_t> counted(4);
      for (std::int64_t i = 0; i < rows; ++i) ++counted[static_cast<std::size_t>(where.rank_of_row(1, source, i))];
      for (int r = 0; r < 4; ++r) CHECK(where.rows_of(r, 1, source, rows) == counted[static_cast<std::size_t>(r)]);
    }
  }
  CHECK(where.local(2, 1) == 1);
  CHECK(where.local(1, 1) == -1);
  CHECK(where.replicates());
  CHECK(where.fingerprint() != parallel::placement(4, {{0, 1, 2}, {}, {1, 3}, {1}}).fingerprint());
}

TEST_CASE("wrong placements are refused") {
  using support::said;
  CHECK(said([] {
          parallel::placement(3, {{0, 1}, {1}});
        }) == "switchyard: parallel::placement: expected a rank for every expert, got none for expert 2");
  CHECK(said([] {
          parallel::placement(3, {{0, 1, 1}, {2}});
        }) == "switchyard: parallel::placement, rank 0: expected every expert once, got expert 1 twice");
  CHECK(said([] {
          parallel::placement(3, {{0, 1}, {3}});
        }) == "switchyard: parallel::placement, rank 1: expected ids from 0 to 2, got 3");
  CHECK(said([] {
          parallel::balanced_placement(std::vector<std::int64_t>{1, 2, 3}, 1, 2);
        }) == "switchyard: parallel::balanced_placement: expected room for 3 experts, got 1 ranks with 2 each");
}
