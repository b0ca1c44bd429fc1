#include <switchyard/modularity.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <span>
#include <vector>

#include "catch.hpp"
#include "support/random_numbers.hpp"

/// Measures of modularity by hand, by what has to hold, and by their definitions. The published code's numbers are in
/// tests/fixtures/modularity.cpp.
namespace sy = switchyard;
using namespace switchyard::modularity;

namespace {

using labels = std::vector<std::int32_t>;
using numbers = std::vector<double>;

/// The sum over distinct scores of the step in recall times the precision, as it is defined.
double defined_average_precision(std::vector<float> const& scores, labels const& y) {
  double sum = 0.0, positives = 0.0, recall = 0.0;
  std::set<float, std::greater<>> thresholds(scores.begin(), scores.end());
  for (std::int32_t label : y) positives += label == 1;
  for (float threshold : thresholds) {
    double right = 0.0, all = 0.0;
    for (std::size_t i = 0; i < y.size(); ++i) {
      if (y[i] < 0 || scores[i] < threshold) continue;
      all += 1.0;
      right += y[i] == 1;
    }
    if (all == 0.0) continue;
    sum += (right / positives - recall) * (right / all);
    recall = right / positives;
  }
  return sum;
}

double log_choose(double n, double k) { return std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1); }

/// P(X > t), summed from its definition.
double hypergeometric_tail(int units, int size, int draws, std::int64_t t) {
  double tail = 0.0;
  for (std::int64_t k = std::min(size, draws); k > t && k >= std::max(0, draws - (units - size)); --k) {
    double const at = static_cast<double>(k);
    tail += std::exp(log_choose(size, at) + log_choose(units - size, draws - at) - log_choose(units, draws));
  }
  return tail;
}
double binomial_tail(int draws, int experts, std::int64_t t) {
  double tail = 0.0;
  for (std::int64_t k = draws; k > t; --k) {
    double const at = static_cast<double>(k);
    tail += std::exp(log_choose(draws, at) - at * std::log(experts) + (draws - at) * std::log1p(-1.0 / experts));
  }
  return tail;
}

std::vector<std::int32_t> blocks_of(int experts, int size) {
  std::vector<std::int32_t> result;
  for (int i = 0; i < experts * size; ++i) result.push_back(i / size);
  return result;
}

}  // namespace

TEST_CASE("predictivity by hand", "[modularity]") {
  std::vector<float> const activations{0.9f, 0.8f, 0.1f, 0.4f};
  CHECK(average_precision(activations, labels{1, 0, 0, 1}) == Catch::Approx(0.833333).epsilon(1e-6));
  CHECK(average_precision(activations, labels{0, 1, 1, 0}) == 0.5);
  CHECK(predictivity(activations, labels{1, 0, 0, 1}) == Catch::Approx(0.833333).epsilon(1e-6));
  CHECK(predictivity(activations, labels{0, 1, 1, 0}) == Catch::Approx(0.833333).epsilon(1e-6));
  // Two equal scores are one threshold, in whatever order they stand: 1/2 * 1/1 + 1/2 * 2/3.
  std::vector<float> const tied{2.0f, 1.0f, 1.0f, 0.5f};
  CHECK(average_precision(tied, labels{1, 0, 1, 0}) == Catch::Approx(0.5 + 1.0 / 3.0));
  CHECK(average_precision(tied, labels{1, 1, 0, 0}) == average_precision(tied, labels{1, 0, 1, 0}));
  CHECK(average_precision(std::vector<float>{0.0f, -0.0f}, labels{1, 0}) == 0.5);
  CHECK(average_precision(std::vector<float>{-1.0f, -2.0f, 1.0f}, labels{1, 1, 0}) ==
        Catch::Approx(0.5 * 0.5 + 1.0 / 3.0));
  // What is no part of the sub-function neither counts nor parts others.
  CHECK(average_precision(std::vector<float>{3.0f, 2.0f, 1.0f}, labels{-1, 1, 0}) == 1.0);
  CHECK(average_precision(activations, labels{0, 0, 0, 0}) == 0.0);
  CHECK(predictivity(activations, labels{0, 0, 0, 0}) == 1.0);
  CHECK(average_precision({}, {}) == 0.0);
}

