#include <switchyard/sida/distillation.hpp>
#include <switchyard/sida/hash_table.hpp>
#include <switchyard/sida/predictor.hpp>
#include <switchyard/sida/sparsemax.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "sida/reference.hpp"
#include "support/random_numbers.hpp"
#include "support/said.hpp"
#include "support/threads.hpp"

/// SiDA's predictor, its tables and its loss, by hand and against float64. The published code's numbers are in tests/fixtures/sida.cpp.
namespace sy = switchyard;
using namespace switchyard::sida;
using Catch::Approx;
using support::said;

namespace {

using numbers = std::vector<double>;
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

double farthest(std::vector<float> const& a, numbers const& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double most = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    double const apart = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(apart <= most)) most = apart;
  }
  return most;
}

/// A row of attention.
std::vector<float> attention_of(std::vector<float> scores, sparsemax_form form) {
  sparsemax(scores, form);
  float const total = std::accumulate(scores.begin(), scores.end(), 0.0f);
  for (float& v : scores) v /= total;
  return scores;
}

}  // namespace

TEST_CASE("SparseMax by hand, correct and as published", "[sida]") {
  std::vector<float> scores = {1.0f, 0.5f, -1.0f};
  sparsemax_result const found = sparsemax(scores);
  CHECK(found.support == 2);
  CHECK(found.threshold == Approx(0.25));
  CHECK(farthest(scores, {0.75, 0.25, 0.0}) < 1e-6);
  struct {
    std::vector<float> scores;
    numbers correct, published;
  } const rows[] = {{{1.0f, 0.5f, -1.0f}, {0.75, 0.25, 0.0}, {0.625, 0.375, 0.0}},
                    {{1.0f, 0.5f, 0.2f}, {0.75, 0.25, 0.0}, {0.510204, 0.306122, 0.183673}},
                    {{3.0f, 0.0f, 0.0f}, {1.0, 0.0, 0.0}, {1.0, 0.0, 0.0}},
                    {{0.0f, 0.0f}, {0.5, 0.5}, {0.5, 0.5}}};
  for (auto const& row : rows) {
    CHECK(farthest(attention_of(row.scores, sparsemax_form::correct), row.correct) < 1e-6);
    CHECK(farthest(attention_of(row.scores, sparsemax_form::published), row.published) < 1e-6);
  }
}

TEST_CASE("SparseMax of many scores is the one that sorts, whatever is added to all of them", "[sida]") {
  support::random_numbers random(3);
  for (int count : {1, 2, 3, 4, 5, 17, 64, 301}) {
    for (double spread : {0.001, 0.1, 1.0, 30.0}) {
      for (float shift : {0.0f, -4096.0f}) {
        std::vector<float> scores;
        for (int i = 0; i < count; ++i)
          scores.push_back(shift + static_cast<float>(std::round(spread * 4096.0 * random.normal()) / 4096.0));
        numbers const exact(scores.begin(), scores.end());
        for (bool published : {false, true}) {
          std::vector<float> mine = scores;
          sparsemax_result const found =
              sparsemax(mine, published ? sparsemax_form::published : sparsemax_form::correct);
          numbers const expected = sida_reference::sparsemax(exact, published);
          CHECK(farthest(mine, expected) < 2e-6);
          numbers const correct = sida_reference::sparsemax(exact, false);
          // What is at the threshold within rounding may count or not.
          auto const above = [&](double least) {
            return std::count_if(correct.begin(), correct.end(), [&](double p) { return p > least; });
          };
          CHECK(found.support >= above(1e-6));
          CHECK(found.support <= above(0.0) + 1);
        }
      }
    }
  }
  std::vector<float> equal(1000, 7.0f);
  CHECK(sparsemax(equal).support == 1000);
  CHECK(equal[999] == Approx(0.001));
  std::vector<float> closed = {-infinity, 2.0f, -infinity, 1.5f, -infinity};
  sparsemax(closed);
  CHECK(farthest(closed, {0.0, 0.75, 0.0, 0.25, 0.0}) < 1e-6);
}

