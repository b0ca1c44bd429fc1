#include <switchyard/compression/resmoe.hpp>
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "catch.hpp"
#include "support/random_numbers.hpp"
#include "support/said.hpp"

#if defined(SWITCHYARD_TESTS_WITH_LAPACK)
#include <switchyard/compression/lapack_svd.hpp>
#endif

namespace sy = switchyard;
using namespace switchyard::compression;

using support::said;

namespace {

/// Design matrices in memory.
struct some_experts {
  expert_sizes sizes;
  std::vector<std::vector<float>> rows;  // of each expert, [intermediate, columns]

  expert_reader reader() const {
    return [this](int expert, sy::view<float> to) {
      std::copy(rows[static_cast<std::size_t>(expert)].begin(), rows[static_cast<std::size_t>(expert)].end(), to.data);
    };
  }
};

/// Experts whose units lie near each other's in another order: a few directions, so that more than one matching is needed.
some_experts random_experts(expert_sizes const& sizes, unsigned seed, double noise = 0.7) {
  support::random_numbers random(seed);
  constexpr int directions = 2;
  int const units = sizes.intermediate, columns = sizes.columns();
  std::vector<double> direction(static_cast<std::size_t>(directions * columns)), place(directions * units);
  for (double& d : direction) d = random.normal();
  for (double& p : place) p = random.normal();
  some_experts result{sizes, {}};
  for (int e = 0; e < sizes.experts; ++e) {
    auto& rows = result.rows.emplace_back();
    for (int u = 0; u < units; ++u) {
      int const from = (u * 5 + e) % units;
      double at[directions];
      for (int d = 0; d < directions; ++d) at[d] = place[from * directions + d] + noise * random.normal();
      for (int c = 0; c < columns; ++c) {
        double sum = 0.05 * random.normal();
        for (int d = 0; d < directions; ++d) sum += at[d] * direction[d * columns + c];
        rows.push_back(static_cast<float>(sum));
      }
    }
  }
  return result;
}

double squared(std::vector<float> const& a, std::vector<float> const& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return sum;
}

/// What came of a compression.
struct outcome {
  std::vector<float> centre;
  std::vector<std::int32_t> permutation;
  std::vector<std::vector<float>> restored;     // of each expert, in the centre's order
  std::vector<std::vector<std::uint8_t>> kept;  // of pruned ones
  resmoe_report report;
};

/// Collects what a compression writes.
struct collector {
  outcome result;

  residual_writer writer(resmoe const& job) {
    return [this, &job](expert_residual const& r) {
      matrix const centre = job.centre();
      std::vector<float> rows = centre.values();
      if (r.kept != nullptr) {
        for (std::size_t i = 0; i < rows.size(); ++i) rows[i] += r.change.data[i];
        result.kept.emplace_back(r.kept, r.kept + rows.size());
      } else {
        add_low_rank(centre, r.left, r.right, {rows.data(), centre.rows(), centre.columns()});
      }
      REQUIRE(r.expert == static_cast<int>(result.restored.size()));
      result.restored.push_back(rows);
    };
  }
  outcome finish(resmoe const& job) {
    result.centre = job.centre().values();
    result.permutation = job.found().permutation;
    result.report = job.report();
    return result;
  }
};

outcome compressed(some_experts const& experts, resmoe_options const& options) {
  resmoe job(experts.sizes, options);
  collector to;
  CHECK(job.run(experts.reader(), to.writer(job)));
  CHECK(job.is_finished());
  return to.finish(job);
}

/// An expert in the order of the centre.
std::vector<float> aligned(some_experts const& experts, outcome const& of, int expert) {
  std::int64_t const units = experts.sizes.intermediate, columns = experts.sizes.columns();
  std::vector<float> rows;
  for (std::int64_t r = 0; r < units; ++r) {
    auto const from = experts.rows[static_cast<std::size_t>(expert)].begin() +
                      of.permutation[static_cast<std::size_t>(expert * units + r)] * columns;
    rows.insert(rows.end(), from, from + columns);
  }
  return rows;
}

double mean_error(some_experts const& experts, outcome const& of) {
  double sum = 0.0;
  for (int e = 0; e < experts.sizes.experts; ++e) sum += squared(aligned(experts, of, e), of.restored[e]);
  return sum / experts.sizes.experts;
}

/// Two experts of two units with two numbers each.
some_experts by_hand() {
  return {{.experts = 2, .hidden = 1, .intermediate = 2, .gated = false}, {{0, 0, 4, 4}, {5, 5, 1, 1}}};
}

}  // namespace

