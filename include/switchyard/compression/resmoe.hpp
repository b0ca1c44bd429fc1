#pragma once

#include <switchyard/compression/barycenter.hpp>
#include <switchyard/compression/low_rank.hpp>
#include <switchyard/compression/pruning.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/element.hpp>
#include <switchyard/core/masked_change.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace switchyard::compression {

/// What is kept of an expert's difference to the centre.
enum class residual_form {
  pruned,   ///< the entries of largest magnitude, of all projections together
  low_rank  ///< two factors, for all projections together
};

/// What centre and residuals are rounded to when everything is computed.
enum class stored_as { float32, bfloat16, float16 };

constexpr int bytes_of(stored_as element) { return element == stored_as::float32 ? 4 : 2; }

struct resmoe_options {
  residual_form form = residual_form::pruned;
  double keep = 0.25;  ///< share of the numbers of an expert that its residual has
  int rank = -1;       ///< of a residual of low rank; -1: `retained_rank(keep, …)`
  stored_as element = stored_as::float32;
  truncated_svd svd = {};  ///< wanted where the form is `low_rank`
  barycenter_options centre = {};
  bool compare = true;  ///< with other centres, for the report, which costs about as much again
};

/// An expert's residual, in the order of the centre's rows, valid while it is being written.
struct expert_residual {
  int expert = 0;
  view<float const> change = {};            ///< [intermediate, columns], of a pruned one; 0 where it is not kept
  std::uint8_t const* kept = nullptr;       ///< [intermediate, columns], 1 where it is
  view<float const> left = {}, right = {};  ///< [intermediate, rank] and [rank, columns], of one of low rank
};
using residual_writer = std::function<void(expert_residual const&)>;

/// Squared errors: sums over an expert's numbers, averaged over the experts.
struct centre_error {
  double centre = 0.0;    ///< of the centre alone
  double residual = 0.0;  ///< with residuals of the same form and size
};

/// What became of the experts of a layer.
struct resmoe_report {
  expert_sizes sizes = {};
  residual_form form = residual_form::pruned;
  stored_as element = stored_as::float32;
  std::int64_t kept = 0;          ///< entries of a pruned expert
  int rank = 0;                   ///< of one of low rank
  int start = 0, iterations = 0;  ///< of the run whose centre it is
  centre_error barycenter = {};
  bool compared = false;      ///< whether what follows is known
  centre_error average = {};  ///< the mean of the experts as they are, without alignment
  centre_error single = {};   ///< the best of the experts as the centre of the others, aligned
  int single_expert = 0;

  /// A sum of squared errors as a mean over the numbers of an expert.
  double per_element(double error) const { return error / static_cast<double>(sizes.size()); }

  /// Bytes of all experts as they were, in numbers of `element`.
  std::int64_t plain_bytes() const { return sizes.experts * centre_bytes(); }
  std::int64_t centre_bytes() const { return sizes.size() * bytes_of(element); }
  /// Bytes of all residuals, in numbers of `element`: factors, or what is kept and all that tells where it is, as `masked_change` has it.
  /// What is kept of biases counts with the rest, without what tells where it is: whoever stores biases as they are, as compress_experts
  /// does, has other numbers for experts with biases.
  std::int64_t residual_bytes() const {
    std::int64_t const experts = sizes.experts, hidden = sizes.hidden, units = sizes.intermediate;
    if (form == residual_form::low_rank) return experts * rank * (units + sizes.columns()) * bytes_of(element);
    using arrays = masked_change<float>;
    auto const places = [experts](std::int64_t rows, std::int64_t columns) {
      return 4 * experts * rows * (divide_up(columns, 32) + divide_up(columns, arrays::block_columns));
    };
    std::int64_t const projections = sizes.gated ? 3 : 2;
    return (experts * kept + projections * arrays::padding) * bytes_of(element) + projections * 8 * (experts + 1) +
           (projections - 1) * places(units, hidden) + places(hidden, units);
  }
};

namespace detail {

inline float rounded(float value, stored_as element) {
  switch (element) {
    case stored_as::float32: return value;
    case stored_as::bfloat16: return static_cast<float>(bfloat16(value));
    case stored_as::float16: return static_cast<float>(half(value));
  }
  return value;
}

inline void round_all(view<float> values, stored_as element) {
  if (element == stored_as::float32) return;
  for (std::int64_t r = 0; r < values.rows; ++r) {
    for (std::int64_t i = 0; i < values.columns; ++i) values.row(r)[i] = rounded(values.row(r)[i], element);
  }
}

}  // namespace detail

