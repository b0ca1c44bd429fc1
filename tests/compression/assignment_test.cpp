#include <switchyard/compression/assignment.hpp>
#include <switchyard/compression/matrix_product.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "catch.hpp"
#include "support/random_numbers.hpp"
#include "support/said.hpp"

namespace sy = switchyard;
using sy::compression::assign;

using support::said;

namespace {

constexpr sy::instruction_set sets[] = {sy::instruction_set::portable, sy::instruction_set::avx2,
                                        sy::instruction_set::avx512};

struct problem {
  int count;
  std::vector<float> costs;  // [count, count]

  sy::view<float const> view() const { return {costs.data(), count, count}; }
  double sum(std::vector<std::int32_t> const& columns) const {
    double total = 0.0;
    for (int i = 0; i < count; ++i) total += costs[static_cast<std::size_t>(i * count + columns[i])];
    return total;
  }
};

template <class Cost>
problem make(int count, Cost cost) {
  problem p{count, {}};
  for (int i = 0; i < count; ++i) {
    for (int j = 0; j < count; ++j) p.costs.push_back(static_cast<float>(cost(i, j)));
  }
  return p;
}

/// The solution, which is a permutation and the same by every instruction set.
std::vector<std::int32_t> solve(problem const& p) {
  std::vector<std::int32_t> columns(static_cast<std::size_t>(p.count)), first;
  for (sy::instruction_set set : sets) {
    if (set > sy::best_instruction_set()) continue;
    REQUIRE(assign(p.view(), columns, {}, set));
    if (first.empty()) first = columns;
    CHECK(columns == first);
  }
  std::vector<std::int32_t> sorted = first, all(first.size());
  std::sort(sorted.begin(), sorted.end());
  std::iota(all.begin(), all.end(), 0);
  CHECK(sorted == all);
  return first;
}

double least_by_trying_all(problem const& p) {
  std::vector<std::int32_t> columns(static_cast<std::size_t>(p.count));
  std::iota(columns.begin(), columns.end(), 0);
  double least = std::numeric_limits<double>::infinity();
  do least = std::min(least, p.sum(columns));
  while (std::next_permutation(columns.begin(), columns.end()));
  return least;
}

/// The Hungarian method, a row at a time, with potentials of both sides.
double least_by_hungarian(problem const& p) {
  auto const n = static_cast<std::size_t>(p.count);
  std::vector<double> u(n + 1), v(n + 1);
  std::vector<std::size_t> row_of(n + 1), way(n + 1);
  for (std::size_t i = 1; i <= n; ++i) {
    row_of[0] = i;
    std::size_t column = 0;
    std::vector<double> least(n + 1, std::numeric_limits<double>::infinity());
    std::vector<bool> used(n + 1, false);
    do {
      used[column] = true;
      std::size_t const row = row_of[column];
      std::size_t next = 0;
      double delta = std::numeric_limits<double>::infinity();
      for (std::size_t j = 1; j <= n; ++j) {
        if (used[j]) continue;
        double const reduced = p.costs[(row - 1) * n + j - 1] - u[row] - v[j];
        if (reduced < least[j]) least[j] = reduced, way[j] = column;
        if (least[j] < delta) delta = least[j], next = j;
      }
      for (std::size_t j = 0; j <= n; ++j) {
        if (used[j]) {
          u[row_of[j]] += delta;
          v[j] -= delta;
        } else {
          least[j] -= delta;
        }
      }
      column = next;
    } while (row_of[column] != 0);
    do {
      std::size_t const before = way[column];
      row_of[column] = row_of[before];
      column = before;
    } while (column != 0);
  }
  return -v[0];
}

}  // namespace

TEST_CASE("an assignment costs as little as the best of all permutations", "[compression]") {
  support::random_numbers random(1);
  for (int trial = 0; trial < 200; ++trial) {
    int const count = 1 + random.below(7), values = trial % 3 == 0 ? 3 : 1000;
    problem const p = make(count, [&](int, int) { return random.below(values) - values / 3; });
    CHECK(p.sum(solve(p)) == least_by_trying_all(p));
  }
}

TEST_CASE("an assignment of many costs as little as that of the Hungarian method", "[compression]") {
  support::random_numbers random(2);
  for (int count : {17, 64, 101, 150}) {
    CAPTURE(count);
    problem const uniform = make(count, [&](int, int) { return random.uniform(); });
    CHECK(uniform.sum(solve(uniform)) == Catch::Approx(least_by_hungarian(uniform)).epsilon(1e-12));
    problem const whole = make(count, [&](int, int) { return random.below(10); });
    CHECK(whole.sum(solve(whole)) == least_by_hungarian(whole));
    // Every row wants the same columns: the case that takes the longest paths.
    problem const product = make(count, [&](int i, int j) { return (i + 1.0) * (j + 1.0); });
    CHECK(product.sum(solve(product)) == Catch::Approx(least_by_hungarian(product)).epsilon(1e-12));
    std::vector<double> points;
    for (int i = 0; i < 6 * count; ++i) points.push_back(random.normal());
    problem const distances = make(count, [&](int i, int j) {
      double sum = 0.0;
      for (int d = 0; d < 3; ++d) sum += std::pow(points[i * 3 + d] - points[(count + j) * 3 + d], 2);
      return sum;
    });
    CHECK(distances.sum(solve(distances)) == Catch::Approx(least_by_hungarian(distances)).epsilon(1e-12));
  }
}

