#include <switchyard/moefication/coactivation.hpp>
#if defined(SWITCHYARD_HAS_METIS)
#include <switchyard/moefication/metis_partition.hpp>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "support/random_numbers.hpp"

namespace sy = switchyard;
namespace moefication = switchyard::moefication;

TEST_CASE("a batch counts at most once for a pair of units, by the sum of its products", "[moefication]") {
  moefication::coactivation graph(4);
  std::vector<float> const hidden{2, 1.5f, 1, 0, 0, 0, 0.5f, 0.25f};
  graph.add({hidden.data(), 2, 4});
  CHECK(graph.values() == std::vector<float>{1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0.125f, 0, 0, 0.125f, 0.0625f});

  // The percentiles 10 and 20 of these are zero, number 30 is half way between 0.0625 and 0.125.
  moefication::unit_graph const edges = graph.graph();
  CHECK(edges.threshold == Catch::Approx(0.99 * 0.09375));
  CHECK(edges.first == std::vector<std::int64_t>{0, 2, 4, 7, 8});
  CHECK(edges.neighbour == std::vector<std::int32_t>{1, 2, 0, 2, 0, 1, 3, 2});
  CHECK(edges.weight == std::vector<std::int32_t>{10, 10, 10, 10, 10, 10, 1, 1});
}

TEST_CASE("inputs are taken in batches of 8", "[moefication]") {
  moefication::coactivation graph(2);
  std::vector<float> const active(2 * 17, 0.5f);  // a product of 0.25 for each input, so a batch of 8 has 2
  graph.add({active.data(), 17, 2});
  CHECK(graph.values() == std::vector<float>(4, 2.25f));
  CHECK_THROWS_AS(graph.add({active.data(), 2, 3}), sy::error);
}

TEST_CASE("a graph without co-activations is refused", "[moefication]") {
  moefication::coactivation graph(3);
  std::vector<float> const idle(9, 0.0f);
  graph.add({idle.data(), 3, 3});
  CHECK_THROWS_AS(graph.graph(), sy::error);
  CHECK_THROWS_AS(moefication::coactivation(0), sy::error);
}

TEST_CASE("rebalancing moves units of parts that have too many alone", "[moefication]") {
  std::vector<std::int32_t> const before{0, 0, 0, 0, 1, 1, 2, 2, 0};
  std::vector<std::int32_t> after = before;
  moefication::rebalance(after, 3, 5);
  for (int part = 0; part < 3; ++part) CHECK(std::count(after.begin(), after.end(), part) == 3);
  for (std::size_t i = 0; i < before.size(); ++i) {
    if (before[i] != 0) CHECK(after[i] == before[i]);
  }
  std::vector<std::int32_t> again = before;
  moefication::rebalance(again, 3, 5);
  CHECK(again == after);
  std::vector<std::int32_t> wrong{0, 3, 1};
  CHECK_THROWS_AS(moefication::rebalance(wrong, 3), sy::error);
  std::vector<std::int32_t> uneven{0, 1};
  CHECK_THROWS_AS(moefication::rebalance(uneven, 3), sy::error);
}

#if defined(SWITCHYARD_HAS_METIS)
TEST_CASE("METIS puts units that are active together into one expert", "[moefication]") {
  constexpr int units = 24, experts = 4;
  support::random_numbers random(3);
  moefication::coactivation graph(units);
  for (int batch = 0; batch < 200; ++batch) {  // of one group each, and some noise
    std::vector<float> active(8 * units, 0.0f);
    int const group = random.below(experts);
    for (std::size_t at = 0; at < active.size(); ++at) {
      bool const in_group = static_cast<int>(at % units) % experts == group;
      if (in_group || random.below(200) == 0) active[at] = 1.0f;
    }
    graph.add({active.data(), 8, units});
  }
  std::vector<std::int32_t> const labels = moefication::graph_clusters(graph.graph(), experts);
  for (int u = 0; u < units; ++u) {
    CHECK(labels[static_cast<std::size_t>(u)] == labels[static_cast<std::size_t>(u % experts)]);
  }
  for (int e = 0; e < experts; ++e) CHECK(std::count(labels.begin(), labels.end(), e) == units / experts);
  CHECK(moefication::graph_clusters(graph.graph(), experts) == labels);
  CHECK(moefication::graph_clusters(graph.graph(), 1) == std::vector<std::int32_t>(units, 0));
  CHECK_THROWS_AS(moefication::graph_clusters(graph.graph(), 5), sy::error);
}
#endif