/// Compresses the routed experts of one layer: a barycenter as their common centre, and of every expert's difference to it the largest
/// entries, or factors of low rank. No data and no training; the router stays as it is, and permutations of units need not be kept.
///
/// An expert is restored as centre + residual, in weight space. The residual is taken from the centre as it is stored, rounded to
/// `element`, so that what is kept makes up for that rounding. Experts are read one at a time; beside the memory of `barycenter_search`
/// there are three matrices of their size, and what the decomposition takes.
///
/// Source: Ai et al. 2025, ResMoE: Space-efficient Compression of Mixture of Experts LLMs via Residual Restoration. The authors' code
/// prunes; their inference module for low rank, which adds outputs of two experts, is another function, and not this.
class resmoe {
 public:
  resmoe(expert_sizes const& sizes, resmoe_options options, cpu_context const& context = {})
      : sizes_(sizes),
        options_(std::move(options)),
        context_(cpu::resolved(context)),
        search_(sizes, options_.centre, context_) {
    detail::check_keep(options_.keep);
    int const smaller = std::min(sizes_.intermediate, sizes_.columns());
    if (options_.form == residual_form::pruned) {
      kept_ = sizes_.size() - pruned_count(options_.keep, sizes_.size());
      return;
    }
    rank_ = options_.rank >= 0 ? options_.rank : retained_rank(options_.keep, sizes_.intermediate, sizes_.columns());
    if (rank_ > smaller) {
      fail("compression::resmoe_options, rank", "at most " + std::to_string(smaller), std::to_string(rank_));
    }
    if (!options_.svd) {
      fail("compression::resmoe_options, svd",
           "a function for low rank, such as lapack_svd of compression/lapack_svd.hpp", "none");
    }
  }

  /// Does everything that is left: looks for the centre, compares, and hands every expert's residual to `write`, once. Returns false when
  /// `watch` has, and goes on there when it is called again.
  bool run(expert_reader const& read, residual_writer const& write, watcher const& watch = {}) {
    if (!search_.run(read, watch)) return false;
    if (options_.compare && !compare(read, watch)) return false;
    return compress(read, write, watch);
  }

  bool is_finished() const { return static_cast<int>(errors_.size()) == sizes_.experts; }
  /// The centre and its runs, once it is found.
  barycenter const& found() const { return search_.result(); }
  bool has_centre() const { return search_.is_finished(); }
  /// The centre as it is stored. It stays where it is until another is restored. The first call rounds it, so that no other thread may call
  /// at that time.
  matrix const& centre() const {
    if (options_.element == stored_as::float32) return found().centre;
    if (!is_rounded_) {
      rounded_ = found().centre;
      detail::round_all(rounded_, options_.element);
      is_rounded_ = has_centre();
    }
    return rounded_;
  }

  /// What came of it, once it is finished.
  resmoe_report report() const {
    resmoe_report result{
        .sizes = sizes_, .form = options_.form, .element = options_.element, .kept = kept_, .rank = rank_};
    result.start = found().start;
    for (barycenter_run const& run : found().runs) {
      if (run.start != result.start) continue;
      result.iterations = run.iterations();
      break;
    }
    for (centre_error const& e : errors_) add(result.barycenter, e);
    result.compared = options_.compare;
    if (!options_.compare) return result;
    for (centre_error const& e : average_errors_) add(result.average, e);
    for (centre_error const& e : single_errors_) add(result.single, e);
    result.single_expert = best_single();
    return result;
  }

  /// Everything that `run` needs to go on, but the experts, the options, and what was written. `watch` may call it, too.
  std::vector<std::byte> save() const {
    state_writer to;
    std::size_t const errors = average_errors_.size() + single_errors_.size() + errors_.size();
    search_.save(to, 8 * pairs_.size() + sizeof(centre_error) * errors + 128);
    to << tag << options_.form << options_.keep << options_.rank << options_.element << options_.compare << pairs_
       << average_errors_ << single_errors_ << errors_;
    return std::move(to).finish();
  }
  /// Takes over what a computation with the same experts and options has saved. Throws `error` for any other, and nothing is changed.
  void restore(std::span<std::byte const> bytes) {
    state_reader from(bytes);
    resmoe other(sizes_, options_, context_);
    other.search_.take(from);
    std::uint64_t found = 0;
    resmoe_options o;
    from >> found;
    if (found == tag) from >> o.form >> o.keep >> o.rank >> o.element >> o.compare;
    if (found != tag || o.form != options_.form || o.keep != options_.keep || o.rank != options_.rank ||
        o.element != options_.element || o.compare != options_.compare) {
      fail("compression, saved state", "that of a computation with the same experts and options", "another");
    }
    from >> other.pairs_ >> other.average_errors_ >> other.single_errors_ >> other.errors_;
    from.finish();
    if (!other.is_possible()) {
      fail("compression, saved state", "a computation that can go on", "numbers that do not belong together");
    }
    *this = std::move(other);
  }