TEST_CASE("the barycenter of two experts of two units by hand", "[compression]") {
  some_experts const experts = by_hand();
  outcome const all = compressed(experts, {.keep = 1.0});
  CHECK(all.centre == std::vector<float>{0.5f, 0.5f, 4.5f, 4.5f});
  CHECK(all.permutation == std::vector<std::int32_t>{0, 1, 1, 0});
  CHECK(all.restored[0] == std::vector<float>{0, 0, 4, 4});
  CHECK(all.restored[1] == std::vector<float>{1, 1, 5, 5});
  CHECK(all.report.iterations == 2);
  CHECK(all.report.barycenter.centre == 1.0);
  CHECK(all.report.barycenter.residual == 0.0);
  CHECK(all.report.average.centre == 17.0);
  CHECK(all.report.single.centre == 2.0);  // each number of the other expert is 1 away
  CHECK(all.report.per_element(all.report.average.centre) == 4.25);

  barycenter_search search(experts.sizes, {});
  REQUIRE(search.run(experts.reader()));
  CHECK(search.result().runs[0].movements == std::vector<double>{1.0, 0.0});
  CHECK(search.result().runs[0].objectives == std::vector<double>{4.0, 2.0, 2.0});

  outcome const none = compressed(experts, {.keep = 0.0});
  CHECK(none.restored[0] == none.centre);
  CHECK(none.report.barycenter.residual == 1.0);
}

TEST_CASE("an expert whose units change places computes the same", "[compression]") {
  using layer = sy::layer<sy::shape{2, 3, 1, 1}, sy::router::switch_top1, sy::capacity::dropless,
                          sy::expert::gated_mlp<sy::silu>>;
  float const gate[] = {1, 0, 0, 1, 1, -1}, up[] = {1, 1, 2, 0, 0, 1}, down[] = {1, 2, 3, 0, 1, -1};
  expert_sizes const sizes{.experts = 1, .hidden = 2, .intermediate = 3};
  matrix rows(3, 6), other(3, 6);
  gather_units<float>(sizes, {gate, up, down}, rows);
  CHECK(rows.values() == std::vector<float>{1, 0, 1, 1, 1, 0, 0, 1, 2, 0, 2, 1, 1, -1, 0, 1, 3, -1});
  int const order[] = {2, 0, 1};
  for (int r = 0; r < 3; ++r) std::copy_n(rows.row(order[r]), 6, other.row(r));
  for (matrix const* units : {&rows, &other}) {
    float g[6], u[6], d[6], y[2], x[] = {1, 2};
    float const router[] = {0, 0};
    scatter_units<float>(sizes, *units, {g, u, d});
    std::vector<std::byte> scratch(layer::workspace_bytes(1));
    layer::forward({.tokens = layer::rows(static_cast<float const*>(x), 1),
                    .weights = {.router = {.weight = router},
                                .gate_proj = layer::in_proj(static_cast<float const*>(g)),
                                .up_proj = layer::in_proj(static_cast<float const*>(u)),
                                .down_proj = layer::out_proj(static_cast<float const*>(d))},
                    .output = layer::rows(y, 1),
                    .workspace = scratch});
    CHECK(y[0] == Catch::Approx(7.625904).epsilon(1e-6));
    CHECK(y[1] == Catch::Approx(4.061071).epsilon(1e-6));
  }
}

