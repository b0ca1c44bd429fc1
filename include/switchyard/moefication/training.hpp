#pragma once

#include <switchyard/core/counter_random.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/moefication/moefy.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

/// Training of the selector that `router::mlp_selector` runs. Host code; include it by name.
///
/// Source: Zhang et al. 2022, MoEfication, section 3.3 (MLP selection), with its code.
namespace switchyard::moefication {

/// The two matrices of a selector, z = W_b tanh(W_a x / |x|).
struct selector {
  int experts = 0, hidden = 0;
  std::vector<float> weight = {};         ///< [experts, hidden], W_a
  std::vector<float> output_weight = {};  ///< [experts, experts], W_b
};

/// The selector that training begins with: W_a are the centers [experts, hidden], W_b is the identity.
inline selector first_selector(std::vector<float> centers, int experts) {
  if (experts < 1 || centers.empty() || centers.size() % static_cast<std::size_t>(experts) != 0) {
    fail("moefication::first_selector, centers", "a row for each of at least 1 expert",
         std::to_string(centers.size()) + " numbers for " + std::to_string(experts) + " experts");
  }
  auto const width = static_cast<std::size_t>(experts);
  selector result{.experts = experts, .hidden = static_cast<int>(centers.size() / width)};
  result.weight = std::move(centers);
  result.output_weight.assign(width * width, 0.0f);
  for (std::size_t e = 0; e < width; ++e) result.output_weight[e * width + e] = 1.0f;
  return result;
}

/// How far a training has come.
struct selector_progress {
  int epoch, epochs;     ///< the one that has ended, from 1, and how many there are
  double loss;           ///< the mean of the epoch's batches
  double captured_mass;  ///< of the validation tokens: see `captured_mass`
};

struct selector_training {
  int epochs = 30;
  int batch = 512;
  double learning_rate = 0.01;
  double validation_share = 0.1;  ///< of the tokens, the last ones
  double chosen_share = 0.2;      ///< of the experts, rounded down but at least one: those whose mass is validated
  std::uint64_t seed = 0;         ///< of the order of tokens, which is another one in each epoch
  std::function<void(selector_progress const&)> progress = {};
};

namespace detail {

/// The logits of directions, [tokens, experts]; on request also what the second matrix sees.
inline std::vector<float> logits_of(selector const& of, view<float const> const& directions,
                                    std::vector<float>* inner) {
  std::vector<float> h = row_products(directions, {of.weight.data(), of.experts, of.hidden});
  for (float& value : h) value = std::tanh(value);
  std::vector<float> z =
      row_products({h.data(), directions.rows, of.experts}, {of.output_weight.data(), of.experts, of.experts});
  if (inner != nullptr) *inner = std::move(h);
  return z;
}

/// log(1 + exp(z)) - target z, without overflow.
inline double cross_entropy(double logit, double target) {
  return std::max(logit, 0.0) - logit * target + std::log1p(std::exp(-std::abs(logit)));
}

}  // namespace detail

/// The logits of tokens [tokens, hidden], [tokens, experts]: what `router::mlp_selector` computes.
inline std::vector<float> selector_logits(selector const& of, view<float const> const& tokens) {
  std::vector<float> const directions = normalised_rows(tokens);
  return detail::logits_of(of, {directions.data(), tokens.rows, tokens.columns}, nullptr);
}

/// A loss, and its gradients to both matrices.
struct selector_gradient {
  double loss = 0.0;
  std::vector<float> weight, output_weight;  ///< in the shapes of the selector's
};

/// The mean over tokens and experts of the cross entropy between sigmoids of the logits and targets [tokens, experts] from 0 to 1, and its
/// gradients. `directions` are tokens divided by their lengths, [tokens, hidden].
inline selector_gradient selector_loss(selector const& of, view<float const> const& directions,
                                       view<float const> const& targets) {
  auto const width = static_cast<std::size_t>(of.experts), hidden = static_cast<std::size_t>(of.hidden),
             tokens = static_cast<std::size_t>(directions.rows);
  std::vector<float> inner, z = detail::logits_of(of, directions, &inner);
  selector_gradient result;
  result.weight.assign(of.weight.size(), 0.0f);
  result.output_weight.assign(of.output_weight.size(), 0.0f);
  double const share = 1.0 / static_cast<double>(tokens * width);
  std::vector<float> of_logits(width), of_inner(width);
  for (std::size_t t = 0; t < tokens; ++t) {
    float const* const h = inner.data() + t * width;
    float const* const x = directions.row(static_cast<std::int64_t>(t));
    std::fill(of_inner.begin(), of_inner.end(), 0.0f);
    for (std::size_t e = 0; e < width; ++e) {
      auto const logit = static_cast<double>(z[t * width + e]);
      auto const target = static_cast<double>(targets.row(static_cast<std::int64_t>(t))[e]);
      result.loss += detail::cross_entropy(logit, target) * share;
      of_logits[e] = static_cast<float>((1.0 / (1.0 + std::exp(-logit)) - target) * share);
    }
    for (std::size_t e = 0; e < width; ++e) {
      float const gradient = of_logits[e];
      float* const to = result.output_weight.data() + e * width;
      float const* const row = of.output_weight.data() + e * width;
      for (std::size_t j = 0; j < width; ++j) {
        to[j] += gradient * h[j];
        of_inner[j] += gradient * row[j];
      }
    }
    for (std::size_t j = 0; j < width; ++j) {
      float const gradient = of_inner[j] * (1.0f - h[j] * h[j]);
      float* const to = result.weight.data() + j * hidden;
      for (std::size_t c = 0; c < hidden; ++c) to[c] += gradient * x[c];
    }
  }
  return result;
}

/// What a training ends with: the selector of the best epoch, and that epoch's numbers.
struct trained_selector {
  selector best;
  int epoch = 0;               ///< from 1; 0: the one that it began with
  double captured_mass = 0.0;  ///< of the validation tokens
};

/// Trains a selector to predict the masses of experts, [tokens, experts] (`expert_masses`), from tokens [tokens, hidden].
///
/// The target is the mass divided by the largest of the batch, the loss the cross entropy of the logits' sigmoids, the optimiser Adam
/// (betas 0.9 and 0.999). After each epoch the captured mass of the last tokens, which are not trained on, is measured, and the selector of
/// the best epoch is kept; the published code keeps the second best one, by a slip. The same seed gives the same result.
/// Throws where sizes do not fit each other, or there is not at least one token to train on and one to validate with.
inline trained_selector train_selector(selector from, view<float const> const& tokens, view<float const> const& masses,
                                       selector_training const& settings = {}) {
  auto const experts = static_cast<std::size_t>(from.experts), hidden = static_cast<std::size_t>(from.hidden);
  if (tokens.columns != from.hidden || masses.columns != from.experts || masses.rows != tokens.rows) {
    fail("moefication::train_selector",
         "tokens x " + std::to_string(from.hidden) + " and tokens x " + std::to_string(from.experts) + " numbers",
         std::to_string(tokens.rows) + " x " + std::to_string(tokens.columns) + " and " + std::to_string(masses.rows) +
             " x " + std::to_string(masses.columns));
  }
  if (!(settings.validation_share > 0.0 && settings.validation_share < 1.0) || settings.batch < 1) {
    fail("moefication::train_selector, settings", "a validation_share between 0 and 1, and a batch of at least 1",
         std::to_string(settings.validation_share) + " and " + std::to_string(settings.batch));
  }
  auto const validated = static_cast<std::int64_t>(static_cast<double>(tokens.rows) * settings.validation_share);
  std::int64_t const trained = tokens.rows - validated;
  if (validated < 1 || trained < 1) {
    fail("moefication::train_selector, tokens", "at least one to train on and one to validate with",
         std::to_string(tokens.rows));
  }
  std::vector<float> const directions = normalised_rows(tokens);
  view<float const> const last{directions.data() + static_cast<std::size_t>(trained) * hidden, validated,
                               tokens.columns};
  view<float const> const last_masses{masses.row(trained), validated, masses.columns, masses.row_stride};
  int const chosen = std::max(1, static_cast<int>(static_cast<double>(from.experts) * settings.chosen_share));
  auto const validate = [&](selector const& of) {
    std::vector<float> const z = detail::logits_of(of, last, nullptr);
    return captured_mass(last_masses, best_experts({z.data(), validated, masses.columns}, chosen).experts, chosen);
  };

  trained_selector result{.best = from, .epoch = 0, .captured_mass = validate(from)};
  struct moments {
    std::vector<double> first, second;
  };
  auto const zeros = [](std::vector<float> const& of) {
    return moments{std::vector<double>(of.size()), std::vector<double>(of.size())};
  };
  moments of_weight = zeros(from.weight), of_output = zeros(from.output_weight);
  double first_power = 1.0, second_power = 1.0;  // of the betas
  auto const step = [&](std::vector<float>& weight, std::vector<float> const& gradient, moments& m) {
    for (std::size_t i = 0; i < weight.size(); ++i) {
      auto const g = static_cast<double>(gradient[i]);
      m.first[i] = 0.9 * m.first[i] + 0.1 * g;
      m.second[i] = 0.999 * m.second[i] + 0.001 * g * g;
      double const mean = m.first[i] / (1.0 - first_power), square = m.second[i] / (1.0 - second_power);
      weight[i] = static_cast<float>(static_cast<double>(weight[i]) -
                                     settings.learning_rate * mean / (std::sqrt(square) + 1e-8));
    }
  };

  std::vector<std::int64_t> order(static_cast<std::size_t>(trained));
  std::iota(order.begin(), order.end(), 0);
  std::vector<float> batch, targets;
  for (int epoch = 1; epoch <= settings.epochs; ++epoch) {
    counter_random const random{.seed = settings.seed, .stream = static_cast<std::uint64_t>(epoch)};
    for (std::size_t i = order.size(); i > 1; --i) {
      // 2^24 uniform numbers are too few to reach every place of more tokens.
      std::uint64_t const word = random.block(i).word[0] | (std::uint64_t{random.block(i).word[1]} << 32);
      std::swap(order[i - 1], order[static_cast<std::size_t>(word % i)]);
    }
    double loss = 0.0;
    int batches = 0;
    for (std::int64_t begin = 0; begin < trained; begin += settings.batch) {
      std::int64_t const count = std::min<std::int64_t>(settings.batch, trained - begin);
      batch.clear();
      targets.clear();
      float most = 0.0f;
      for (std::int64_t i = begin; i < begin + count; ++i) {
        std::int64_t const token = order[static_cast<std::size_t>(i)];
        float const* const x = directions.data() + static_cast<std::size_t>(token) * hidden;
        batch.insert(batch.end(), x, x + hidden);
        targets.insert(targets.end(), masses.row(token), masses.row(token) + experts);
      }
      for (float mass : targets) most = std::max(most, mass);
      for (float& mass : targets) mass = most > 0.0f ? mass / most : 0.0f;
      selector_gradient const gradient =
          selector_loss(from, {batch.data(), count, tokens.columns}, {targets.data(), count, masses.columns});
      first_power *= 0.9;
      second_power *= 0.999;
      step(from.weight, gradient.weight, of_weight);
      step(from.output_weight, gradient.output_weight, of_output);
      loss += gradient.loss;
      ++batches;
    }
    double const captured = validate(from);
    if (captured > result.captured_mass) result = {.best = from, .epoch = epoch, .captured_mass = captured};
    if (settings.progress) settings.progress({epoch, settings.epochs, loss / batches, captured});
  }
  return result;
}

}  // namespace switchyard::moefication
