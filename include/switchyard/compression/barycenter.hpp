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
      if (settled_) {
        current_.objectives.push_back(objective_);
      } else {
        double movement = 0.0;
        if (!average(read, watch, pace, movement)) return false;
        if (iteration_ == 1) current_.of_start = distances_;
        current_.objectives.push_back(objective_);
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
    save(to);
    return std::move(to).finish();
  }
  /// The same among other things, of so many bytes.
  void save(state_writer& to, std::size_t others = 0) const {
    std::size_t const centres = centre_.values().size() + best_.centre.values().size();
    std::size_t run_bytes = 0;
    for (barycenter_run const& run : best_.runs) {
      run_bytes += 8 * (run.movements.size() + run.objectives.size() + run.of_start.size()) + 28;
    }
    to.reserve(4 * (centres + permutation_.size() + best_.permutation.size()) + run_bytes +
               8 * (current_.movements.size() + current_.objectives.size() + 2 * distances_.size()) +
               4 * options_.starts.size() + others + 256);
    to << tag << sizes_.experts << sizes_.hidden << sizes_.intermediate << sizes_.gated << sizes_.biased
       << options_.starts << options_.tolerance << options_.most_iterations << begun_ << settled_ << iteration_
       << next_expert_ << objective_ << distances_ << centre_.values() << permutation_ << current_.start
       << current_.movements << current_.objectives << current_.of_start << best_.centre.values() << best_.permutation
       << best_.start << best_.objective << static_cast<std::uint64_t>(best_.runs.size());
    for (barycenter_run const& run : best_.runs) to << run.start << run.movements << run.objectives << run.of_start;
  }

  /// Takes over what a search of the same experts with the same options has saved. Throws `error` for any other, and nothing is changed.
  void restore(std::span<std::byte const> bytes) {
    state_reader from(bytes);
    barycenter_search other(sizes_, options_, context_);
    other.take(from);
    from.finish();
    *this = std::move(other);
  }
  /// The same among other things. A search that this has thrown for is of no use.
  void take(state_reader& from) {
    std::uint64_t found = 0;
    expert_sizes sizes;
    barycenter_options options;
    from >> found;
    if (found == tag) {
      from >> sizes.experts >> sizes.hidden >> sizes.intermediate >> sizes.gated >> sizes.biased >> options.starts >>
          options.tolerance >> options.most_iterations;
    }
    if (found != tag || !(sizes == sizes_) || !(options == options_)) {
      fail("compression, saved state", "that of a search with the same experts and options", "another");
    }
    std::vector<float> centre, best_centre;
    std::uint64_t runs = 0;
    from >> begun_ >> settled_ >> iteration_ >> next_expert_ >> objective_ >> distances_ >> centre >> permutation_ >>
        current_.start >> current_.movements >> current_.objectives >> current_.of_start >> best_centre >>
        best_.permutation >> best_.start >> best_.objective >> runs;
    for (std::uint64_t i = 0; i < runs; ++i) {
      barycenter_run run;
      from >> run.start >> run.movements >> run.objectives >> run.of_start;
      best_.runs.push_back(std::move(run));
    }
    centre_ = matrix_of(std::move(centre));
    best_.centre = matrix_of(std::move(best_centre));
    if (!is_possible()) {
      fail("compression, saved state", "a search that can go on", "numbers that do not belong together");
    }
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

  /// Whether what was read belongs together, for a checksum is no proof: nothing that is read later lies outside.
  bool is_possible() const {
    auto const experts = static_cast<std::size_t>(sizes_.experts);
    std::size_t const all = experts * static_cast<std::size_t>(sizes_.intermediate);
    auto const are_rows = [&](std::vector<std::int32_t> const& rows, std::size_t count, std::int32_t least) {
      for (std::size_t i = 0; i < count; ++i) {
        if (rows[i] < least || rows[i] >= sizes_.intermediate) return false;
      }
      return true;
    };
    std::size_t const finished = best_.runs.size(), most = static_cast<std::size_t>(options_.most_iterations);
    if (finished > options_.starts.size() || permutation_.size() != all || !are_rows(permutation_, all, -1)) {
      return false;
    }
    bool from_a_run = false;
    for (std::size_t i = 0; i < finished; ++i) {
      barycenter_run const& run = best_.runs[i];
      if (run.start != options_.starts[i] || run.movements.empty() || run.movements.size() > most ||
          run.of_start.size() != experts || run.objectives.size() != run.movements.size() + 1) {
        return false;
      }
      from_a_run = from_a_run || run.start == best_.start;
    }
    if (finished == 0 ? best_.start != -1
                      : !from_a_run || best_.centre.rows() == 0 || best_.permutation.size() != all ||
                            !are_rows(best_.permutation, all, 0)) {
      return false;
    }
    if (!begun_) return true;
    if (finished == options_.starts.size() || current_.start != options_.starts[finished] || centre_.rows() == 0 ||
        iteration_ < 1 || next_expert_ < 0 || next_expert_ > sizes_.experts) {
      return false;
    }
    auto const iterations = static_cast<std::size_t>(iteration_ - 1), matched = static_cast<std::size_t>(next_expert_);
    return iterations <= most && (settled_ ? iterations > 0 : iterations < most) &&
           current_.movements.size() == iterations && current_.objectives.size() == iterations &&
           current_.of_start.size() == (iterations > 0 ? experts : 0) &&
           (matched == 0 || distances_.size() == matched) &&
           are_rows(permutation_, matched * static_cast<std::size_t>(sizes_.intermediate), 0);
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

  /// The centre becomes the mean of the aligned experts, and `movement` what it moved, squared. Returns false when `watch` has, before
  /// anything has changed.
  bool average(expert_reader const& read, watcher const& watch, detail::pace const& pace, double& movement) {
    std::int64_t const rows = sizes_.intermediate, columns = sizes_.columns();
    std::vector<double> sums(static_cast<std::size_t>(rows * columns), 0.0), moved(static_cast<std::size_t>(rows));
    {
      matrix expert(rows, columns);
      for (int e = 0; e < sizes_.experts; ++e) {
        double const done = matchings(), all_of_them = expected_matchings();
        if (watch && !watch({phase::matching, current_.start, iteration_, e, std::min(done / all_of_them, 1.0),
                             pace.seconds_left(done, all_of_them)})) {
          return false;
        }
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
    movement = 0.0;
    for (double of_row : moved) movement += of_row;
    return true;
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
