#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/moefication/coactivation.hpp>

#include <metis.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace switchyard::moefication {

/// Splits a co-activation graph into experts of exactly units / experts units each, by METIS's k-way partition and `rebalance`. The same
/// seed gives the same result with the same METIS.
///
/// This header alone needs METIS (Debian's libmetis-dev; link with -lmetis). Throws where experts do not divide units, where the graph has
/// more edges than METIS counts, and where METIS fails.
inline std::vector<std::int32_t> graph_clusters(unit_graph const& graph, int experts, int seed = 0) {
  auto const units = static_cast<std::int64_t>(graph.first.size()) - 1;
  detail::check_split("graph_clusters", units, experts);
  if (graph.first.back() > std::numeric_limits<idx_t>::max()) {
    fail("moefication::graph_clusters, edges", "at most " + std::to_string(std::numeric_limits<idx_t>::max()),
         std::to_string(graph.first.back()));
  }
  std::vector<std::int32_t> labels(static_cast<std::size_t>(units), 0);
  if (experts > 1) {
    std::vector<idx_t> first(graph.first.begin(), graph.first.end());
    std::vector<idx_t> neighbour(graph.neighbour.begin(), graph.neighbour.end());
    std::vector<idx_t> weight(graph.weight.begin(), graph.weight.end());
    std::vector<idx_t> part(static_cast<std::size_t>(units), 0);
    idx_t vertices = static_cast<idx_t>(units), constraints = 1, parts = experts, cut = 0;
    idx_t options[METIS_NOPTIONS];
    METIS_SetDefaultOptions(options);
    options[METIS_OPTION_SEED] = seed;
    int const status = METIS_PartGraphKway(&vertices, &constraints, first.data(), neighbour.data(), nullptr, nullptr,
                                           weight.data(), &parts, nullptr, nullptr, options, &cut, part.data());
    if (status != METIS_OK) fail("METIS_PartGraphKway", "METIS_OK", "status " + std::to_string(status));
    labels.assign(part.begin(), part.end());
  }
  rebalance(labels, experts, static_cast<std::uint64_t>(seed));
  return labels;
}

}  // namespace switchyard::moefication
