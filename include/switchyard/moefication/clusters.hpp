#pragma once

#include <switchyard/core/counter_random.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/moefication/balanced_assignment.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

/// How the hidden units of a dense block are split into experts of equal size. Host code; include it by name.
///
/// Source: Zhang et al. 2022, MoEfication: Transformer Feed-forward Layers are Mixtures of Experts, section 3.2, with its code.
namespace switchyard::moefication {

/// Unit i in cluster i / (units / experts): what MoEfication's code calls a random split. Throws where experts do not divide units.
inline std::vector<std::int32_t> contiguous_clusters(std::int64_t units, int experts) {
  detail::check_split("contiguous_clusters", units, experts);
  std::vector<std::int32_t> labels(static_cast<std::size_t>(units));
  for (std::int64_t i = 0; i < units; ++i) {
    labels[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i / (units / experts));
  }
  return labels;
}

/// The rows of a matrix divided by their lengths, back to back. A row of zeros stays one.
template <class Element>
std::vector<float> normalised_rows(view<Element const> const& matrix) {
  std::vector<float> result(static_cast<std::size_t>(matrix.rows * matrix.columns));
  for (std::int64_t i = 0; i < matrix.rows; ++i) {
    double square = 0.0;
    for (std::int64_t c = 0; c < matrix.columns; ++c) {
      double const value = static_cast<double>(static_cast<float>(matrix.row(i)[c]));
      square += value * value;
    }
    double const scale = square > 0.0 ? 1.0 / std::sqrt(square) : 0.0;
    for (std::int64_t c = 0; c < matrix.columns; ++c) {
      double const value = static_cast<double>(static_cast<float>(matrix.row(i)[c]));
      result[static_cast<std::size_t>(i * matrix.columns + c)] = static_cast<float>(value * scale);
    }
  }
  return result;
}

/// The means of the rows of each cluster, [experts, columns]: centers, where the rows are normalised ones.
inline std::vector<float> cluster_means(view<float const> const& rows, std::vector<std::int32_t> const& labels,
                                        int experts) {
  auto const width = static_cast<std::size_t>(rows.columns);
  std::vector<double> sums(static_cast<std::size_t>(experts) * width);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(experts));
  for (std::size_t i = 0; i < labels.size(); ++i) {
    auto const e = static_cast<std::size_t>(labels[i]);
    float const* const row = rows.row(static_cast<std::int64_t>(i));
    for (std::size_t c = 0; c < width; ++c) sums[e * width + c] += static_cast<double>(row[c]);
    ++counts[e];
  }
  std::vector<float> means(sums.size());
  for (std::size_t at = 0; at < sums.size(); ++at) {
    std::int64_t const count = std::max<std::int64_t>(counts[at / width], 1);
    means[at] = static_cast<float>(sums[at] / static_cast<double>(count));
  }
  return means;
}

/// The sum of the squared distances of rows to the means of their clusters: what balanced k-means makes small.
inline double cluster_objective(view<float const> const& rows, std::vector<std::int32_t> const& labels, int experts) {
  auto const width = static_cast<std::size_t>(rows.columns);
  std::vector<double> sums(static_cast<std::size_t>(experts) * width), counts(static_cast<std::size_t>(experts));
  double result = 0.0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    auto const e = static_cast<std::size_t>(labels[i]);
    for (std::size_t c = 0; c < width; ++c) {
      double const value = static_cast<double>(rows.row(static_cast<std::int64_t>(i))[c]);
      sums[e * width + c] += value;
      result += value * value;
    }
    counts[e] += 1.0;
  }
  for (std::size_t at = 0; at < sums.size(); ++at) {
    if (counts[at / width] > 0.0) result -= sums[at] * sums[at] / counts[at / width];
  }
  return result;
}

/// How far `balanced_k_means` has come.
struct clustering_progress {
  int start, starts;  ///< that it is at, from 0, and how many there are
  int iteration;      ///< of assignment and means, or of swaps
  double objective;   ///< of this iteration
};