TEST_CASE("SparseMax of what is no number is no number", "[sida]") {
  for (std::vector<float> scores :
       {std::vector<float>{not_a_number, 1.0f}, {1.0f, not_a_number}, {1.0f, infinity, 0.0f}, {-infinity}}) {
    sparsemax_result const found = sparsemax(scores);
    CHECK(std::isnan(found.threshold));
    for (float p : scores) CHECK(std::isnan(p));
  }
  CHECK(sparsemax({}).support == 0);
}

namespace {

/// A predictor with random weights, in float for the library and in double for the reference.
struct random_predictor {
  std::vector<std::vector<float>> weights;
  std::vector<lstm> lstm_layers;
  std::vector<linear> heads;
  predictor by;
  sida_reference::network exact;

  random_predictor(int embedding, int hidden, int experts, int layers, int lstm_count, unsigned seed) {
    support::random_numbers random(seed);
    auto const draw = [&](int outputs, int inputs, double scale) {
      sida_reference::linear map;
      linear mine;
      for (auto [to, at, count, deviation] :
           {std::tuple(&map.weight, &mine.weight, outputs * inputs, scale / std::sqrt(inputs)),
            std::tuple(&map.bias, &mine.bias, outputs, 0.3)}) {
        std::vector<float> values;
        for (int i = 0; i < count; ++i) values.push_back(static_cast<float>(deviation * random.normal()));
        to->assign(values.begin(), values.end());
        weights.push_back(std::move(values));
        *at = weights.back().data();
      }
      return std::pair(mine, map);
    };
    by.embedding = embedding;
    by.hidden = hidden;
    by.experts = experts;
    exact = {static_cast<std::size_t>(embedding),
             static_cast<std::size_t>(hidden),
             static_cast<std::size_t>(experts),
             {},
             {},
             {},
             {}};
    std::tie(by.compress, exact.compress) = draw(hidden, embedding, 1.5);
    for (int i = 0; i < lstm_count; ++i) {
      auto const [a, of_input] = draw(4 * hidden, hidden, 2.0);
      auto const [b, of_output] = draw(4 * hidden, hidden, 1.0);
      lstm_layers.push_back({a.weight, b.weight, a.bias, b.bias});
      exact.lstm.push_back({of_input, of_output});
    }
    std::tie(by.residual, exact.residual) = draw(hidden, hidden, 1.0);
    for (int i = 0; i < layers; ++i) {
      auto const [head, map] = draw(experts, hidden, 2.0);
      heads.push_back(head);
      exact.heads.push_back(map);
    }
    by.lstm_layers = lstm_layers;
    by.heads = heads;
  }
  random_predictor(random_predictor const&) = delete;
};

struct predicted_values {
  std::vector<float> logits, lstm_output, attention;
};

predicted_values run(random_predictor const& p, std::vector<float> const& x, std::int64_t sequences,
                     std::int64_t length, sy::cpu_context const& context = {.threads = 1}) {
  auto const rows = static_cast<std::size_t>(sequences * length);
  predicted_values result;
  result.logits.assign(p.heads.size() * rows * static_cast<std::size_t>(p.by.experts), 7.0f);
  result.lstm_output.assign(rows * static_cast<std::size_t>(p.by.hidden), 7.0f);
  result.attention.assign(rows * static_cast<std::size_t>(length), 7.0f);
  std::vector<std::byte> scratch(predict_workspace_bytes(p.by, sequences, length));
  predict(p.by,
          {.embeddings = x.data(),
           .sequences = sequences,
           .length = length,
           .logits = result.logits.data(),
           .workspace = scratch,
           .lstm_output = result.lstm_output.data(),
           .attention = result.attention.data()},
          context);
  return result;
}

std::vector<float> random_embeddings(std::int64_t count, unsigned seed) {
  support::random_numbers random(seed);
  std::vector<float> x;
  for (std::int64_t i = 0; i < count; ++i) x.push_back(static_cast<float>(random.normal()));
  return x;
}

}  // namespace