TEST_CASE("units are gathered and scattered with and without gates and biases", "[compression]") {
  support::random_numbers random(4);
  auto const numbers = [&](int count) {
    std::vector<float> values;
    for (int i = 0; i < count; ++i) values.push_back(static_cast<float>(random.normal()));
    return values;
  };
  for (bool gated : {false, true}) {
    for (bool biased : {false, true}) {
      expert_sizes const sizes{.experts = 1, .hidden = 37, .intermediate = 41, .gated = gated, .biased = biased};
      auto const gate = numbers(37 * 41), up = numbers(37 * 41), down = numbers(37 * 41), gate_bias = numbers(41),
                 up_bias = numbers(41);
      matrix rows(41, sizes.columns());
      CHECK(sizes.columns() == 37 * (gated ? 3 : 2) + (biased ? (gated ? 2 : 1) : 0));
      gather_units<float>(sizes, {gate.data(), up.data(), down.data(), gate_bias.data(), up_bias.data()}, rows);
      std::vector<float> g(gate.size()), u(up.size()), d(down.size()), gb(41), ub(41);
      scatter_units<float>(sizes, rows,
                           {gated ? g.data() : nullptr, u.data(), d.data(), gated && biased ? gb.data() : nullptr,
                            biased ? ub.data() : nullptr});
      CHECK(u == up);
      CHECK(d == down);
      if (gated) CHECK(g == gate);
      if (gated && biased) CHECK(gb == gate_bias);
      if (biased) CHECK(ub == up_bias);
      CHECK(rows.row(3)[sizes.down_column() + 5] == down[5 * 41 + 3]);
    }
  }
}

TEST_CASE("pruned counts and ranks are the published ones", "[compression]") {
  CHECK(pruned_count(0.25, 4) == 3);
  CHECK(pruned_count(0.25, 6) == 4);  // 4.5 goes to the even number
  CHECK(pruned_count(0.25, 10) == 8);
  CHECK(pruned_count(0.25, 2) == 2);  // 1.5 as well
  // As Python's round(0.1 * 15) and round(0.3 * 15), though 1 - 0.9 is a little less than 0.1 and 1 - 0.7 a little more than 0.3.
  CHECK(pruned_count(0.9, 15) == 2);
  CHECK(pruned_count(0.7, 15) == 4);
  CHECK(pruned_count(1.0, 7) == 0);
  CHECK(pruned_count(0.0, 7) == 7);
  CHECK(pruned_count(0.25, std::int64_t{14336} * 12288) == 132120576);
  CHECK(retained_rank(0.25, 14336, 12288) == 1654);
  CHECK(retained_rank(0.25, 3072, 1536) == 256);
  CHECK(said([] { pruned_count(1.5, 4); }) ==
        "switchyard: compression, keep: expected a share from 0 to 1, got 1.500000");
}

TEST_CASE("pruning zeroes exactly so many of the least entries, of equal ones the first", "[compression]") {
  float by_hand[] = {0.1f, -0.4f, 0.3f, -0.2f};
  prune({by_hand, 1, 4}, pruned_count(0.25, 4));
  CHECK(std::vector<float>(by_hand, by_hand + 4) == std::vector<float>{0.0f, -0.4f, 0.0f, 0.0f});
  support::random_numbers random(5);
  for (int trial = 0; trial < 30; ++trial) {
    int const rows = 7, columns = 19, count = rows * columns;
    std::vector<float> values;
    for (int i = 0; i < count; ++i) {
      values.push_back(trial % 2 == 0 ? static_cast<float>(random.below(7) - 3) : static_cast<float>(random.normal()));
    }
    int const zeroed = trial == 0 ? 0 : trial == 1 ? count : random.below(count + 1);
    std::vector<int> order;
    for (int i = 0; i < count; ++i) order.push_back(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return std::abs(values[a]) < std::abs(values[b]); });
    std::vector<float> expected = values;
    std::vector<std::uint8_t> expected_kept(values.size(), 1), kept(values.size());
    for (int i = 0; i < zeroed; ++i) expected[order[i]] = 0.0f, expected_kept[order[i]] = 0;
    prune({values.data(), rows, columns}, zeroed, kept.data());
    CHECK(values == expected);
    CHECK(kept == expected_kept);
  }
}

