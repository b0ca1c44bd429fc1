#include <switchyard/moefication/clusters.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

#include "catch.hpp"
#include "support/random_numbers.hpp"

/// The split of hidden units into experts of one size.
namespace sy = switchyard;
namespace moefication = switchyard::moefication;

namespace {

using labels = std::vector<std::int32_t>;

std::vector<float> random_floats(std::size_t count, unsigned seed) {
  support::random_numbers random(seed);
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(random.normal());
  return values;
}

double cost_of(std::vector<float> const& costs, labels const& of, int experts) {
  double total = 0.0;
  for (std::size_t i = 0; i < of.size(); ++i) {
    total += static_cast<double>(costs[i * static_cast<std::size_t>(experts) + static_cast<std::size_t>(of[i])]);
  }
  return total;
}

bool is_balanced(labels const& of, int experts) {
  for (int e = 0; e < experts; ++e) {
    if (std::count(of.begin(), of.end(), e) != static_cast<std::ptrdiff_t>(of.size()) / experts) return false;
  }
  return true;
}

/// The least cost of all balanced assignments, by trying them.
double least_cost(std::vector<float> const& costs, int units, int experts) {
  labels tried = moefication::contiguous_clusters(units, experts);
  double least = std::numeric_limits<double>::infinity();
  do {
    least = std::min(least, cost_of(costs, tried, experts));
  } while (std::next_permutation(tried.begin(), tried.end()));
  return least;
}

}  // namespace

TEST_CASE("a contiguous split has unit i in cluster i / size", "[moefication]") {
  CHECK(moefication::contiguous_clusters(6, 3) == labels{0, 0, 1, 1, 2, 2});
  CHECK_THROWS_AS(moefication::contiguous_clusters(7, 3), sy::error);
  CHECK_THROWS_AS(moefication::contiguous_clusters(0, 3), sy::error);
  CHECK_THROWS_AS(moefication::contiguous_clusters(6, 0), sy::error);
}

TEST_CASE("a balanced assignment costs as little as the best of all", "[moefication]") {
  for (unsigned seed = 1; seed <= 40; ++seed) {
    struct size {
      int units, experts;
    };
    auto const [units, experts] = std::vector<size>{{8, 4}, {9, 3}, {8, 2}, {6, 6}}[seed % 4];
    std::vector<float> costs = random_floats(static_cast<std::size_t>(units * experts), seed);
    if (seed % 3 == 0) {  // equal costs, and one cluster that all want
      for (float& c : costs) c = std::round(c);
      for (std::size_t i = 0; i < costs.size(); i += static_cast<std::size_t>(experts)) costs[i] -= 5.0f;
    }
    labels assigned(static_cast<std::size_t>(units));
    moefication::assign_balanced({costs.data(), units, experts}, assigned.data());
    INFO("seed " << seed);
    CHECK(is_balanced(assigned, experts));
    CHECK(cost_of(costs, assigned, experts) == Catch::Approx(least_cost(costs, units, experts)).margin(1e-5));
  }
}

TEST_CASE("normalised rows have length 1, or are zeros", "[moefication]") {
  std::vector<float> const matrix{3, 4, 0, 0, 0.5f, 0.5f};
  std::vector<float> const rows = moefication::normalised_rows(sy::view<float const>{matrix.data(), 3, 2});
  CHECK(rows[0] == Catch::Approx(0.6));
  CHECK(rows[1] == Catch::Approx(0.8));
  CHECK(rows[2] == 0.0f);
  CHECK(rows[3] == 0.0f);
  CHECK(rows[5] == Catch::Approx(0.707107));
}

TEST_CASE("balanced k-means finds clusters that are there, in any order of the rows", "[moefication]") {
  constexpr int experts = 6, size = 5, width = 24;
  std::vector<float> const middle = random_floats(experts * width, 1), noise = random_floats(experts * size * width, 2);
  std::vector<float> matrix(noise.size());
  for (std::size_t i = 0; i < matrix.size(); ++i) {  // unit u is of cluster u % experts
    matrix[i] = middle[i / width % experts * width + i % width] + 0.2f * noise[i];
  }
  std::vector<float> const rows =
      moefication::normalised_rows(sy::view<float const>{matrix.data(), experts * size, width});
  sy::view<float const> const seen{rows.data(), experts * size, width};
  moefication::clustering const found = moefication::balanced_k_means(seen, experts);
  CHECK(is_balanced(found.labels, experts));
  for (int u = 0; u < experts * size; ++u) {
    CHECK(found.labels[static_cast<std::size_t>(u)] == found.labels[static_cast<std::size_t>(u % experts)]);
  }
  CHECK(std::set<std::int32_t>(found.labels.begin(), found.labels.begin() + experts).size() == experts);
  CHECK(found.objective == Catch::Approx(moefication::cluster_objective(seen, found.labels, experts)));
}

TEST_CASE("balanced k-means is the same for a seed, better with swaps, and no pair of units would lower its objective",
          "[moefication]") {
  constexpr int units = 48, experts = 6, width = 10;
  std::vector<float> const matrix = random_floats(units * width, 7);
  std::vector<float> const rows = moefication::normalised_rows(sy::view<float const>{matrix.data(), units, width});
  sy::view<float const> const seen{rows.data(), units, width};
  int reports = 0;
  moefication::clustering_options options{.starts = 2, .seed = 3};
  moefication::clustering const plain =
      moefication::balanced_k_means(seen, experts, {.starts = 2, .swap_sweeps = 0, .seed = 3});
  options.progress = [&](moefication::clustering_progress const& p) {
    ++reports;
    CHECK(p.starts == 2);
  };
  moefication::clustering const found = moefication::balanced_k_means(seen, experts, options);
  CHECK(reports > 4);
  CHECK(found.labels == moefication::balanced_k_means(seen, experts, {.starts = 2, .seed = 3}).labels);
  CHECK(is_balanced(plain.labels, experts));
  CHECK(is_balanced(found.labels, experts));
  CHECK(found.objective <= plain.objective);
  labels swapped = found.labels;
  for (std::size_t i = 0; i < units; ++i) {
    for (std::size_t j = i + 1; j < units; ++j) {
      std::swap(swapped[i], swapped[j]);
      CHECK(moefication::cluster_objective(seen, swapped, experts) >= found.objective - 1e-5);
      std::swap(swapped[i], swapped[j]);
    }
  }
}

TEST_CASE("balanced k-means takes rows that are equal, and one cluster, and as many as units", "[moefication]") {
  std::vector<float> const same(12, 0.5f);
  CHECK(is_balanced(moefication::balanced_k_means({same.data(), 6, 2}, 3).labels, 3));
  std::vector<float> const rows = random_floats(12, 4);
  CHECK(moefication::balanced_k_means({rows.data(), 6, 2}, 1).labels == labels(6, 0));
  moefication::clustering const each = moefication::balanced_k_means({rows.data(), 6, 2}, 6);
  CHECK(is_balanced(each.labels, 6));
  CHECK(each.objective == Catch::Approx(0.0).margin(1e-6));
  CHECK_THROWS_AS(moefication::balanced_k_means({rows.data(), 6, 2}, 4), sy::error);
  std::vector<float> broken = rows;
  broken[3] = std::nanf("");
  CHECK_THROWS_AS(moefication::balanced_k_means({broken.data(), 6, 2}, 3), sy::error);
}