TEST_CASE("a constant unit has the larger share of a label as its predictivity", "[modularity]") {
  for (int positive = 0; positive <= 8; ++positive) {
    labels y(8, 0);
    std::fill(y.begin(), y.begin() + positive, 1);
    CHECK(predictivity(std::vector<float>(8, 0.25f), y) == std::max(positive, 8 - positive) / 8.0);
  }
}

TEST_CASE("average precision is what its definition gives, for units one by one and together", "[modularity]") {
  support::random_numbers random(5);
  constexpr int samples = 60, units = 37, functions = 3;
  std::vector<float> activations;
  for (int i = 0; i < samples * units; ++i) activations.push_back(static_cast<float>(random.below(15)) - 3.0f);
  labels y;
  for (int i = 0; i < functions * samples; ++i) y.push_back(random.below(3) - 1);
  numbers const all = predictivity({activations.data(), samples, units}, {y.data(), functions, samples});
  for (int f = 0; f < functions; ++f) {
    labels const mine(y.begin() + f * samples, y.begin() + (f + 1) * samples);
    labels inverted;
    for (std::int32_t label : mine) inverted.push_back(label < 0 ? label : 1 - label);
    for (int u = 0; u < units; ++u) {
      std::vector<float> of_unit;
      for (int n = 0; n < samples; ++n) of_unit.push_back(activations[static_cast<std::size_t>(n * units + u)]);
      CHECK(average_precision(of_unit, mine) == Catch::Approx(defined_average_precision(of_unit, mine)));
      double const larger =
          std::max(defined_average_precision(of_unit, mine), defined_average_precision(of_unit, inverted));
      CHECK(all[static_cast<std::size_t>(f * units + u)] == Catch::Approx(larger));
      CHECK(all[static_cast<std::size_t>(f * units + u)] == predictivity(of_unit, mine));
    }
  }
}

TEST_CASE("the activation for a text is the largest of its active positions, and at least 0", "[modularity]") {
  std::vector<float> const inner{1.0f, -2.0f, 0.5f,   //
                                 3.0f, -1.0f, -0.5f,  //
                                 9.0f, 9.0f,  0.75f};
  std::vector<float> result(3);
  text_activation({inner.data(), 3, 3}, std::vector<std::uint8_t>{1, 1, 0}, result);
  CHECK(result == std::vector<float>{3.0f, 0.0f, 0.5f});
  text_activation({inner.data(), 3, 3}, {}, result);
  CHECK(result == std::vector<float>{9.0f, 9.0f, 0.75f});
  text_activation({inner.data(), 3, 3}, std::vector<std::uint8_t>{0, 0, 0}, result);
  CHECK(result == std::vector<float>{0.0f, 0.0f, 0.0f});
  std::vector<float> const damaged{1.0f, std::numeric_limits<float>::quiet_NaN(), 2.0f};
  text_activation({damaged.data(), 3, 1}, {}, {result.data(), 1});
  CHECK(std::isnan(result[0]));
}

TEST_CASE("the best units come first, and of equal ones the lower number", "[modularity]") {
  CHECK(top_units(numbers{0.5, 0.75, 0.5, 1.0, 0.5}, 4) == std::vector<std::int32_t>{3, 1, 0, 2});
  CHECK(top_units(numbers{0.5}, 0).empty());
  CHECK(mean_predictivity({numbers{0.5, 0.75, 1.0, 0.25}.data(), 2, 2}) == numbers{0.75, 0.5});
  CHECK(best_predictivity({numbers{0.5, 0.75, 1.0, 0.25}.data(), 2, 2}) == 0.875);
}

TEST_CASE("the thresholds of the paper's models", "[modularity]") {
  CHECK(hypergeometric_threshold(3072, 192, 30) == 7);
  CHECK(hypergeometric_tail(3072, 192, 30, 7) == Catch::Approx(0.000357).epsilon(2e-3));
  CHECK(hypergeometric_threshold(49152, 3072, 491) == 48);
  CHECK(hypergeometric_tail(49152, 3072, 491, 48) == Catch::Approx(0.000904).epsilon(1e-3));
  CHECK(binomial_threshold(240, 16) == 28);
  CHECK(binomial_threshold(300, 16) == 33);
}

