#include "support/random_problem.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <vector>

#include "support/margins.hpp"
#include "support/random_numbers.hpp"

namespace support {
namespace {

/// Random numbers of a deviation that the element type holds exactly.
reference::numbers random_elements(any_layer const& layer, random_numbers& random, std::size_t count,
                                   double deviation) {
  reference::numbers values(count);
  for (double& v : values) v = deviation * random.normal();
  std::vector<std::byte> stored(count * layer.element_bytes);
  std::vector<float> loaded(count);
  layer.store(values.data(), count, stored.data());
  layer.load(stored.data(), count, loaded.data());
  return {loaded.begin(), loaded.end()};
}

/// Random numbers that a float holds exactly.
reference::numbers random_floats(random_numbers& random, std::size_t count, double deviation) {
  reference::numbers values(count);
  for (double& v : values) v = static_cast<float>(deviation * random.normal());
  return values;
}

/// The same that the elements of the router's weight hold exactly.
reference::numbers random_router(any_layer const& layer, random_numbers& random, std::size_t count, double deviation) {
  reference::numbers values = random_floats(random, count, deviation);
  std::vector<std::byte> stored(count * layer.router.weight_bytes);
  std::vector<float> loaded(count);
  layer.store_router(values.data(), count, stored.data());
  layer.load_router(stored.data(), count, loaded.data());
  return {loaded.begin(), loaded.end()};
}

/// Clusters of which one in four has no token.
void draw_labels(problem& p, random_numbers& random) {
  p.inputs.label_choices = 2;
  for (std::size_t t = 0; t < p.tokens.size() / p.config.hidden; ++t) {
    int label = 0;
    do label = random.below(p.config.experts);
    while (label % 4 == 1);
    p.inputs.labels.insert(p.inputs.labels.end(), {label, random.below(p.config.experts)});
  }
}

/// Draws tokens again until no decision of a layer hangs on rounding where each depends on all tokens: by the weights of the features of
/// clusters, or by a balance of the experts.
void redraw_until_clear(problem& p, random_numbers& random) {
  reference::config const& c = p.config;
  std::size_t const hidden = c.hidden, tokens = p.tokens.size() / hidden;
  for (int round = 0; round < 10000; ++round) {
    reference::numbers seen = p.tokens;
    if (c.clusters.scales) {
      seen = reference::scaled_tokens(c, seen, p.inputs, reference::cluster_features(c, seen, p.inputs).scale);
    }
    reference::numbers const logits = reference::router_logits(c, p.weights, seen);
    reference::numbers const correction =
        c.balancing_iterations > 0 ? reference::balancing_bias(c, logits) : p.weights.correction_bias;
    bool clear = true;
    std::vector<double> queue;
    for (std::size_t t = 0; t < tokens; ++t) {
      reference::numbers const mine(logits.begin() + t * c.experts, logits.begin() + (t + 1) * c.experts);
      std::vector<std::uint8_t> masked;
      if (!p.inputs.masked.empty()) {
        masked.assign(p.inputs.masked.begin() + t * c.experts, p.inputs.masked.begin() + (t + 1) * c.experts);
      }
      double const priority = reference::route(c, mine, correction, masked).priority;
      auto const close = [&](double other) { return std::abs(other - priority) < least_queue_margin; };
      bool const tied = c.order == reference::queue::priority && std::any_of(queue.begin(), queue.end(), close);
      queue.push_back(priority);
      if (!tied && choice_is_clear(c, mine, correction, least_margin, masked)) continue;
      clear = false;
      reference::numbers token = random_elements(*p.layer, random, hidden, 1.0);
      token[0] = 1.0;
      std::copy(token.begin(), token.end(), p.tokens.begin() + t * hidden);
    }
    if (clear) return;
  }
  throw std::logic_error("no tokens with a margin: " + p.layer->name);
}

/// The same for a layer with strata, whose later passes see what earlier ones made, stored as elements.
void redraw_until_each_pass_is_clear(problem& p, random_numbers& random) {
  reference::config const& c = p.config;
  std::size_t const hidden = c.hidden;
  for (int round = 0; round < 10000; ++round) {
    std::vector<std::int64_t> unclear;
    for (reference::result::pass const& pass : reference::forward(c, p.weights, p.tokens, p.inputs).made) {
      reference::config of_pass = c;
      int closed = 0;
      std::size_t router_row = 0;
      for (int i = 0; i < pass.stratum; ++i) {
        router_row += c.experts - closed;
        closed += c.strata[i];
      }
      of_pass.experts = c.experts - closed;
      of_pass.top_k = std::min(c.top_k, of_pass.experts);
      reference::numbers correction = p.weights.correction_bias;
      if (!correction.empty()) {
        correction.assign(p.weights.correction_bias.begin() + router_row,
                          p.weights.correction_bias.begin() + router_row + of_pass.experts);
      }
      double const margin = pass.stratum > 0 && p.layer->element_bytes < 4 ? 2e-2 : least_margin;
      std::vector<double> queue;
      for (std::size_t row = 0; row < pass.tokens.size(); ++row) {
        auto const first = pass.logits.begin() + row * of_pass.experts;
        reference::numbers const mine(first, first + of_pass.experts);
        double const priority = reference::route(of_pass, mine, correction).priority;
        auto const close = [&](double other) { return std::abs(other - priority) < least_queue_margin; };
        bool const tied = c.order == reference::queue::priority && std::any_of(queue.begin(), queue.end(), close);
        queue.push_back(priority);
        if (tied || !choice_is_clear(of_pass, mine, correction, margin)) unclear.push_back(pass.tokens[row]);
      }
    }
    if (unclear.empty()) return;
    for (std::int64_t t : unclear) {
      reference::numbers token = random_elements(*p.layer, random, hidden, 1.0);
      token[0] = 1.0;
      std::copy(token.begin(), token.end(), p.tokens.begin() + t * hidden);
    }
  }
  throw std::logic_error("no tokens with a margin: " + p.layer->name);
}

}  // namespace

problem random_problem(any_layer const& layer, std::int64_t tokens, routing where, unsigned seed) {
  random_numbers random(seed);
  problem p;
  p.layer = &layer;
  p.config = layer.reference;
  reference::config const& c = p.config;
  std::size_t const matrix = std::size_t(c.hidden) * c.intermediate;
  double const in = 1.0 / std::sqrt(c.hidden), out = 1.0 / std::sqrt(c.intermediate);
  auto const elements = [&](std::size_t count, double deviation) {
    return random_elements(layer, random, count, deviation);
  };
  reference::weights& w = p.weights;
  std::size_t const with_rows = reference::experts_with_rows(c);
  w.up_proj = elements(with_rows * matrix, in);
  w.down_proj = elements(with_rows * matrix, out);
  // Norms that change the order of units.
  for (std::size_t i = 0; c.norm_compensated && i < w.down_proj.size(); ++i) {
    w.down_proj[i] *= std::ldexp(1.0, static_cast<int>(i % std::size_t(c.intermediate) % 3) - 1);
  }
  if (c.gated) w.gate_proj = elements(with_rows * matrix, in);
  if (layer.expert.bias) {
    w.up_bias = elements(with_rows * c.intermediate, 0.5);
    w.down_bias = elements(with_rows * c.hidden, 0.5);
    if (c.gated) w.gate_bias = elements(with_rows * c.intermediate, 0.5);
  }
  if (c.shared_intermediate > 0) {
    std::size_t const shared = std::size_t(c.hidden) * c.shared_intermediate;
    w.shared_up_proj = elements(shared, in);
    w.shared_down_proj = elements(shared, 1.0 / std::sqrt(c.shared_intermediate));
    if (c.gated) w.shared_gate_proj = elements(shared, in);
    if (layer.expert.gate == sy::shared_gate::sigmoid) w.shared_gate = elements(c.hidden, in);
  }
  if (c.output_bias) w.output_bias = elements(c.hidden, 0.5);
  w.constant_vectors = elements(std::size_t(c.constant_experts + c.mixed_constant_experts) * c.hidden, 1.0);
  w.constant_mixing = elements(std::size_t(c.mixed_constant_experts) * 2 * c.hidden, in);

  // The first feature of every token is 1, so the first column of the router weight moves all tokens.
  int const hot = c.experts / 2;
  auto const closed = [&](int e) {
    return where == routing::half_of_the_experts && e >= std::max(c.top_k, c.experts / 2);
  };
  if (c.scores != reference::score::precomputed) {
    std::size_t const rows = reference::router_rows(c), width = c.router_width > 0 ? c.router_width : c.hidden;
    w.router = random_router(layer, random, rows * width, in);
    for (int e = 0; e < c.experts; ++e) {  // with strata: of the first gate
      double& constant = w.router[std::size_t(e) * width];
      if (closed(e)) constant = -8.0;
      if (where == routing::one_expert && e == hot) constant = 5.0;
      if (where == routing::one_expert && e == hot && c.select_by == reference::selector::center_distances) {
        std::fill_n(&constant, width, 0.0);  // nearer to every direction than centers of length 1 are
        constant = 0.125;
      }
    }
    if (c.select_by == reference::selector::network) {
      w.selector_output = random_floats(random, std::size_t(c.experts) * c.experts, 0.1);
      for (int e = 0; e < c.experts; ++e) w.selector_output[std::size_t(e) * (c.experts + 1)] = 2.0;
    }
    if (layer.router.bias) w.router_bias = random_floats(random, rows, 0.5);
    if (layer.router.correction_bias) w.correction_bias = random_floats(random, rows, 0.1);
  }
  if (!c.strata.empty()) {
    w.norm_weight = random_floats(random, c.strata.size() * c.hidden, 0.2);
    for (double& v : w.norm_weight) v = static_cast<float>(v + 1.0);
    w.norm_bias = random_floats(random, c.strata.size() * c.hidden, 0.2);
    p.inputs.residual = elements(std::size_t(tokens) * c.hidden, 1.0);
  }

  double const dropout = layer.router.expert_dropout;
  if (dropout > 0.0) p.dropout = {.seed = seed + 100, .first_token = 1000};
  std::vector<std::uint8_t> not_allowed;
  for (int e = 0; layer.router.restricted && e < c.experts; ++e)
    not_allowed.push_back(e != hot && random.below(2) == 0);
  auto const masked = [&](std::int64_t token) {
    std::vector<std::uint8_t> of_token = not_allowed;
    sy::counter_random const random_of{p.dropout.seed.value, std::uint64_t{1} << 63};
    for (int e = 0; dropout > 0.0 && e < c.experts; ++e) {
      std::int64_t const number = (p.dropout.first_token + token) * c.experts + e;
      of_token.push_back(random_of.uniform(static_cast<std::uint64_t>(number)) < static_cast<float>(dropout));
    }
    return of_token;
  };

  // What stands between the products is rounded to elements by some backends.
  double const units_margin = layer.element_bytes < 4 ? 1e-2 : least_margin;
  auto const units_clear = [&](reference::numbers const& token, reference::choice const& chosen) {
    for (int k = 0; c.kept_units > 0 && k < c.top_k; ++k) {
      if (chosen.ids[k] >= reference::experts_with_rows(c)) continue;
      reference::numbers input = token;
      if (c.weight_on_input) {
        for (double& v : input) v *= chosen.weights[k];
      }
      reference::numbers const inner = reference::inner_values(c, w, chosen.ids[k], input);
      if (!units_are_clear(reference::unit_ranks(c, w, chosen.ids[k], inner), c.kept_units, units_margin)) return false;
    }
    return true;
  };

  bool const takes_ids = c.scores == reference::score::precomputed || c.given_ids;
  std::vector<double> queue;
  int tries = 0;
  for (std::int64_t t = 0; t < tokens;) {
    if (++tries > 100000) throw std::logic_error("no tokens with a margin: " + layer.name);
    reference::numbers token = elements(c.hidden, 1.0);
    token[0] = 1.0;
    reference::choice chosen;
    if (!c.strata.empty()) {
      p.tokens.insert(p.tokens.end(), token.begin(), token.end());
      ++t;
      continue;
    }
    reference::numbers seen = token;  // by the router
    if (c.router_width > 0) {
      seen = elements(c.router_width, 1.0);
      seen[0] = 1.0;
    }
    if (takes_ids) {
      int const open = where == routing::half_of_the_experts ? std::max(c.top_k, c.experts / 2) : c.experts;
      while (static_cast<int>(chosen.ids.size()) < c.top_k) {
        int const id = where == routing::one_expert && chosen.ids.empty() ? hot : random.below(open);
        if (std::find(chosen.ids.begin(), chosen.ids.end(), id) == chosen.ids.end()) chosen.ids.push_back(id);
      }
      if (c.given_ids) {
        chosen = reference::weigh(c, reference::router_logits(c, w, seen), chosen.ids);
      } else {
        chosen.weights = random_floats(random, c.top_k, 1.0);
        if (layer.router.by_words) chosen.weights.assign(c.top_k, 1.0);
        for (double& v : chosen.weights) v = c.predicted ? std::abs(v) : v;  // probabilities, in no order
        chosen.priority = chosen.weights[0];
      }
    } else {
      reference::numbers const logits = reference::router_logits(c, w, seen);
      if (!choice_is_clear(c, logits, w.correction_bias, least_margin, masked(t))) continue;
      chosen = reference::route(c, logits, w.correction_bias, masked(t));
    }
    if (!units_clear(token, chosen)) continue;
    if (c.order == reference::queue::priority) {
      auto const close = [&](double other) { return std::abs(other - chosen.priority) < least_queue_margin; };
      if (std::any_of(queue.begin(), queue.end(), close)) continue;
      queue.push_back(chosen.priority);
    }
    if (c.router_width > 0) p.inputs.router_tokens.insert(p.inputs.router_tokens.end(), seen.begin(), seen.end());
    if (takes_ids) {
      p.inputs.ids.insert(p.inputs.ids.end(), chosen.ids.begin(), chosen.ids.end());
      p.inputs.id_weights.insert(p.inputs.id_weights.end(), chosen.weights.begin(), chosen.weights.end());
    }
    std::vector<std::uint8_t> const mask = masked(t);
    p.inputs.masked.insert(p.inputs.masked.end(), mask.begin(), mask.end());
    p.tokens.insert(p.tokens.end(), token.begin(), token.end());
    ++t;
  }
  if (c.clusters.scales) draw_labels(p, random);
  if (c.clusters.scales || c.balancing_iterations > 0) redraw_until_clear(p, random);
  if (!c.strata.empty()) redraw_until_each_pass_is_clear(p, random);
  return p;
}

}  // namespace support