TEST_CASE("the predictor agrees with float64", "[sida]") {
  struct {
    int embedding, hidden, experts, layers, lstm_layers;
    std::int64_t sequences, length;
  } const shapes[] = {{12, 20, 5, 3, 2, 2, 7},  // no multiples
                      {32, 16, 8, 1, 1, 3, 1},
                      {7, 33, 40, 2, 3, 1, 70},  // more than one piece of time and of attention
                      {5, 6, 3, 2, 2, 19, 5}};   // more sequences than go together
  unsigned seed = 0;
  for (auto const& s : shapes) {
    random_predictor p(s.embedding, s.hidden, s.experts, s.layers, s.lstm_layers, ++seed);
    std::vector<float> const x = random_embeddings(s.sequences * s.length * s.embedding, seed);
    for (bool published : {false, true}) {
      p.by.form = published ? sparsemax_form::published : sparsemax_form::correct;
      p.exact.published = published;
      predicted_values const got = run(p, x, s.sequences, s.length);
      sida_reference::prediction const expected = sida_reference::predict(
          p.exact, {x.begin(), x.end()}, static_cast<std::size_t>(s.sequences), static_cast<std::size_t>(s.length));
      CHECK(farthest(got.lstm_output, expected.lstm_output) < 2e-6);
      CHECK(farthest(got.attention, expected.attention) < 2e-5);
      CHECK(farthest(got.logits, expected.logits) < 2e-5);
      predicted_values const portable =
          run(p, x, s.sequences, s.length, {.threads = 1, .instructions = sy::instruction_set::portable});
      CHECK(farthest(portable.logits, expected.logits) < 2e-5);
    }
  }
}

TEST_CASE("a sequence's prediction has the same bits beside any others and with any number of threads", "[sida]") {
  random_predictor const p(12, 20, 5, 2, 2, 9);
  constexpr std::int64_t sequences = 18, length = 35;
  std::vector<float> const x = random_embeddings(sequences * length * 12, 4);
  predicted_values const all = run(p, x, sequences, length);
  sy::thread_pool const pool = support::thread_per_worker::pool(3);
  CHECK(run(p, x, sequences, length, {.pool = &pool}).logits == all.logits);
  for (std::int64_t s : {0, 17}) {
    predicted_values const alone = run(p, {x.begin() + s * length * 12, x.begin() + (s + 1) * length * 12}, 1, length);
    for (std::int64_t layer = 0; layer < 2; ++layer) {
      auto const first = all.logits.begin() + (layer * sequences + s) * length * 5;
      CHECK(std::equal(first, first + length * 5, alone.logits.begin() + layer * length * 5));
    }
  }
  // The workspace stops growing with the sequences, so that a table of any number of them takes no more.
  CHECK(predict_workspace_bytes(p.by, 1000, length) == predict_workspace_bytes(p.by, 16, length));
}

TEST_CASE("wrong uses of the predictor are refused", "[sida]") {
  random_predictor p(4, 8, 3, 1, 1, 2);
  std::vector<float> x(2 * 3 * 4), logits(2 * 3 * 3);
  std::vector<std::byte> scratch(predict_workspace_bytes(p.by, 2, 3));
  predict_args const right{
      .embeddings = x.data(), .sequences = 2, .length = 3, .logits = logits.data(), .workspace = scratch};
  auto const refused = [&](predict_args const& args) { return said([&] { predict(p.by, args); }); };
  CHECK(refused(right).empty());
  predict_args wrong = right;
  wrong.workspace = wrong.workspace.first(scratch.size() - 1);
  CHECK(refused(wrong) == "switchyard: sida::predict, workspace: expected " + std::to_string(scratch.size()) +
                              " bytes at a multiple of 16, got " + std::to_string(scratch.size() - 1) +
                              " bytes, 0 past such a multiple");
  wrong = right;
  wrong.embeddings = nullptr;
  CHECK(refused(wrong) ==
        "switchyard: sida::predict, embeddings: expected [sequences, length, embedding], got a null pointer");
  wrong = right;
  wrong.sequences = -1;
  CHECK(refused(wrong) == "switchyard: sida::predict, sequences: expected 0 or more, got -1");
  p.heads[0].bias = nullptr;
  CHECK(refused(right) == "switchyard: sida::predict, heads: expected a bias, [outputs], got a null pointer");
  p.by.heads = {};
  CHECK(refused(right) == "switchyard: sida::predict, heads: expected at least 1, got 0");
}

