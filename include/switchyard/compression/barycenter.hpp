#pragma once

#include <switchyard/compression/assignment.hpp>
#include <switchyard/compression/matrix_product.hpp>
#include <switchyard/compression/progress.hpp>
#include <switchyard/compression/state_bytes.hpp>
#include <switchyard/compression/units.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace switchyard::compression {

/// How the centre of some experts is looked for.
struct barycenter_options {
  std::vector<int> starts = {0};  ///< experts that the centre begins as, each in a run of its own; the best run is kept
  double tolerance = 1e-7;        ///< a run ends when the centre's squared movement is at most that
  int most_iterations = 100;      ///< a run ends after so many anyway

  friend bool operator==(barycenter_options const&, barycenter_options const&) = default;
};

/// Every expert as a start.
inline std::vector<int> every_start(int experts) {
  std::vector<int> all(static_cast<std::size_t>(experts));
  for (int e = 0; e < experts; ++e) all[static_cast<std::size_t>(e)] = e;
  return all;
}

/// One run of the search.
struct barycenter_run {
  int start = 0;
  std::vector<double> movements = {};  ///< of each iteration: || new centre - old one ||^2
  /// Of each iteration, and of the centre at the end: sum over experts of || centre - aligned expert ||^2. It never rises but for rounding.
  std::vector<double> objectives = {};
  std::vector<double> of_start =
      {};  ///< [experts]: the same of each expert, with the expert `start` itself as the centre

  int iterations() const { return static_cast<int>(movements.size()); }
};

/// The centre of some experts, and how they lie on it.
struct barycenter {
  matrix centre;  ///< [intermediate, columns]
  std::vector<std::int32_t>
      permutation;         ///< [experts, intermediate]: which row of the expert lies on each row of the centre
  int start = -1;          ///< of the run that it is from; -1: there is none yet
  double objective = 0.0;  ///< sum over experts of || centre - aligned expert ||^2
  std::vector<barycenter_run> runs;  ///< those that are finished
};

namespace detail {

/// || centre[r] - expert[permutation[r]] ||^2, summed over all rows, in double.
inline double aligned_distance(view<float const> centre, view<float const> expert, std::int32_t const* permutation,
                               cpu_context const& chosen) {
  std::vector<double> of_row(static_cast<std::size_t>(centre.rows));
  cpu::parallel_for(chosen, centre.rows, [&](std::int64_t r) {
    float const *const x = centre.row(r), *const a = expert.row(permutation == nullptr ? r : permutation[r]);
    double sum = 0.0;
    for (std::int64_t i = 0; i < centre.columns; ++i) {
      double const apart = static_cast<double>(x[i]) - a[i];
      sum += apart * apart;
    }
    of_row[r] = sum;
  });
  double sum = 0.0;
  for (double of_one : of_row) sum += of_one;
  return sum;
}

/// Reads an expert and looks at its weights.
inline void read_expert(expert_reader const& read, int expert, view<float> rows, cpu_context const& chosen) {
  read(expert, rows);
  std::vector<std::uint8_t> wrong(static_cast<std::size_t>(rows.rows), 0);
  cpu::parallel_for(chosen, rows.rows, [&](std::int64_t r) {
    std::uint32_t largest = 0;
    for (std::int64_t i = 0; i < rows.columns; ++i) {
      std::uint32_t const magnitude = __builtin_bit_cast(std::uint32_t, rows.row(r)[i]) & 0x7fffffffu;
      largest = std::max(largest, magnitude);
    }
    wrong[r] = largest >= 0x7f800000u;
  });
  for (std::uint8_t w : wrong) {
    if (w != 0) {
      fail("compression, weights of expert " + std::to_string(expert), "finite numbers", "one that is not finite");
    }
  }
}

/// permutation[r] = the row of `expert` that lies on row r of `centre`. `costs` is [rows, rows].
inline bool match(view<float const> centre, view<float const> expert, view<float> costs,
                  std::span<std::int32_t> permutation, cpu_context const& chosen, keep_going const& watch) {
  auto const part = [&](double from, double share) -> keep_going {
    if (!watch) return {};
    return [&watch, from, share](double done) { return watch(from + share * done); };
  };
  return squared_distances(centre, expert, costs, chosen, part(0.0, 0.5)) &&
         assign(costs, permutation, part(0.5, 0.5), chosen.instructions);
}

}  // namespace detail

