#include <switchyard/auxiliary.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "catch.hpp"

namespace sy = switchyard;

namespace {

/// Two of three experts for each token, everything that `auxiliary` reads.
struct record {
  std::vector<float> logits;
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::vector<std::uint8_t> dropped, active;
  std::int64_t tokens_per_group = 0;

  sy::auxiliary_values values() const {
    return sy::auxiliary<3, 2>({.tokens = static_cast<std::int64_t>(logits.size() / 3),
                                .tokens_per_group = tokens_per_group,
                                .logits = logits.data(),
                                .experts = experts.data(),
                                .weights = weights.data(),
                                .dropped = dropped.data(),
                                .active = active.empty() ? nullptr : active.data()});
  }
};

bool same_bits(sy::auxiliary_values const& a, sy::auxiliary_values const& b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

float const ln2 = std::log(2.0f);

/// p is {1/4, 1/4, 1/2} for the first token and {1/2, 1/4, 1/4} for the second; the second's first choice is dropped.
record two_tokens() {
  return {.logits = {0.0f, 0.0f, ln2, ln2, 0.0f, 0.0f},
          .experts = {2, 0, 1, 0},
          .weights = {0.5f, 0.25f, 0.0f, 0.25f},
          .dropped = {0, 0, 1, 0},
          .active = {}};
}

}  // namespace

TEST_CASE("auxiliary values by hand", "[auxiliary]") {
  sy::auxiliary_values const got = two_tokens().values();
  // Mean p: 3/8, 1/4, 3/8. First choices: 0, 1/2, 1/2; all choices: 1, 1/2, 1/2.
  CHECK(got.balance_first_choice == Catch::Approx(3.0 * (0.5 * 0.25 + 0.5 * 0.375)));
  CHECK(got.balance_all_choices == Catch::Approx(3.0 * (0.375 + 0.5 * 0.25 + 0.5 * 0.375)));
  // The dropped first choice counts for expert 0. Mean combine weights: 1/4, 0, 1/4.
  CHECK(got.balance_kept_choice == Catch::Approx(3.0 * (0.5 * 0.375 + 0.5 * 0.375)));
  CHECK(got.balance_combine_weight == Catch::Approx(3.0 * (0.5 * 0.25 + 0.5 * 0.25)));
  CHECK(got.z_loss == Catch::Approx(std::log(4.0) * std::log(4.0)));
  // Load 2, 1, 1: mean 4/3, variance (4/9 + 1/9 + 1/9) / 3.
  CHECK(got.load_variation == Catch::Approx(std::sqrt(2.0 / 9) / (4.0 / 3)));
  CHECK(got.negative_entropy == Catch::Approx(0.75 * std::log(0.375) + 0.25 * std::log(0.25)));
}

TEST_CASE("the entropy regulariser of sigma-MoE by hand", "[auxiliary]") {
  // Two tokens with logits (0, 0) and (ln 3, 0): q = (5/8, 3/8).
  std::vector<float> const logits{0.0f, 0.0f, std::log(3.0f), 0.0f}, weights{0.5f, 0.75f};
  std::vector<std::int32_t> const experts{0, 0};
  std::vector<std::uint8_t> const dropped{0, 0};
  sy::routing_record const record{.tokens = 2,
                                  .logits = logits.data(),
                                  .experts = experts.data(),
                                  .weights = weights.data(),
                                  .dropped = dropped.data()};
  CHECK(sy::auxiliary<2, 1>(record).negative_entropy == Catch::Approx(-0.661563).epsilon(1e-5));
}

TEST_CASE("pairs with the id -1 do not count, though their row does", "[auxiliary]") {
  record nowhere = two_tokens();
  nowhere.experts = {2, -1, -1, 1};
  nowhere.weights = {0.5f, std::numeric_limits<float>::quiet_NaN(), 7.0f, 0.25f};
  nowhere.dropped = {0, 0, 0, 0};
  sy::auxiliary_values const got = nowhere.values();
  CHECK(got.balance_first_choice == Catch::Approx(3.0 * (0.5 * 0.375)));
  CHECK(got.balance_kept_choice == Catch::Approx(3.0 * (0.5 * 0.375)));
  CHECK(got.balance_all_choices == Catch::Approx(3.0 * (0.5 * 0.25 + 0.5 * 0.375)));
  CHECK(got.balance_combine_weight == Catch::Approx(3.0 * (0.5 * 0.25)));
  CHECK(got.z_loss == Catch::Approx(std::log(4.0) * std::log(4.0)));
}

TEST_CASE("rows that are not active do not count, whatever they hold", "[auxiliary]") {
  record padded = two_tokens();
  float const bad = std::numeric_limits<float>::quiet_NaN();
  padded.logits.insert(padded.logits.begin() + 3, {bad, bad, bad});
  padded.experts.insert(padded.experts.begin() + 2, {-1, -1});
  padded.weights.insert(padded.weights.begin() + 2, {bad, bad});
  padded.dropped.insert(padded.dropped.begin() + 2, {0, 0});
  padded.active = {1, 0, 1};
  CHECK(same_bits(padded.values(), two_tokens().values()));
}

TEST_CASE("no token, and no active token, give zeros", "[auxiliary]") {
  CHECK(same_bits(record{}.values(), {}));
  record padding = two_tokens();
  padding.active = {0, 0};
  CHECK(same_bits(padding.values(), {}));
}

TEST_CASE("load_importance_loss is zero at balance and grows with imbalance", "[auxiliary]") {
  float const even[] = {3.0f, 0.0f, 0.0f, 3.0f}, uneven[] = {3.0f, 0.0f, 2.0f, 0.0f};
  float const at_balance = sy::load_importance_loss<2, 1>(sy::view<float const>(even, 2, 2));
  CHECK(at_balance == Catch::Approx(0.0).margin(1e-6));
  CHECK(sy::load_importance_loss<2, 1>(sy::view<float const>(uneven, 2, 2)) > 0.1f);
}

TEST_CASE("load_importance_loss reads rows that stand apart", "[auxiliary]") {
  float const bad = std::numeric_limits<float>::quiet_NaN();
  float const together[] = {3.0f, 0.0f, 2.0f, 0.5f}, apart[] = {3.0f, 0.0f, bad, 2.0f, 0.5f};
  CHECK(sy::load_importance_loss<2, 1>(sy::view<float const>(together, 2, 2)) ==
        sy::load_importance_loss<2, 1>(sy::view<float const>(apart, 2, 2, 3)));
}

TEST_CASE("load_importance_loss refuses logits of another width and a gate noise that is not positive", "[auxiliary]") {
  float const logits[8] = {};
  CHECK_THROWS_WITH((sy::load_importance_loss<4, 2>(sy::view<float const>(logits, 2, 3))),
                    "switchyard: load_importance_loss, logits: expected 4 columns, got 3");
  CHECK_THROWS_WITH((sy::load_importance_loss<4, 2>(sy::view<float const>(logits, 2, 4), 0.0f)),
                    "switchyard: load_importance_loss, gate_noise: expected a positive number, got 0.000000");
  CHECK_THROWS_WITH((sy::load_importance_loss<4, 2>(sy::view<float const>(logits, 2, 4), -1.0f)),
                    "switchyard: load_importance_loss, gate_noise: expected a positive number, got -1.000000");
  CHECK_THROWS_AS(
      (sy::load_importance_loss<4, 2>(sy::view<float const>(logits, 2, 4), std::numeric_limits<float>::quiet_NaN())),
      sy::error);
}