TEST_CASE("an assignment of points on a line, which takes long paths, costs as little as that of the Hungarian method",
          "[compression]") {
  support::random_numbers random(6);
  for (int trial = 0; trial < 100; ++trial) {
    int const count = 5 + random.below(40);
    std::vector<double> points;
    for (int i = 0; i < 2 * count; ++i) points.push_back(random.uniform());
    problem const line = make(count, [&](int i, int j) { return std::abs(points[i] - points[count + j]); });
    CHECK(line.sum(solve(line)) == Catch::Approx(least_by_hungarian(line)).epsilon(1e-9));
    problem const steps =
        make(count, [&](int i, int j) { return std::floor(20 * points[i]) * std::floor(20 * points[count + j]); });
    CHECK(steps.sum(solve(steps)) == least_by_hungarian(steps));
  }
}

TEST_CASE("an assignment of equal costs is one, and a hidden permutation is found", "[compression]") {
  problem const equal = make(70, [](int, int) { return 2.5; });
  CHECK(equal.sum(solve(equal)) == 175.0);
  problem const hidden = make(90, [](int i, int j) { return j == i * 7 % 90 ? 0.0 : 1.0; });
  std::vector<std::int32_t> const columns = solve(hidden);
  for (int i = 0; i < 90; ++i) CHECK(columns[i] == i * 7 % 90);
}

TEST_CASE("an assignment's costs may have rows that are apart", "[compression]") {
  std::vector<float> const costs = {5, 1, 9, 9, 2, 7, 9, 9};
  std::int32_t columns[2];
  REQUIRE(assign({costs.data(), 2, 2, 4}, columns));
  CHECK(columns[0] == 1);
  CHECK(columns[1] == 0);
}

TEST_CASE("an assignment stops when it is told to, and refuses what is no problem", "[compression]") {
  problem const p = make(40, [](int i, int j) { return (i + 1.0) * (j + 1.0); });
  std::vector<std::int32_t> columns(40);
  int calls = 0;
  double last = 0.0;
  CHECK(assign(p.view(), columns, [&](double done) {
    CHECK(done >= last);
    CHECK(done <= 1.0);
    last = done;
    return ++calls > 0;
  }));
  CHECK(calls > 3);
  for (int stop = 1; stop <= calls; ++stop) {
    int left = stop;
    CHECK_FALSE(assign(p.view(), columns, [&](double) { return --left > 0; }));
  }
  CHECK(said([&] {
          assign({p.costs.data(), 2, 3}, columns);
        }) == "switchyard: compression::assign, costs: expected as many rows as columns, at least 1, got 2 x 3");
  CHECK(said([&] {
          assign({p.costs.data(), 3, 3}, columns);
        }) == "switchyard: compression::assign, column_of_row: expected 3 numbers, got 40");
  problem wrong = p;
  for (float value : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    wrong.costs[40 * 3 + 5] = value;
    CHECK(said([&] { assign(wrong.view(), columns); }) ==
          "switchyard: compression::assign, costs: expected finite numbers, got one that is not in row 3");
  }
}

TEST_CASE("squared distances are those of double, by every instruction set and any number of threads",
          "[compression]") {
  support::random_numbers random(3);
  for (int depth : {1, 3, 40, 700}) {
    for (int rows : {1, 31, 130}) {
      int const others = 75;
      std::vector<float> x, a;
      for (int i = 0; i < rows * depth; ++i) x.push_back(static_cast<float>(random.normal()));
      for (int i = 0; i < others * depth; ++i) a.push_back(static_cast<float>(random.normal()));
      for (int i = 0; i < depth; ++i) a[i] = x[i];
      for (sy::instruction_set set : sets) {
        if (set > sy::best_instruction_set()) continue;
        CAPTURE(depth, rows, sy::name_of(set));
        std::vector<float> got(static_cast<std::size_t>(rows * others)), by_two = got;
        sy::view<float const> const of_x(x.data(), rows, depth), of_a(a.data(), others, depth);
        CHECK(sy::compression::squared_distances(of_x, of_a, {got.data(), rows, others},
                                                 {.threads = 1, .instructions = set}));
        CHECK(sy::compression::squared_distances(of_x, of_a, {by_two.data(), rows, others},
                                                 {.threads = 2, .instructions = set}));
        CHECK(got == by_two);
        double most = 0.0;
        for (int r = 0; r < rows; ++r) {
          for (int j = 0; j < others; ++j) {
            double sum = 0.0, size = 0.0;
            for (int i = 0; i < depth; ++i) {
              double const apart = static_cast<double>(x[r * depth + i]) - a[j * depth + i];
              sum += apart * apart;
              size += std::pow(x[r * depth + i], 2) + std::pow(a[j * depth + i], 2);
            }
            float const distance = got[static_cast<std::size_t>(r * others + j)];
            CHECK(distance >= 0.0f);
            most = std::max(most, std::abs(distance - sum) / size);
          }
        }
        CHECK(most < 1e-6);
      }
    }
  }
}