TEST_CASE("all that is kept restores each expert, and what is pruned is the error", "[compression]") {
  for (bool gated : {false, true}) {
    some_experts const experts = random_experts({.experts = 5, .hidden = 6, .intermediate = 23, .gated = gated}, 6);
    outcome const whole = compressed(experts, {.keep = 1.0});
    for (int e = 0; e < 5; ++e) {
      double size = squared(experts.rows[e], std::vector<float>(experts.rows[e].size()));
      CHECK(squared(aligned(experts, whole, e), whole.restored[e]) <= 1e-13 * size);
    }
    outcome const pruned = compressed(experts, {.keep = 0.3});
    CHECK(pruned.report.barycenter.residual == Catch::Approx(mean_error(experts, pruned)).epsilon(1e-12));
    double dropped = 0.0;
    std::int64_t const kept = experts.sizes.size() - pruned_count(0.3, experts.sizes.size());
    for (int e = 0; e < 5; ++e) {
      std::vector<float> const original = aligned(experts, pruned, e);
      for (std::size_t i = 0; i < original.size(); ++i) {
        if (pruned.kept[e][i] == 0) dropped += std::pow(static_cast<double>(original[i]) - pruned.centre[i], 2);
      }
      CHECK(std::count(pruned.kept[e].begin(), pruned.kept[e].end(), 1) == kept);
    }
    CHECK(pruned.report.barycenter.residual == Catch::Approx(dropped / 5).epsilon(1e-5));
    CHECK(pruned.report.plain_bytes() == 4 * 5 * 23 * 6 * (gated ? 3 : 2));
    CHECK(pruned.report.centre_bytes() == 4 * 23 * 6 * (gated ? 3 : 2));
    // A word and a start for each row, 5 experts and one more as numbers of 8 bytes, and 32 floats of padding.
    int const in = gated ? 2 : 1;
    CHECK(pruned.report.residual_bytes() == 4 * 5 * kept + (in + 1) * (4 * 32 + 8 * 6) + 5 * 4 * 2 * (in * 23 + 6));
  }
}

TEST_CASE("the objective never rises, and no expert is a better centre", "[compression]") {
  int iterations = 0;
  for (unsigned seed = 10; seed < 16; ++seed) {
    some_experts const experts = random_experts({.experts = 4, .hidden = 5, .intermediate = 40}, seed);
    barycenter_search search(experts.sizes, {.starts = every_start(4)});
    REQUIRE(search.run(experts.reader()));
    double least = 1e300;
    for (barycenter_run const& run : search.result().runs) {
      iterations = std::max(iterations, run.iterations());
      CHECK(run.movements.back() <= 1e-7);
      CHECK(run.objectives.size() == run.movements.size() + 1);
      for (std::size_t i = 1; i < run.objectives.size(); ++i) {
        CHECK(run.objectives[i] <= run.objectives[i - 1] * (1 + 1e-6));
      }
      least = std::min(least, run.objectives.back());
    }
    CHECK(search.result().objective == least);
    outcome const all = compressed(experts, {.keep = 0.25, .centre = {.starts = every_start(4)}});
    outcome const one = compressed(experts, {.keep = 0.25, .centre = {.starts = {2}}});
    CHECK(all.report.barycenter.centre == Catch::Approx(least / 4));
    CHECK(all.report.barycenter.centre <= one.report.barycenter.centre * (1 + 1e-12));
    CHECK(all.report.barycenter.centre <= all.report.single.centre);
    CHECK(all.report.barycenter.centre < all.report.average.centre);
    // Whether runs or pairs say how far experts are from each other.
    CHECK(all.report.single_expert == one.report.single_expert);
    CHECK(all.report.single.centre == Catch::Approx(one.report.single.centre).epsilon(1e-9));
    CHECK(all.report.average.residual == one.report.average.residual);
  }
  CHECK(iterations > 2);
}