TEST_CASE("a table has the best experts with their probabilities, and what each layer needs", "[sida]") {
  // Two layers, two tokens, four experts; equal logits go to the lower id.
  std::vector<float> const logits = {0, 2, 1, 2, 3,  0, 0, 3,  //
                                     1, 1, 1, 1, -5, 4, 2, 1};
  hash_table table;
  build_hash_table(logits.data(), 2, 2, 4, 2, table);
  CHECK(table.ids == std::vector<std::int32_t>{1, 3, 0, 3, 0, 1, 1, 2});
  double const two = std::exp(2.0) / (1.0 + 2.0 * std::exp(2.0) + std::exp(1.0));
  double const three = std::exp(3.0) / (2.0 + 2.0 * std::exp(3.0));
  numbers const last = sida_reference::softmax({-5, 4, 2, 1});
  CHECK(farthest(table.probabilities, {two, two, three, three, 0.25, 0.25, last[1], last[2]}) < 1e-6);
  auto const needed = [&](int layer) {
    std::span<std::int32_t const> const ids = table.needed(layer);
    return std::vector<std::int32_t>(ids.begin(), ids.end());
  };
  CHECK(needed(0) == std::vector<std::int32_t>{0, 1, 3});
  CHECK(needed(1) == std::vector<std::int32_t>{0, 1, 2});
  CHECK(table.routes(1, 1).experts == table.ids.data() + 6);
  CHECK(table.routes(1, 1).probabilities == table.probabilities.data() + 6);

  // In the order of layers and ids, until one does not fit.
  CHECK(admitted_experts(table, 10, 45) == std::vector<std::int64_t>{3, 1});
  CHECK(admitted_experts(table, 10, 19) == std::vector<std::int64_t>{1, 0});
  CHECK(admitted_experts(table, 10, 600) == std::vector<std::int64_t>{3, 3});

  // A group that is smaller than the one before, and one with nothing.
  build_hash_table(logits.data(), 1, 1, 4, 4, table);
  CHECK(table.ids == std::vector<std::int32_t>{1, 3, 2, 0});
  CHECK(table.needed(0).size() == 4);
  build_hash_table(nullptr, 2, 0, 4, 1, table);
  CHECK(table.needed(0).empty());
  CHECK(table.needed(1).empty());
}

TEST_CASE("wrong tables are refused", "[sida]") {
  hash_table table;
  std::vector<float> logits = {0, 1, 2, not_a_number};
  auto const built = [&](int top_k) { return said([&] { build_hash_table(logits.data(), 1, 2, 2, top_k, table); }); };
  CHECK(built(1) ==
        "switchyard: sida::build_hash_table, logits: expected finite numbers, got nan for layer 0, token 1, expert 1");
  CHECK(built(3) == "switchyard: sida::build_hash_table, top_k: expected 1 to 2, the experts, got 3");
  table = {.layers = 1, .experts = 2, .top_k = 1, .tokens = 2, .ids = {0, 2}};
  CHECK(said([&] { find_needed(table); }) ==
        "switchyard: sida::find_needed, ids: expected 0 to 1, got 2 for layer 0, token 1");
  table.ids.push_back(0);
  CHECK(said([&] { find_needed(table); }) ==
        "switchyard: sida::find_needed, ids: expected 2 of them, [layers, tokens, top_k], got 3");
}