TEST_CASE("a threshold is the smallest number whose tail is at most alpha", "[modularity]") {
  for (double alpha : {0.2, 0.01, 0.001, 1e-9}) {
    CAPTURE(alpha);
    for (auto [units, size, draws] : {std::array{100, 10, 1},
                                      {100, 50, 30},
                                      {100, 90, 40},
                                      {100, 99, 99},
                                      {7, 3, 5},
                                      {49152, 3072, 4910},
                                      {3072, 30, 3000},
                                      {1536, 192, 15}}) {
      CAPTURE(units, size, draws);
      std::int64_t const t = hypergeometric_threshold(units, size, draws, alpha);
      CHECK(hypergeometric_tail(units, size, draws, t) <= alpha * (1.0 + 1e-7));
      if (t > 0 && t > draws - (units - size)) CHECK(hypergeometric_tail(units, size, draws, t - 1) > alpha);
    }
    for (auto [draws, experts] : {std::array{1, 2}, {30, 16}, {75, 8}, {49100, 16}, {12, 1000}}) {
      CAPTURE(draws, experts);
      std::int64_t const t = binomial_threshold(draws, experts, alpha);
      CHECK(binomial_tail(draws, experts, t) <= alpha * (1.0 + 1e-7));
      if (t > 0) CHECK(binomial_tail(draws, experts, t - 1) > alpha);
    }
  }
  // A tail that is alpha itself: 1 / 10^3.
  CHECK(binomial_threshold(3, 10) == 2);
  CHECK(binomial_threshold(2, 10, 0.01) == 1);
  CHECK(hypergeometric_threshold(1000, 1, 1) == 0);
  // What has one value only.
  CHECK(hypergeometric_threshold(10, 10, 4) == 4);
  CHECK(hypergeometric_threshold(10, 0, 4) == 0);
  CHECK(hypergeometric_threshold(0, 0, 0) == 0);
  CHECK(binomial_threshold(5, 1) == 5);
  CHECK(binomial_threshold(0, 4) == 0);
}

TEST_CASE("functional experts by hand", "[modularity]") {
  // Of 400 units in 4 experts the 4 best count; P(X > 3) is C(100, 4) / C(400, 4) = 0.0037, so that 4 of them are not enough.
  std::vector<std::int32_t> const expert_of_unit = blocks_of(4, 100);
  unit_experts const of{expert_of_unit, 4};
  numbers one_expert(400, 0.5);
  for (int i = 210; i < 216; ++i) one_expert[static_cast<std::size_t>(i)] = 0.75;
  functional_experts const few = functional_experts_of(one_expert, of);
  CHECK(few.counts == std::vector<std::int64_t>{0, 0, 4, 0});
  CHECK(few.thresholds == std::vector<std::int64_t>(4, 4));
  CHECK(few.proportion == 0.0);
  CHECK(few.degree == 0.0);
  // P(X > 5) of 6 is 0.00023.
  functional_experts const six = functional_experts_of(one_expert, of, {.top = 6});
  CHECK(six.thresholds == std::vector<std::int64_t>(4, 5));
  CHECK(six.is_functional == std::vector<std::uint8_t>{0, 0, 1, 0});
  CHECK(six.proportion == 0.25);
  CHECK(six.degree == 4.0);  // 6 / (6 / 4)
  // Two sub-functions with the same units: 12 draws, P(X > 8) = 0.00039 and P(X > 7) = 0.0028.
  numbers twice = one_expert;
  twice.insert(twice.end(), one_expert.begin(), one_expert.end());
  functional_experts const pooled = functional_experts_of({twice.data(), 2, 400}, of, {.top = 6});
  CHECK(pooled.counts == std::vector<std::int64_t>{0, 0, 12, 0});
  CHECK(pooled.thresholds == std::vector<std::int64_t>(4, 8));
  CHECK(pooled.degree == 4.0);
  // Experts of other sizes have thresholds of their own.
  std::vector<std::int32_t> unequal(400, 0);
  for (int i = 200; i < 220; ++i) unequal[static_cast<std::size_t>(i)] = 1;
  functional_experts const small = functional_experts_of(one_expert, {unequal, 2});
  CHECK(small.thresholds == std::vector<std::int64_t>{4, hypergeometric_threshold(400, 20, 4)});
  CHECK(small.is_functional == std::vector<std::uint8_t>{0, 1});
}