TEST_CASE("experts that differ by the order of their units have no residual, and one expert is its own centre",
          "[compression]") {
  some_experts experts = random_experts({.experts = 3, .hidden = 8, .intermediate = 30, .biased = true}, 7);
  for (int e = 1; e < 3; ++e) {
    for (int u = 0; u < 30; ++u) {
      auto const from = experts.rows[0].begin() + (u * 7 + e) % 30 * 26;
      std::copy(from, from + 26, experts.rows[e].begin() + u * 26);
    }
  }
  outcome const same = compressed(experts, {.keep = 0.0});
  CHECK(same.report.barycenter.centre == 0.0);
  CHECK(same.centre == experts.rows[0]);
  CHECK(same.report.average.centre > 1.0);

  some_experts one = random_experts({.experts = 1, .hidden = 3, .intermediate = 9}, 8);
  outcome const alone = compressed(one, {.keep = 0.0});
  CHECK(alone.centre == one.rows[0]);
  CHECK(alone.report.barycenter.centre == 0.0);
  CHECK(alone.report.iterations == 1);
}

TEST_CASE("numbers are rounded as they are stored, and residuals make up for it", "[compression]") {
  some_experts const experts = random_experts({.experts = 3, .hidden = 4, .intermediate = 16}, 9);
  for (stored_as element : {stored_as::bfloat16, stored_as::float16}) {
    outcome const whole = compressed(experts, {.keep = 1.0, .element = element});
    for (float x : whole.centre) CHECK(x == sy::compression::detail::rounded(x, element));
    double size = 0.0;
    for (int e = 0; e < 3; ++e) size += squared(experts.rows[e], std::vector<float>(experts.rows[e].size())) / 3;
    double const step = element == stored_as::bfloat16 ? 0x1p-9 : 0x1p-12;
    CHECK(whole.report.barycenter.residual < step * step * size);
    CHECK(whole.report.barycenter.residual > 0.0);
    CHECK(whole.report.barycenter.residual == Catch::Approx(mean_error(experts, whole)).epsilon(1e-12));
  }
}

namespace {

/// Stops a computation at every call of its watcher in turn, saves it, and goes on with another object: everything has the same bits.
void check_resuming(some_experts const& experts, resmoe_options const& options) {
  outcome const expected = compressed(experts, options);
  int calls = 0;
  {
    resmoe job(experts.sizes, options);
    collector to;
    double last = -1.0;
    phase before = phase::matching;
    REQUIRE(job.run(experts.reader(), to.writer(job), [&](progress const& p) {
      if (p.phase != before) last = -1.0;
      CHECK(p.done >= 0.0);
      CHECK(p.done <= 1.0);
      CHECK(p.expert < experts.sizes.experts);
      if (p.phase != phase::matching) CHECK(p.done >= last);
      last = p.done;
      before = p.phase;
      ++calls;
      return true;
    }));
  }
  REQUIRE(calls > 20);
  auto const same = [&](outcome const& got) {
    CHECK(got.centre == expected.centre);
    CHECK(got.permutation == expected.permutation);
    CHECK(got.restored == expected.restored);
    CHECK(got.report.barycenter.centre == expected.report.barycenter.centre);
    CHECK(got.report.barycenter.residual == expected.report.barycenter.residual);
    CHECK(got.report.average.residual == expected.report.average.residual);
    CHECK(got.report.single.residual == expected.report.single.residual);
    CHECK(got.report.iterations == expected.report.iterations);
  };
  int const step = std::max(1, calls / 60);
  for (int stop = 1; stop <= calls; stop += step) {
    CAPTURE(stop);
    collector to;
    resmoe first(experts.sizes, options);
    int left = stop;
    std::vector<std::byte> saved;
    CHECK_FALSE(first.run(experts.reader(), to.writer(first), [&](progress const&) {
      if (--left == 0) saved = first.save();
      return left > 0;
    }));
    CHECK_FALSE(first.is_finished());
    resmoe second(experts.sizes, options);
    second.restore(stop % 2 == 0 ? saved : first.save());
    CHECK(second.run(experts.reader(), to.writer(second)));
    same(to.finish(second));
  }
  // Over and over, a little at a time.
  collector to;
  std::vector<std::byte> state = resmoe(experts.sizes, options).save();
  for (bool finished = false; !finished;) {
    resmoe job(experts.sizes, options);
    job.restore(state);
    int left = 40;  // more than a matching takes
    finished = job.run(experts.reader(), to.writer(job), [&](progress const&) { return --left > 0; });
    state = job.save();
    if (finished) same(to.finish(job));
  }
}

}  // namespace