TEST_CASE("truncated distillation by hand", "[sida]") {
  std::vector<float> const teacher = {2, 1, 0, -5}, student = {1, 1, 0, 3};
  truncated_distillation_losses const got =
      truncated_distillation({.student = {student.data(), 1, 4}, .teacher = {teacher.data(), 1, 4}, .kept = 2});
  CHECK(got.distillation == Approx(0.231059).margin(1e-6));
  CHECK(got.cross_entropy == Approx(2.277978).margin(1e-6));
  CHECK(got.loss == Approx(0.242448).margin(1e-6));
  CHECK(truncated_distillation({.student = {student.data(), 0, 4}, .teacher = {teacher.data(), 0, 4}}).loss == 0.0);
}

TEST_CASE("truncated distillation and its gradient agree with float64 and with differences", "[sida]") {
  struct {
    std::size_t rows, experts;
    int kept;
  } const shapes[] = {{3, 37, 30}, {4, 8, 30}, {2, 6, 2}, {2, 1, 30}, {1, 5, 1}};
  support::random_numbers random(8);
  for (auto const& s : shapes) {
    std::vector<float> student, teacher;
    for (std::size_t i = 0; i < s.rows * s.experts; ++i) {
      student.push_back(static_cast<float>(2.0 * random.normal()));
      teacher.push_back(static_cast<float>(2.0 * random.normal()));
    }
    numbers exact(student.begin(), student.end());
    numbers const right(teacher.begin(), teacher.end());
    auto const rows = static_cast<std::int64_t>(s.rows), experts = static_cast<std::int64_t>(s.experts);
    std::vector<float> gradient = student;  // in place
    truncated_distillation_losses const got = truncated_distillation({.student = {gradient.data(), rows, experts},
                                                                      .teacher = {teacher.data(), rows, experts},
                                                                      .gradient = {gradient.data(), rows, experts},
                                                                      .kept = s.kept});
    auto const loss = [&] {
      return sida_reference::truncated_distillation(exact, right, s.experts, static_cast<std::size_t>(s.kept), 0.005);
    };
    CHECK(got.loss == Approx(loss().loss).epsilon(1e-12));
    CHECK(got.distillation == Approx(loss().distillation).epsilon(1e-12));
    CHECK(got.cross_entropy == Approx(loss().cross_entropy).epsilon(1e-12));
    for (std::size_t i = 0; i < exact.size(); ++i) {
      constexpr double step = 1e-6;
      double const at = exact[i];
      exact[i] = at + step;
      double const above = loss().loss;
      exact[i] = at - step;
      double const below = loss().loss;
      exact[i] = at;
      CHECK(static_cast<double>(gradient[i]) == Approx((above - below) / (2.0 * step)).margin(1e-8).epsilon(1e-5));
    }
  }
}

TEST_CASE("wrong matrices of the distillation are refused", "[sida]") {
  std::vector<float> const values(6);
  auto const refused = [&](truncated_distillation_args const& args) {
    return said([&] { truncated_distillation(args); });
  };
  CHECK(refused({.student = {values.data(), 2, 3}, .teacher = {values.data(), 3, 2}}) ==
        "switchyard: sida::truncated_distillation, teacher: expected 2 x 3 (rows x experts), got 3 x 2");
  CHECK(refused({.student = {values.data(), 2, 3}, .teacher = {nullptr, 2, 3}}) ==
        "switchyard: sida::truncated_distillation, teacher: expected a matrix, got a null pointer");
  CHECK(refused({.student = {values.data(), 2, 3}, .teacher = {values.data(), 2, 3}, .kept = 0}) ==
        "switchyard: sida::truncated_distillation, kept: expected at least 1, got 0");
}