struct clustering_options {
  int starts = 4;        ///< the best result of so many is taken
  int iterations = 100;  ///< of each start, at most: it ends where no unit changes its cluster
  /// Sweeps over all pairs of units that change places where this lowers the objective, at most; they end where no pair does. They take
  /// units x units floats, once: 38 MB for 3072 units. 0: none.
  int swap_sweeps = 20;
  std::uint64_t seed = 0;
  std::function<void(clustering_progress const&)> progress = {};
};

/// Clusters of as many rows each.
struct clustering {
  std::vector<std::int32_t> labels;  ///< [units], the cluster of each
  double objective = 0.0;            ///< `cluster_objective`
};

namespace detail {

/// products[i][j] = rows of a . rows of b, [a.rows, b.rows].
inline std::vector<float> row_products(view<float const> const& a, view<float const> const& b) {
  auto const width = static_cast<std::size_t>(a.columns), count = static_cast<std::size_t>(b.rows);
  std::vector<float> transposed(width * count), products(static_cast<std::size_t>(a.rows) * count, 0.0f);
  for (std::size_t j = 0; j < count; ++j) {
    for (std::size_t c = 0; c < width; ++c) transposed[c * count + j] = b.row(static_cast<std::int64_t>(j))[c];
  }
  for (std::int64_t i = 0; i < a.rows; ++i) {
    float const* const row = a.row(i);
    float* const to = products.data() + static_cast<std::size_t>(i) * count;
    for (std::size_t c = 0; c < width; ++c) {
      float const value = row[c];
      float const* const from = transposed.data() + c * count;
      for (std::size_t j = 0; j < count; ++j) to[j] += value * from[j];
    }
  }
  return products;
}

/// Rows to begin with: each is drawn with a probability that is proportional to its squared distance from the nearest one before
/// (Arthur and Vassilvitskii 2007, k-means++).
inline std::vector<float> first_centers(view<float const> const& rows, int experts, counter_random const& random) {
  auto const width = static_cast<std::size_t>(rows.columns), units = static_cast<std::size_t>(rows.rows);
  std::vector<float> centers;
  std::vector<double> distance(units, 1.0);
  for (int e = 0; e < experts; ++e) {
    double total = 0.0;
    for (double d : distance) total += d;
    double left = static_cast<double>(random.uniform(static_cast<std::uint64_t>(e))) * total;
    std::size_t drawn = 0;
    while (drawn + 1 < units && (left >= distance[drawn] || distance[drawn] == 0.0)) left -= distance[drawn++];
    float const* const center = rows.row(static_cast<std::int64_t>(drawn));
    centers.insert(centers.end(), center, center + width);
    for (std::size_t i = 0; i < units; ++i) {
      double square = 0.0;
      float const* const row = rows.row(static_cast<std::int64_t>(i));
      for (std::size_t c = 0; c < width; ++c) {
        double const apart = static_cast<double>(row[c]) - static_cast<double>(center[c]);
        square += apart * apart;
      }
      distance[i] = e == 0 ? square : std::min(distance[i], square);
    }
  }
  return centers;
}

/// Units of two clusters change places where this lowers the objective. With the sums S of two clusters and d = r_j - r_i, the sum of
/// |S|^2 grows by 2 d . (S_a - S_b) + 2 |d|^2: more than an assignment to fixed means knows, for the means follow. Returns whether any
/// pair did.
inline bool swap_units(std::vector<float> const& gram, std::int64_t units, int experts,
                       std::vector<std::int32_t>& labels, std::vector<double>& products) {
  auto const width = static_cast<std::size_t>(experts), count = static_cast<std::size_t>(units);
  bool any = false;
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t j = i + 1; j < count; ++j) {
      auto const a = static_cast<std::size_t>(labels[i]), b = static_cast<std::size_t>(labels[j]);
      if (a == b) continue;
      double const first =
          (products[j * width + a] - products[i * width + a]) - (products[j * width + b] - products[i * width + b]);
      double const apart = static_cast<double>(gram[i * count + i]) + static_cast<double>(gram[j * count + j]) -
                           2.0 * static_cast<double>(gram[i * count + j]);
      if (first + apart <= 1e-7) continue;
      std::swap(labels[i], labels[j]);
      for (std::size_t k = 0; k < count; ++k) {
        double const moved = static_cast<double>(gram[j * count + k]) - static_cast<double>(gram[i * count + k]);
        products[k * width + a] += moved;
        products[k * width + b] -= moved;
      }
      any = true;
    }
  }
  return any;
}

}  // namespace detail