TEST_CASE("a compression that was stopped goes on to the same bits", "[compression]") {
  check_resuming(random_experts({.experts = 3, .hidden = 4, .intermediate = 24}, 20), {.keep = 0.25});
  check_resuming(random_experts({.experts = 3, .hidden = 4, .intermediate = 24, .gated = false}, 21),
                 {.element = stored_as::bfloat16, .centre = {.starts = every_start(3)}});
}

TEST_CASE("a state that is damaged or another computation's is refused", "[compression]") {
  some_experts const experts = random_experts({.experts = 2, .hidden = 3, .intermediate = 8}, 22);
  resmoe const job(experts.sizes, {});
  std::vector<std::byte> const state = job.save();
  std::string const damaged =
      "switchyard: compression, saved state: expected the bytes that were saved, got fewer or others";
  std::string const another =
      "switchyard: compression, saved state: expected that of a computation with the same experts and options, got "
      "another";
  for (std::size_t size = 0; size < state.size(); ++size) {
    resmoe other(experts.sizes, {});
    CHECK(said([&] { other.restore({state.data(), size}); }) == damaged);
    std::vector<std::byte> flipped = state;
    flipped[size] ^= std::byte{0x10};
    CHECK(said([&] { other.restore(flipped); }) == damaged);
  }
  resmoe kept_less(experts.sizes, {.keep = 0.1});
  CHECK(said([&] { kept_less.restore(state); }) == another);
  expert_sizes sizes = experts.sizes;
  sizes.hidden = 4;
  resmoe wider(sizes, {});
  CHECK(said([&] { wider.restore(state); }).find("expected that of a search with the same experts") !=
        std::string::npos);
  CHECK(said([&] { barycenter_search(experts.sizes, {}).restore(state); }) != "");
}

/// Bytes are changed, and the checksum with them: each state is refused, or belongs together and is computed to the end. What matters
/// most is seen by sanitizers.
TEST_CASE("a state that is forged is refused as a whole or goes on", "[compression]") {
  some_experts const experts = random_experts({.experts = 3, .hidden = 1, .intermediate = 5}, 24);
  resmoe_options const options{.element = stored_as::bfloat16, .centre = {.starts = {2, 1}, .most_iterations = 5}};
  std::vector<std::vector<std::byte>> states;
  {
    resmoe job(experts.sizes, options, {.threads = 1});
    int calls = 0;
    REQUIRE(job.run(experts.reader(), {}, [&](progress const& p) {
      bool const first_of_phase = states.size() < 2 || (p.phase == phase::comparing && states.size() == 2) ||
                                  (p.phase == phase::compressing && p.expert == 1);
      if (++calls % 19 == 0 || p.phase != phase::matching) {
        if (first_of_phase) states.push_back(job.save());
      }
      return true;
    }));
    states.push_back(job.save());
  }
  REQUIRE(states.size() == 5);
  int refused = 0, taken = 0;
  for (std::vector<std::byte> const& state : states) {
    for (std::size_t at = 0; at + sizeof(std::uint64_t) < state.size(); at += 2) {
      std::vector<std::byte> forged = state;
      forged[at] ^= at % 3 == 0 ? std::byte{0xff} : std::byte{0x01};
      std::uint64_t const sum = checksum({forged.data(), forged.size() - sizeof(std::uint64_t)});
      std::copy_n(reinterpret_cast<std::byte const*>(&sum), sizeof sum, forged.end() - sizeof sum);
      resmoe job(experts.sizes, options, {.threads = 1});
      std::vector<std::byte> const before = job.save();
      if (!said([&] { job.restore(forged); }).empty()) {
        if (job.save() != before) FAIL("a state that is refused leaves the computation as it was");
        ++refused;
        continue;
      }
      ++taken;
      // A forged centre may have numbers that are not finite.
      if (said([&] { job.run(experts.reader(), {}); }).empty() && !job.is_finished()) FAIL("it is computed to the end");
    }
  }
  CHECK(refused > 300);
  CHECK(taken > 300);

  // The errors of the experts stand last: a number of them, and two numbers each.
  std::vector<std::byte> longer = states.back();
  longer.resize(longer.size() - sizeof(std::uint64_t));
  std::byte& count = longer[longer.size() - 3 * sizeof(centre_error) - sizeof(std::uint64_t)];
  REQUIRE(count == std::byte{3});
  count = std::byte{4};
  longer.resize(longer.size() + sizeof(centre_error));
  std::uint64_t const sum = checksum(longer);
  auto const* const bytes = reinterpret_cast<std::byte const*>(&sum);
  longer.insert(longer.end(), bytes, bytes + sizeof sum);
  resmoe job(experts.sizes, options, {.threads = 1});
  CHECK(said([&] { job.restore(longer); }) ==
        "switchyard: compression, saved state: expected a computation that can go on, got numbers that do not belong "
        "together");
}