TEST_CASE("the numbers of units inside an expert do not matter", "[modularity]") {
  support::random_numbers random(8);
  std::vector<std::int32_t> const expert_of_unit = blocks_of(8, 50);
  numbers values, moved(400);
  for (int i = 0; i < 400; ++i) values.push_back(random.uniform() + (i / 50 == 3 ? 0.5 : 0.0));
  std::vector<std::int64_t> const order = random_permutation(400, {.seed = 1});
  std::vector<std::int32_t> moved_experts(400);
  for (std::size_t i = 0; i < 400; ++i) {
    moved[i] = values[static_cast<std::size_t>(order[i])];
    moved_experts[i] = expert_of_unit[static_cast<std::size_t>(order[i])];
  }
  functional_test const test{.top = 20};
  functional_experts const before = functional_experts_of(values, {expert_of_unit, 8}, test);
  functional_experts const after = functional_experts_of(moved, {moved_experts, 8}, test);
  CHECK(before.counts == after.counts);
  CHECK(before.is_functional == std::vector<std::uint8_t>{0, 0, 0, 1, 0, 0, 0, 0});
  CHECK(before.degree == after.degree);
}

TEST_CASE("random partitions have as many functional experts as chance says, and are the same every time",
          "[modularity]") {
  std::vector<std::int32_t> const expert_of_unit = blocks_of(8, 50);
  numbers values;
  for (int i = 0; i < 400; ++i) values.push_back(i < 20 ? 1.0 : 0.5);  // all in one expert
  functional_test const test{.top = 20, .alpha = 0.05};
  CHECK(functional_experts_of(values, {expert_of_unit, 8}, test).proportion == 0.125);
  constexpr int shuffles = 2000;
  partition_baseline const mean = random_partitions(values, {expert_of_unit, 8}, {.seed = 3}, shuffles, test);
  double const chance = hypergeometric_tail(400, 50, 20, hypergeometric_threshold(400, 50, 20, 0.05));
  CHECK(chance > 0.01);
  CHECK(std::abs(mean.proportion - chance) < 5.0 * std::sqrt(chance * (1.0 - chance) / (8.0 * shuffles)));
  CHECK(mean.degree > 0.0);
  partition_baseline const again = random_partitions(values, {expert_of_unit, 8}, {.seed = 3}, shuffles, test);
  CHECK(mean.proportion == again.proportion);
  CHECK(mean.degree == again.degree);
  CHECK(random_partitions(values, {expert_of_unit, 8}, {.seed = 4}, shuffles, test).degree != mean.degree);
  partition_baseline const pooled =
      random_partitions({values.data(), 1, 400}, {expert_of_unit, 8}, {.seed = 3}, 10, test);
  CHECK(pooled.proportion <= 1.0);
}

TEST_CASE("a random order has every number once, and is one of documented numbers", "[modularity]") {
  sy::counter_random const random{.seed = 7, .stream = 2};
  for (std::int64_t count : {0, 1, 2, 3, 100}) {
    std::vector<std::int64_t> order = random_permutation(count, random, 9), expected;
    for (std::int64_t i = 0; i < count; ++i) expected.push_back(i);
    for (std::int64_t i = count - 1; i > 0; --i) {
      std::uint64_t const number = 9 + static_cast<std::uint64_t>(i);
      sy::philox_block const block = random.block(number / 2);
      double const u = (block.word[number % 2 * 2] + block.word[number % 2 * 2 + 1] * 0x1p-32) * 0x1p-32;
      std::swap(expected[static_cast<std::size_t>(i)],
                expected[static_cast<std::size_t>(u * static_cast<double>(i + 1))]);
    }
    CHECK(order == expected);
    std::sort(order.begin(), order.end());
    for (std::int64_t i = 0; i < count; ++i) CHECK(order[static_cast<std::size_t>(i)] == i);
  }
  // Each of three numbers comes first equally often.
  int first[3] = {};
  for (std::uint64_t i = 0; i < 3000; ++i) ++first[random_permutation(3, random, 3 * i)[0]];
  for (int count : first) CHECK(std::abs(count - 1000) < 130);  // five deviations
}