/// Clusters of exactly units / experts rows each, whose rows are near their means: balanced k-means on rows that are normalised already.
///
/// From centers by k-means++, an exact balanced assignment and an update of the means take turns; then pairs of units change places where
/// that lowers the objective. The best of all starts is returned. The same seed gives the same result. An assignment takes units x experts
/// floats.
/// Source: Zhang et al. 2022, MoEfication, section 3.2 (parameter clustering), there with plain k-means before, and without the swaps, so
/// that its objective is reached or undercut.
/// Throws where experts do not divide units.
inline clustering balanced_k_means(view<float const> const& rows, int experts, clustering_options const& options = {}) {
  detail::check_split("balanced_k_means", rows.rows, experts);
  auto const units = static_cast<std::size_t>(rows.rows), width = static_cast<std::size_t>(experts);
  std::vector<float> gram;
  if (options.swap_sweeps > 0) gram = detail::row_products(rows, rows);
  clustering best;
  best.objective = std::numeric_limits<double>::infinity();
  for (int start = 0; start < std::max(options.starts, 1); ++start) {
    auto const keep = [&](std::vector<std::int32_t> const& labels, int iteration) {
      double const objective = cluster_objective(rows, labels, experts);
      if (objective < best.objective) best = {labels, objective};
      if (options.progress) options.progress({start, std::max(options.starts, 1), iteration, objective});
      return objective;
    };
    std::vector<float> centers =
        detail::first_centers(rows, experts, {.seed = options.seed, .stream = static_cast<std::uint64_t>(start)});
    std::vector<std::int32_t> labels, best_labels;
    double of_start = std::numeric_limits<double>::infinity();
    int iteration = 0;
    for (; iteration < std::max(options.iterations, 1); ++iteration) {
      std::vector<float> costs = detail::row_products(rows, {centers.data(), experts, rows.columns});
      for (std::size_t e = 0; e < width; ++e) {
        double square = 0.0;
        float const* const center = centers.data() + e * static_cast<std::size_t>(rows.columns);
        for (std::int64_t c = 0; c < rows.columns; ++c) {
          square += static_cast<double>(center[c]) * static_cast<double>(center[c]);
        }
        for (std::size_t i = 0; i < units; ++i) {
          costs[i * width + e] = static_cast<float>(0.5 * square) - costs[i * width + e];
        }
      }
      std::vector<std::int32_t> assigned(units);
      assign_balanced({costs.data(), rows.rows, experts}, assigned.data());
      bool const moved = assigned != labels;
      labels = std::move(assigned);
      if (!moved) break;
      double const objective = keep(labels, iteration);
      if (objective < of_start) {
        of_start = objective;
        best_labels = labels;
      }
      centers = cluster_means(rows, labels, experts);
    }
    if (options.swap_sweeps == 0) continue;
    labels = best_labels;
    std::vector<double> products(units * width, 0.0);  // of a row and the sum of a cluster
    for (std::size_t i = 0; i < units; ++i) {
      for (std::size_t k = 0; k < units; ++k) {
        products[i * width + static_cast<std::size_t>(labels[k])] += static_cast<double>(gram[i * units + k]);
      }
    }
    for (int sweep = 0; sweep < options.swap_sweeps; ++sweep) {
      bool const any = detail::swap_units(gram, rows.rows, experts, labels, products);
      keep(labels, iteration + sweep);
      if (!any) break;
    }
  }
  return best;
}

}  // namespace switchyard::moefication