TEST_CASE("a computation asks whether it is to stop in front of every expert that it reads", "[compression]") {
  some_experts const experts = random_experts({.experts = 7, .hidden = 2, .intermediate = 6}, 25);
  for (std::vector<int> const& starts : {std::vector<int>{0}, every_start(7)}) {
    resmoe job(experts.sizes, {.centre = {.starts = starts}});
    int since = 0, most = 0;
    expert_reader const read = experts.reader();
    REQUIRE(job.run(
        [&](int expert, sy::view<float> rows) {
          most = std::max(most, ++since);
          read(expert, rows);
        },
        {},
        [&](progress const&) {
          since = 0;
          return true;
        }));
    CHECK(most <= 3);  // two that are matched, after one that was averaged
  }
}

TEST_CASE("other centres are rounded as the barycenter is", "[compression]") {
  some_experts const alone = random_experts({.experts = 1, .hidden = 3, .intermediate = 9}, 26);
  resmoe_report const report = compressed(alone, {.keep = 0.0, .element = stored_as::bfloat16}).report;
  CHECK(report.barycenter.centre > 0.0);
  CHECK(report.single.centre == report.barycenter.centre);
  CHECK(report.average.centre == report.barycenter.centre);
}

TEST_CASE("wrong options and weights are refused with one sentence", "[compression]") {
  expert_sizes const sizes{.experts = 2, .hidden = 3, .intermediate = 4};
  CHECK(said([&] { resmoe(expert_sizes{}, {}); }) ==
        "switchyard: compression::expert_sizes: expected at least 1 expert, and widths of at least 1 (hidden at most "
        "2^29), got 0 experts of "
        "0 x 0");
  CHECK(said([&] {
          resmoe(sizes, {.centre = {.starts = {0, 2}}});
        }) == "switchyard: compression::barycenter_options, starts: expected experts from 0 to 1, got 2");
  CHECK(said([&] { resmoe(sizes, {.centre = {.starts = {}}}); }) ==
        "switchyard: compression::barycenter_options, starts: expected at least one expert, got none");
  CHECK(said([&] { resmoe(sizes, {.centre = {.tolerance = -1.0}}); }) ==
        "switchyard: compression::barycenter_options, tolerance: expected a finite number that is not negative, got "
        "-1.000000");
  CHECK(said([&] { resmoe(sizes, {.centre = {.most_iterations = 0}}); }) ==
        "switchyard: compression::barycenter_options, most_iterations: expected at least 1, got 0");
  CHECK(said([&] { resmoe(sizes, {.keep = -0.5}); }) ==
        "switchyard: compression, keep: expected a share from 0 to 1, got -0.500000");
  CHECK(said([&] { resmoe(sizes, {.form = residual_form::low_rank}); }) ==
        "switchyard: compression::resmoe_options, svd: expected a function for low rank, such as lapack_svd of "
        "compression/lapack_svd.hpp, got none");
  some_experts wrong = random_experts(sizes, 23);
  wrong.rows[1][5] = std::nanf("");
  resmoe job(sizes, {});
  CHECK(said([&] { job.run(wrong.reader(), {}); }) ==
        "switchyard: compression, weights of expert 1: expected finite numbers, got one that is not finite");
}