/// Looks for the centre of some experts: a Wasserstein barycenter of their units, which have equal masses. The centre begins as one
/// expert; then, over and over, every expert's units are assigned to the centre's at the least sum of squared distances, and the centre
/// becomes the mean of the experts in that order. That finds a fixed point, which depends on the start.
///
/// Experts are read one at a time, twice in an iteration. Memory: the centre, one expert, and the larger of
/// intermediate x intermediate floats of costs and intermediate x columns doubles of sums; where there are several starts, the best
/// centre so far as well. Time of an iteration: for each expert a product of 2 intermediate^2 columns operations, on all threads, and an
/// assignment on one.
///
/// Sums over experts and units are in double, and the centre is rounded to float after each iteration. The result has the same bits for
/// any number of threads and wherever it was stopped, on the same instruction set.
/// Source: Ai et al. 2025, ResMoE, and the free-support barycenter of Python Optimal Transport, with equal weights.
class barycenter_search {
 public:
  barycenter_search(expert_sizes const& sizes, barycenter_options options, cpu_context const& context = {})
      : sizes_(sizes), options_(std::move(options)), context_(cpu::resolved(context)) {
    detail::check_sizes(sizes_);
    if (options_.starts.empty()) fail("compression::barycenter_options, starts", "at least one expert", "none");
    for (int start : options_.starts) {
      if (start >= 0 && start < sizes_.experts) continue;
      fail("compression::barycenter_options, starts", "experts from 0 to " + std::to_string(sizes_.experts - 1),
           std::to_string(start));
    }
    if (!(options_.tolerance >= 0.0 && std::isfinite(options_.tolerance))) {
      fail("compression::barycenter_options, tolerance", "a finite number that is not negative",
           std::to_string(options_.tolerance));
    }
    if (options_.most_iterations < 1) {
      fail("compression::barycenter_options, most_iterations", "at least 1", std::to_string(options_.most_iterations));
    }
    permutation_.assign(static_cast<std::size_t>(sizes_.experts) * static_cast<std::size_t>(sizes_.intermediate), -1);
  }

  /// Searches on, from where it was stopped. Returns false when `watch` has: what the matching that it was in had done is lost, and
  /// nothing else. Once true, it is true again without work.
  bool run(expert_reader const& read, watcher const& watch = {}) {
    detail::pace const pace(matchings());
    while (!is_finished()) {
      if (!begun_) begin_run(read);
      if (!match_all(read, watch, pace)) return false;
      current_.objectives.push_back(objective_);
      if (iteration_ == 1 && !settled_) current_.of_start = distances_;
      if (!settled_) {
        double const movement = average(read);
        current_.movements.push_back(movement);
        settled_ = movement <= options_.tolerance || iteration_ == options_.most_iterations;
        ++iteration_;
        next_expert_ = 0;
        // A centre that has not moved at all has been matched already.
        if (!settled_ || movement > 0.0) {
          objective_ = 0.0;
          continue;
        }
        current_.objectives.push_back(objective_);
      }
      end_run();
    }
    return true;
  }

  bool is_finished() const { return best_.runs.size() == options_.starts.size(); }
  barycenter const& result() const { return best_; }

  /// Everything that `run` needs to go on, but the experts and the options. `watch` may call it, too.
  std::vector<std::byte> save() const {
    state_writer to;
    to << tag << sizes_ << options_.starts << options_.tolerance << options_.most_iterations << begun_ << settled_
       << iteration_ << next_expert_ << objective_ << distances_ << centre_.values() << permutation_ << current_.start
       << current_.movements << current_.objectives << current_.of_start << best_.centre.values() << best_.permutation
       << best_.start << best_.objective << static_cast<std::uint64_t>(best_.runs.size());
    for (barycenter_run const& run : best_.runs) to << run.start << run.movements << run.objectives << run.of_start;
    return std::move(to).finish();
  }

  /// Takes over what a search of the same experts with the same options has saved. Throws `error` for any other.
  void restore(std::span<std::byte const> bytes) {
    state_reader from(bytes);
    std::uint64_t found = 0;
    expert_sizes sizes;
    barycenter_options options;
    from >> found;
    if (found == tag) from >> sizes >> options.starts >> options.tolerance >> options.most_iterations;
    if (found != tag || !(sizes == sizes_) || !(options == options_)) {
      fail("compression, saved state", "that of a search with the same experts and options", "another");
    }
    barycenter_search other(sizes_, options_, context_);
    std::vector<float> centre, best_centre;
    std::uint64_t runs = 0;
    from >> other.begun_ >> other.settled_ >> other.iteration_ >> other.next_expert_ >> other.objective_ >>
        other.distances_ >> centre >> other.permutation_ >> other.current_.start >> other.current_.movements >>
        other.current_.objectives >> other.current_.of_start >> best_centre >> other.best_.permutation >>
        other.best_.start >> other.best_.objective >> runs;
    for (std::uint64_t i = 0; i < runs; ++i) {
      barycenter_run run;
      from >> run.start >> run.movements >> run.objectives >> run.of_start;
      other.best_.runs.push_back(std::move(run));
    }
    from.finish();
    other.centre_ = matrix_of(std::move(centre));
    other.best_.centre = matrix_of(std::move(best_centre));
    *this = std::move(other);
  }

 private:
  static constexpr std::uint64_t tag = 0x3130797261627973;  // "sybary01"

  matrix matrix_of(std::vector<float> values) const {
    if (values.empty()) return {};
    matrix result(sizes_.intermediate, sizes_.columns());
    if (values.size() != result.values().size()) {
      fail("compression, saved state", "a centre of " + std::to_string(sizes_.size()) + " numbers",
           std::to_string(values.size()));
    }
    result.values() = std::move(values);
    return result;
  }