 private:
  static constexpr std::uint64_t tag = 0x313065736d657230;

  /// Whether what was read belongs together: each part begins when the one before it is whole.
  bool is_possible() const {
    auto const experts = static_cast<std::size_t>(sizes_.experts);
    std::size_t const pairs = options_.compare ? unmatched().size() : 0, compared = options_.compare ? experts : 0;
    auto const part = [](std::size_t size, std::size_t whole, bool before) {
      return size <= whole && (before || size == 0);
    };
    bool const all_pairs = has_centre() && pairs_.size() == pairs,
               all_averages = all_pairs && average_errors_.size() == compared,
               all_singles = all_averages && single_errors_.size() == compared;
    return part(pairs_.size(), pairs, has_centre()) && part(average_errors_.size(), compared, all_pairs) &&
           part(single_errors_.size(), compared, all_averages) && part(errors_.size(), experts, all_singles);
  }

  void add(centre_error& to, centre_error const& of_expert) const {
    to.centre += of_expert.centre / sizes_.experts;
    to.residual += of_expert.residual / sizes_.experts;
  }

  /// rows = expert[permutation] - centre, which is made ready to be stored, and handed to `write` unless that is empty. `permutation` may
  /// be null. Returns the errors.
  centre_error compress_one(view<float const> centre, view<float const> expert, std::int32_t const* permutation,
                            int number, residual_writer const& write) const {
    std::int64_t const rows = sizes_.intermediate, columns = sizes_.columns();
    centre_error result{.centre = detail::aligned_distance(centre, expert, permutation, context_)};
    matrix change(rows, columns);
    cpu::parallel_for(context_, rows, [&](std::int64_t r) {
      float const *const from = expert.row(permutation == nullptr ? r : permutation[r]), *const x = centre.row(r);
      float* const to = change.row(r);
      for (std::int64_t i = 0; i < columns; ++i) to[i] = from[i] - x[i];
    });
    if (options_.form == residual_form::pruned) {
      std::vector<std::uint8_t> kept(static_cast<std::size_t>(sizes_.size()));
      prune(change, sizes_.size() - kept_, kept.data());
      detail::round_all(change, options_.element);
      result.residual = restored_distance(centre, expert, permutation, change);
      if (write) write({.expert = number, .change = change, .kept = kept.data()});
      return result;
    }
    matrix left(rows, rank_), right(rank_, columns);
    options_.svd(change, left, right);
    detail::round_all(left, options_.element);
    detail::round_all(right, options_.element);
    add_low_rank({nullptr, rows, columns}, left, right, change, context_);
    result.residual = restored_distance(centre, expert, permutation, change);
    if (write) write({.expert = number, .left = left, .right = right});
    return result;
  }

  /// || expert[permutation] - (centre + change) ||^2
  double restored_distance(view<float const> centre, view<float const> expert, std::int32_t const* permutation,
                           view<float const> change) const {
    std::vector<double> of_row(static_cast<std::size_t>(centre.rows));
    cpu::parallel_for(context_, centre.rows, [&](std::int64_t r) {
      float const* const from = expert.row(permutation == nullptr ? r : permutation[r]);
      double sum = 0.0;
      for (std::int64_t i = 0; i < centre.columns; ++i) {
        double const apart = static_cast<double>(from[i]) - (centre.row(r)[i] + change.row(r)[i]);
        sum += apart * apart;
      }
      of_row[r] = sum;
    });
    double sum = 0.0;
    for (double of_one : of_row) sum += of_one;
    return sum;
  }

  bool compress(expert_reader const& read, residual_writer const& write, watcher const& watch) {
    if (is_finished()) return true;
    matrix const& x = centre();
    matrix expert(sizes_.intermediate, sizes_.columns());
    detail::pace const pace(static_cast<double>(errors_.size()));
    while (!is_finished()) {
      int const e = static_cast<int>(errors_.size());
      if (watch && !watch({.phase = phase::compressing,
                           .expert = e,
                           .done = static_cast<double>(e) / sizes_.experts,
                           .seconds_left = pace.seconds_left(e, sizes_.experts)})) {
        return false;
      }
      detail::read_expert(read, e, expert, context_);
      std::int32_t const* const permutation = found().permutation.data() + std::int64_t{e} * sizes_.intermediate;
      errors_.push_back(compress_one(x, expert, permutation, e, write));
    }
    return true;
  }