TEST_CASE("quantiles are interpolated, and a mask is above them strictly", "[modularity]") {
  numbers const values{4.0, 1.0, 3.0, 2.0};
  CHECK(quantile(values, 0.0) == 1.0);
  CHECK(quantile(values, 0.5) == 2.5);
  CHECK(quantile(values, 0.75) == 3.25);
  CHECK(quantile(values, 1.0) == 4.0);
  CHECK(quantile(numbers{7.0}, 0.3) == 7.0);
  CHECK(mask_of_best(values, 0.5) == std::vector<std::uint8_t>{1, 0, 1, 0});
  CHECK(mask_of_best(values, 0.0) == std::vector<std::uint8_t>{0, 0, 0, 0});
  CHECK(mask_of_best(values, 1.0) == std::vector<std::uint8_t>{1, 0, 1, 1});  // the quantile is the least of them
  CHECK(mask_of_best(numbers(5, 0.5), 0.5) == std::vector<std::uint8_t>(5, 0));
  CHECK(share_of_groups(12) == 0.125);
  numbers const two{1.0, 2.0, 3.0, 4.0, 4.5, 3.0, 2.0, 0.5};
  CHECK(mask_of_average({two.data(), 2, 4}, 0.25) == std::vector<std::uint8_t>{1, 0, 0, 0});  // 5.5, 5, 5, 4.5
  std::vector<std::int32_t> const expert_of_unit{0, 1, 2, 1, 0};
  CHECK(mask_of_experts(numbers{0.5, 0.75, 0.25}, {expert_of_unit, 3}, 0.4) ==
        std::vector<std::uint8_t>{0, 1, 0, 1, 0});
  std::vector<std::uint8_t> mask(100, 0);
  std::fill(mask.begin(), mask.begin() + 13, std::uint8_t{1});
  std::vector<std::uint8_t> shuffled = random_mask(mask, {.seed = 1});
  CHECK(shuffled != mask);
  CHECK(shuffled == random_mask(mask, {.seed = 1}));
  CHECK(std::count(shuffled.begin(), shuffled.end(), 1) == 13);
}

TEST_CASE("a perturbation shuffles masked activations, times the factor, and leaves the others", "[modularity]") {
  std::vector<float> inner{1, 10, 2, 20, 3, 30};
  std::vector<std::uint8_t> const mask{1, 0};
  perturb({inner.data(), 3, 2}, mask, std::vector<std::int64_t>{2, 0, 1});
  CHECK(inner == std::vector<float>{12, 10, 4, 20, 8, 30});

  // Units that are masked together are shuffled together, and rows may stand apart.
  support::random_numbers random(2);
  std::vector<float> activations;
  for (int i = 0; i < 40 * 9; ++i) activations.push_back(static_cast<float>(random.normal()));
  std::vector<float> const before = activations;
  std::vector<std::uint8_t> const of_units{0, 1, 0, 1, 1, 0, 0};
  perturb({activations.data(), 40, 7, 9}, of_units, sy::counter_random{.seed = 5}, 4.0f);
  std::vector<float> was, is;
  int moved_between_units = 0;
  for (std::size_t at = 0; at < before.size(); ++at) {
    std::size_t const unit = at % 9;
    if (unit < 7 && of_units[unit] != 0) {
      was.push_back(4.0f * before[at]);
      is.push_back(activations[at]);
    } else {
      CHECK(activations[at] == before[at]);
    }
  }
  for (std::size_t i = 0; i < is.size(); ++i) {
    auto const from = std::find(was.begin(), was.end(), is[i]) - was.begin();
    moved_between_units += static_cast<std::size_t>(from) % 3 != i % 3;
  }
  CHECK(moved_between_units > 40);
  CHECK(is != was);
  std::sort(was.begin(), was.end());
  std::sort(is.begin(), is.end());
  CHECK(is == was);
}