#if defined(SWITCHYARD_TESTS_WITH_LAPACK)

TEST_CASE("residuals of low rank are the best ones", "[compression]") {
  for (auto [hidden, intermediate] : {std::pair{5, 40}, std::pair{20, 12}}) {
    some_experts const experts = random_experts({.experts = 3, .hidden = hidden, .intermediate = intermediate}, 30);
    int const smaller = std::min(intermediate, 3 * hidden);
    auto const with_rank = [&](int rank) {
      return compressed(experts, {.form = residual_form::low_rank, .rank = rank, .svd = lapack_svd, .compare = false});
    };
    outcome const whole = with_rank(smaller), none = with_rank(0), some = with_rank(2);
    std::vector<std::vector<double>> values;
    for (int e = 0; e < 3; ++e) {
      std::vector<float> change = aligned(experts, whole, e);
      double const size = squared(change, std::vector<float>(change.size()));
      CHECK(squared(change, whole.restored[e]) <= 1e-12 * size);
      CHECK(none.restored[e] == none.centre);
      for (std::size_t i = 0; i < change.size(); ++i) change[i] -= whole.centre[i];
      values.push_back(lapack_singular_values({change.data(), intermediate, 3 * hidden}));
      CHECK(values.back().size() == static_cast<std::size_t>(smaller));
      double all = 0.0;
      for (double v : values.back()) all += v * v;
      CHECK(all == Catch::Approx(squared(change, std::vector<float>(change.size()))).epsilon(1e-9));
      CHECK(std::is_sorted(values.back().rbegin(), values.back().rend()));
    }
    double dropped = 0.0;
    for (auto const& of_expert : values) {
      for (std::size_t i = 2; i < of_expert.size(); ++i) dropped += of_expert[i] * of_expert[i] / 3;
    }
    CHECK(some.report.barycenter.residual == Catch::Approx(dropped).epsilon(1e-4));
    CHECK(mean_error(experts, some) == Catch::Approx(some.report.barycenter.residual).epsilon(1e-9));
    CHECK(some.report.rank == 2);
    CHECK(some.report.residual_bytes() == 4 * 3 * 2 * (intermediate + 3 * hidden));
  }
}

TEST_CASE("both factors have numbers of like size, the largest first", "[compression]") {
  support::random_numbers random(32);
  for (auto [rows, columns] : {std::pair{9, 5}, std::pair{5, 9}}) {
    matrix change(rows, columns), left(rows, 4), right(4, columns);
    for (float& value : change.values()) value = static_cast<float>(random.normal());
    lapack_svd(change, left, right);
    std::vector<double> const values = lapack_singular_values(change);
    for (int k = 0; k < 4; ++k) {
      double of_left = 0.0, of_right = 0.0;
      for (int r = 0; r < rows; ++r) of_left += std::pow(left.row(r)[k], 2);
      for (int c = 0; c < columns; ++c) of_right += std::pow(right.row(k)[c], 2);
      CHECK(of_left == Catch::Approx(values[k]).epsilon(1e-5));
      CHECK(of_right == Catch::Approx(values[k]).epsilon(1e-5));
    }
  }
}

TEST_CASE("a compression to low rank that was stopped goes on to the same bits", "[compression]") {
  check_resuming(random_experts({.experts = 3, .hidden = 4, .intermediate = 24}, 31),
                 {.form = residual_form::low_rank, .keep = 0.5, .svd = lapack_svd});
}

TEST_CASE("factors of another size are refused", "[compression]") {
  matrix const change(4, 6);
  matrix left(4, 5), right(5, 6);
  CHECK(
      said([&] { lapack_svd(change, left, right); }) ==
      "switchyard: compression::lapack_svd, factors: expected 4 x rank and rank x 6, of a rank of at most 4, got 4 x 5 "
      "and 5 x 6");
}

#endif