  std::span<std::int32_t> permutation_of(int expert) {
    auto const units = static_cast<std::size_t>(sizes_.intermediate);
    return std::span(permutation_).subspan(static_cast<std::size_t>(expert) * units, units);
  }

  void begin_run(expert_reader const& read) {
    current_ = {.start = options_.starts[best_.runs.size()]};
    centre_ = matrix(sizes_.intermediate, sizes_.columns());
    detail::read_expert(read, current_.start, centre_, context_);
    begun_ = true;
    settled_ = false;
    iteration_ = 1;
    next_expert_ = 0;
    objective_ = 0.0;
  }

  void end_run() {
    if (best_.start < 0 || objective_ < best_.objective) {
      best_.centre = std::move(centre_);
      best_.permutation = permutation_;
      best_.start = current_.start;
      best_.objective = objective_;
    }
    centre_ = {};
    best_.runs.push_back(std::move(current_));
    current_ = {};
    begun_ = false;
  }

  /// Matchings so far, of all runs.
  double matchings() const {
    double sum = begun_ ? next_expert_ : 0.0;
    for (barycenter_run const& run : best_.runs) sum += sizes_.experts * (run.iterations() + 1);
    return sum + sizes_.experts * static_cast<double>(begun_ ? current_.iterations() : 0);
  }

  /// As many as there will be: runs that are to come are as long as those that were.
  double expected_matchings() const {
    double iterations = 0.0;
    for (barycenter_run const& run : best_.runs) iterations += run.iterations();
    auto const finished = static_cast<double>(best_.runs.size()), all = static_cast<double>(options_.starts.size());
    double const usual = finished > 0.0 ? iterations / finished : 3.0;
    double const now = std::max<double>(usual, current_.iterations() + (settled_ ? 0 : 1));
    double const left = all - finished - 1.0;
    return sizes_.experts * (iterations + finished + now + 1.0 + left * (usual + 1.0));
  }

  bool match_all(expert_reader const& read, watcher const& watch, detail::pace const& pace) {
    matrix expert(sizes_.intermediate, sizes_.columns()), costs(sizes_.intermediate, sizes_.intermediate);
    if (next_expert_ == 0) distances_.clear();
    for (; next_expert_ < sizes_.experts; ++next_expert_) {
      keep_going const step = [&](double part) {
        if (!watch) return true;
        double const done = matchings() + part, all = expected_matchings();
        return watch({phase::matching, current_.start, iteration_, next_expert_, std::min(done / all, 1.0),
                      pace.seconds_left(done, all)});
      };
      detail::read_expert(read, next_expert_, expert, context_);
      std::span<std::int32_t> const permutation = permutation_of(next_expert_);
      if (!detail::match(centre_, expert, costs, permutation, context_, step)) return false;
      distances_.push_back(detail::aligned_distance(centre_, expert, permutation.data(), context_));
      objective_ += distances_.back();
    }
    return true;
  }

  /// The centre becomes the mean of the aligned experts. Returns its squared movement.
  double average(expert_reader const& read) {
    std::int64_t const rows = sizes_.intermediate, columns = sizes_.columns();
    std::vector<double> sums(static_cast<std::size_t>(rows * columns), 0.0), moved(static_cast<std::size_t>(rows));
    {
      matrix expert(rows, columns);
      for (int e = 0; e < sizes_.experts; ++e) {
        read(e, expert);
        std::int32_t const* const permutation = permutation_of(e).data();
        cpu::parallel_for(context_, rows, [&](std::int64_t r) {
          float const* const from = std::as_const(expert).row(permutation[r]);
          double* const to = sums.data() + r * columns;
          for (std::int64_t i = 0; i < columns; ++i) to[i] += from[i];
        });
      }
    }
    cpu::parallel_for(context_, rows, [&](std::int64_t r) {
      float* const row = centre_.row(r);
      double sum = 0.0;
      for (std::int64_t i = 0; i < columns; ++i) {
        auto const mean = static_cast<float>(sums[r * columns + i] / sizes_.experts);
        double const apart = static_cast<double>(mean) - row[i];
        sum += apart * apart;
        row[i] = mean;
      }
      moved[r] = sum;
    });
    double sum = 0.0;
    for (double of_row : moved) sum += of_row;
    return sum;
  }

  expert_sizes sizes_;
  barycenter_options options_;
  cpu_context context_;

  bool begun_ = false;    ///< a run
  bool settled_ = false;  ///< its centre is the last one, and experts are matched with it once more
  int iteration_ = 1, next_expert_ = 0;
  double objective_ = 0.0;         ///< of the experts that were matched with this centre
  std::vector<double> distances_;  ///< of each
  matrix centre_;
  std::vector<std::int32_t> permutation_;
  barycenter_run current_;
  barycenter best_;
};

}  // namespace switchyard::compression