TEST_CASE("similarity by hand", "[modularity]") {
  // Two layers, three sub-functions, four units, of which two count.
  numbers const values{0.9, 0.8, 0.1, 0.2, 0.9, 0.1, 0.8, 0.2, 0.1, 0.2, 0.8, 0.9,  //
                       0.9, 0.8, 0.1, 0.2, 0.9, 0.8, 0.1, 0.2, 0.1, 0.2, 0.8, 0.9};
  numbers const pairs = similarity({values.data(), 6, 4}, 3, 2);
  CHECK(pairs == numbers{1.0, 0.75, 0.0, 0.75, 1.0, 0.25, 0.0, 0.25, 1.0});
  std::vector<sub_function_group> const groups{{0, 2}, {1, 2}};
  CHECK(group_similarity({pairs.data(), 3, 3}, groups) ==
        numbers{0.75, (0.75 + 0.0 + 0.25) / 3, (0.75 + 0.25 + 0.0) / 3, 0.25});
  auto const all = three_groups(5, 3, 8), published = three_groups_as_published(5, 3, 8);
  CHECK(all[2].first == 8);
  CHECK(all[2].count == 8);
  CHECK(published[2].first == 8);
  CHECK(published[2].count == 7);
}

TEST_CASE("rank correlation by hand", "[modularity]") {
  CHECK(average_ranks(numbers{3.0, 1.0, 3.0, 2.0, 3.0}) == numbers{4.0, 1.0, 4.0, 2.0, 4.0});
  CHECK(rank_correlation(numbers{1.0, 2.0, 3.0}, numbers{10.0, 20.0, 21.0}) == Catch::Approx(1.0));
  CHECK(rank_correlation(numbers{1.0, 2.0, 3.0}, numbers{5.0, 4.0, 1.0}) == Catch::Approx(-1.0));
  CHECK(rank_correlation(numbers{1.0, 2.0, 3.0}, numbers{1.0, 3.0, 2.0}) == Catch::Approx(0.5));
  // Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
  CHECK(rank_correlation(numbers{0.0, 1.0, 1.0, 2.0}, numbers{1.0, 2.0, 3.0, 4.0}) == Catch::Approx(std::sqrt(0.9)));
  CHECK(std::isnan(rank_correlation(numbers{1.0, 1.0}, numbers{1.0, 2.0})));
  numbers const checkpoints{1.0, 2.0, 3.0, /**/ 3.0, 2.0, 1.0, /**/ 1.0, 2.0, 3.0, /**/ 3.0, 1.0, 2.0};
  numbers const both = stability({checkpoints.data(), 4, 3}, 2);
  REQUIRE(both.size() == 1);
  CHECK(both[0] == Catch::Approx(0.75));
  CHECK(stability({checkpoints.data(), 2, 3}, 2).empty());
  numbers const one = stability({checkpoints.data(), 4, 3}, 1);
  REQUIRE(one.size() == 3);
  CHECK(one[0] == Catch::Approx(-1.0));
  std::vector<std::int32_t> const expert_of_unit{1, 0, 1};
  CHECK(expert_predictivity({checkpoints.data(), 2, 3}, {expert_of_unit, 2}) == numbers{2.0, 2.0, 2.0, 2.0});
}