  /// The objective with an expert as the centre, as far as the runs know it.
  std::vector<double> const* run_of(int expert) const {
    for (barycenter_run const& run : found().runs) {
      if (run.start == expert) return &run.of_start;
    }
    return nullptr;
  }
  /// The pairs of experts that no run has matched.
  std::vector<std::pair<int, int>> unmatched() const {
    std::vector<std::pair<int, int>> result;
    for (int a = 0; a < sizes_.experts; ++a) {
      for (int b = a + 1; b < sizes_.experts; ++b) {
        if (run_of(a) == nullptr && run_of(b) == nullptr) result.emplace_back(a, b);
      }
    }
    return result;
  }
  /// The expert with the least sum of distances to all others.
  int best_single() const {
    std::vector<double> sums(static_cast<std::size_t>(sizes_.experts), 0.0);
    auto const add_pair = [&](int a, int b, double distance) {
      sums[static_cast<std::size_t>(a)] += distance;
      sums[static_cast<std::size_t>(b)] += distance;
    };
    auto const pairs = unmatched();
    for (std::size_t i = 0; i < pairs.size(); ++i) add_pair(pairs[i].first, pairs[i].second, pairs_[i]);
    for (int a = 0; a < sizes_.experts; ++a) {
      for (int b = a + 1; b < sizes_.experts; ++b) {
        if (auto const* of_a = run_of(a)) {
          add_pair(a, b, (*of_a)[static_cast<std::size_t>(b)]);
        } else if (auto const* of_b = run_of(b)) {
          add_pair(a, b, (*of_b)[static_cast<std::size_t>(a)]);
        }
      }
    }
    return static_cast<int>(std::min_element(sums.begin(), sums.end()) - sums.begin());
  }

  bool compare(expert_reader const& read, watcher const& watch) {
    auto const pairs = unmatched();
    std::size_t const experts = static_cast<std::size_t>(sizes_.experts), all = pairs.size() + 2 * experts;
    auto const done = [&] { return pairs_.size() + average_errors_.size() + single_errors_.size(); };
    if (done() == all) return true;
    detail::pace const pace(static_cast<double>(done()));
    auto const report = [&](int expert, double part) {
      double const so_far = static_cast<double>(done()) + part;
      return !watch || watch({.phase = phase::comparing,
                              .expert = expert,
                              .done = so_far / static_cast<double>(all),
                              .seconds_left = pace.seconds_left(so_far, static_cast<double>(all))});
    };
    std::int64_t const rows = sizes_.intermediate, columns = sizes_.columns();
    matrix expert(rows, columns), centre(rows, columns);
    std::vector<std::int32_t> permutation(static_cast<std::size_t>(rows));

    while (pairs_.size() < pairs.size()) {
      int const a = pairs[pairs_.size()].first, b = pairs[pairs_.size()].second;
      matrix costs(rows, rows);
      detail::read_expert(read, a, centre, context_);
      detail::read_expert(read, b, expert, context_);
      auto const step = [&](double part) { return report(b, part); };
      if (!detail::match(centre, expert, costs, permutation, context_, step)) return false;
      pairs_.push_back(detail::aligned_distance(centre, expert, permutation.data(), context_));
    }

    if (average_errors_.size() < experts) {
      std::vector<double> sums(static_cast<std::size_t>(rows * columns), 0.0);
      for (int e = 0; e < sizes_.experts; ++e) {
        if (!report(e, 0.0)) return false;
        detail::read_expert(read, e, expert, context_);
        for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += expert.values()[i];
      }
      for (std::size_t i = 0; i < sums.size(); ++i) centre.values()[i] = static_cast<float>(sums[i] / sizes_.experts);
      detail::round_all(centre, options_.element);
    }
    while (average_errors_.size() < experts) {
      int const e = static_cast<int>(average_errors_.size());
      if (!report(e, 0.0)) return false;
      detail::read_expert(read, e, expert, context_);
      average_errors_.push_back(compress_one(centre, expert, nullptr, e, {}));
    }

    if (single_errors_.size() < experts) {
      detail::read_expert(read, best_single(), centre, context_);
      detail::round_all(centre, options_.element);
    }
    while (single_errors_.size() < experts) {
      int const e = static_cast<int>(single_errors_.size());
      {
        matrix costs(rows, rows);
        detail::read_expert(read, e, expert, context_);
        auto const step = [&](double part) { return report(e, 0.5 * part); };
        if (!detail::match(centre, expert, costs, permutation, context_, step)) return false;
      }
      single_errors_.push_back(compress_one(centre, expert, permutation.data(), e, {}));
    }
    return true;
  }

  expert_sizes sizes_;
  resmoe_options options_;
  cpu_context context_;
  barycenter_search search_;
  std::int64_t kept_ = 0;
  int rank_ = 0;
  mutable matrix rounded_;  ///< the centre, where numbers are rounded
  mutable bool is_rounded_ = false;
  std::vector<double> pairs_;                                          ///< distances of the first `unmatched` pairs
  std::vector<centre_error> average_errors_, single_errors_, errors_;  ///< of the first experts
};

}  // namespace switchyard::compression