TEST_CASE("what does not fit is refused with one sentence", "[modularity]") {
  float const not_a_number = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> const two{1.0f, 2.0f};
  labels const y{1, 0, 1};
  numbers const values(400, 0.5);
  std::vector<std::int32_t> const expert_of_unit = blocks_of(4, 100);
  CHECK_THROWS_WITH(average_precision(two, y),
                    "switchyard: modularity::average_precision, labels: expected 2 labels, one for each sample, got 3");
  CHECK_THROWS_WITH(
      predictivity(two, labels{1, 2}),
      "switchyard: modularity::predictivity, labels: expected 1 or 0 for each sample, or -1 where it is no "
      "part of the sub-function, got 2");
  CHECK_THROWS_WITH(predictivity(std::vector<float>{1.0f, not_a_number}, labels{1, 0}),
                    "switchyard: modularity::predictivity: expected numbers, got a NaN for sample 1");
  CHECK_THROWS_WITH(predictivity({two.data(), 2, 1}, {y.data(), 1, 3}),
                    "switchyard: modularity::predictivity, labels: expected 2 labels, one for each sample, got 3");
  CHECK_THROWS_WITH(predictivity({two.data(), 2, 0}, {y.data(), 1, 2}),
                    "switchyard: modularity::predictivity, activations: expected at least 0 x 1 (samples x units), got "
                    "2 x 0");
  CHECK_THROWS_WITH(top_units(values, 401), "switchyard: modularity::top_units, count: expected 0 to 400, got 401");
  CHECK_THROWS_WITH(hypergeometric_threshold(10, 11, 1),
                    "switchyard: modularity::hypergeometric_threshold, size: expected 0 to 10, got 11");
  CHECK_THROWS_WITH(binomial_threshold(5, 0),
                    "switchyard: modularity::binomial_threshold, experts: expected at least 1, got 0");
  CHECK_THROWS_WITH(binomial_threshold(5, 2, 1.0),
                    "switchyard: modularity::binomial_threshold, alpha: expected a number above 0 and less than 1, got "
                    "1.000000");
  CHECK_THROWS_WITH(functional_experts_of(numbers(99, 0.5), {std::span(expert_of_unit).first(99), 4}),
                    "switchyard: modularity::functional_experts_of: expected at least 100 units, or the number of top "
                    "units, got 99 units");
  CHECK_THROWS_WITH(functional_experts_of(values, {std::span(expert_of_unit).first(399), 4}),
                    "switchyard: modularity::functional_experts_of, expert_of_unit: expected 400 numbers, one for each "
                    "unit, got 399");
  CHECK_THROWS_WITH(
      functional_experts_of(values, {expert_of_unit, 3}),
      "switchyard: modularity::functional_experts_of, expert_of_unit: expected numbers from 0 to 2, got 3");
  CHECK_THROWS_WITH(random_partitions(values, {expert_of_unit, 4}, {}, 0),
                    "switchyard: modularity::random_partitions, shuffles: expected at least 1, got 0");
  CHECK_THROWS_WITH(quantile({}, 0.5),
                    "switchyard: modularity::quantile, values: expected at least 1 number, got none");
  CHECK_THROWS_WITH(mask_of_best(values, -0.5),
                    "switchyard: modularity::quantile, q: expected a number from 0 to 1, got 1.500000");
  std::vector<float> inner{1, 2, 3, 4};
  std::vector<std::uint8_t> const mask{1, 0};
  CHECK_THROWS_WITH(perturb({inner.data(), 2, 2}, mask, std::vector<std::int64_t>{0}),
                    "switchyard: modularity::perturb, order: expected 2 numbers, one for each masked unit at each "
                    "position, got 1");
  CHECK_THROWS_WITH(perturb({inner.data(), 2, 2}, mask, std::vector<std::int64_t>{1, 1}),
                    "switchyard: modularity::perturb, order: expected each number from 0 to 1 once, got 1");
  CHECK(inner == std::vector<float>{1, 2, 3, 4});
  CHECK_THROWS_WITH(
      similarity({values.data(), 4, 100}, 3, 2),
      "switchyard: modularity::similarity, predictivity: expected the same number of rows, at least 1, for "
      "each of 3 sub-functions, got 4 rows");
  std::vector<sub_function_group> const groups{{1, 2}};
  CHECK_THROWS_WITH(
      group_similarity({values.data(), 2, 2}, groups),
      "switchyard: modularity::group_similarity, groups: expected groups of at least 2 of 2 sub-functions, "
      "got 2 from 1 on");
  CHECK_THROWS_WITH(rank_correlation(values, numbers{1.0}),
                    "switchyard: modularity::rank_correlation, b: expected 400 numbers, as many as a, got 1");
  CHECK_THROWS_WITH(stability({values.data(), 5, 80}, 2),
                    "switchyard: modularity::stability, predictivity: expected the same number of rows for each of 2 "
                    "sub-functions, got 5 rows");
}
