#include "support/row_layers.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "support/random_numbers.hpp"

namespace support {
namespace {

double activated(std::string_view activation, double x) {
  if (activation == "relu") return std::max(x, 0.0);
  if (activation == "gelu") return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
  throw std::invalid_argument("row_reference: an activation that it does not know");
}

double dot(double const* a, double const* b, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

/// matrix x + bias.
reference::numbers mapped(reference::numbers const& matrix, reference::numbers const& bias, double const* x,
                          int columns) {
  reference::numbers out;
  for (std::size_t row = 0; row < matrix.size() / columns; ++row) {
    out.push_back(dot(matrix.data() + row * columns, x, columns) + (bias.empty() ? 0.0 : bias[row]));
  }
  return out;
}

/// Scores of all experts for each list of a token.
std::vector<reference::numbers> all_scores(row_problem const& p, double const* token) {
  int const half = p.width / 2;
  std::vector<reference::numbers> lists(static_cast<std::size_t>(p.lists()),
                                        reference::numbers(static_cast<std::size_t>(p.keys) * p.keys));
  for (int h = 0; h < p.heads; ++h) {
    reference::numbers q(token, token + (p.query.empty() ? p.width : 0));
    for (int i = 0; !p.query.empty() && i < p.width; ++i) {
      std::size_t const row = static_cast<std::size_t>(h) * p.width + i;
      q.push_back(dot(p.query.data() + row * p.hidden, token, p.hidden) +
                  (p.query_bias.empty() ? 0.0 : p.query_bias[row]));
    }
    reference::numbers& scores = lists[p.sums_heads ? 0 : h];
    for (int i = 0; i < p.keys; ++i) {
      std::size_t const first = (static_cast<std::size_t>(h) * p.keys + i) * half;
      double const u = dot(p.first_keys.data() + first, q.data(), half);
      for (int j = 0; j < p.keys; ++j) {
        std::size_t const second = (static_cast<std::size_t>(h) * p.keys + j) * half;
        scores[static_cast<std::size_t>(i) * p.keys + j] +=
            u + dot(p.second_keys.data() + second, q.data() + half, half);
      }
    }
  }
  return lists;
}

}  // namespace

row_outcome row_reference(row_problem const& p) {
  row_outcome out;
  std::size_t const hidden = p.hidden, kept = p.top_k / p.lists();
  out.load.assign(p.down.size() / hidden, 0);
  for (std::size_t t = 0; t < static_cast<std::size_t>(p.count()); ++t) {
    double const* const token = p.tokens.data() + t * hidden;
    reference::numbers y(hidden);
    bool const active = p.active.empty() || p.active[t];
    std::vector<int> ids;
    reference::numbers weights, scores;
    if (!p.ids.empty()) {
      ids.assign(p.ids.begin() + t * p.top_k, p.ids.begin() + (t + 1) * p.top_k);
      weights.assign(p.id_weights.begin() + t * p.top_k, p.id_weights.begin() + (t + 1) * p.top_k);
      for (std::size_t k = 0; k < ids.size(); ++k) weights[k] = ids[k] < 0 ? 0.0 : weights[k];
    } else {
      for (reference::numbers const& list : all_scores(p, token)) {
        std::vector<int> order(list.size());
        std::iota(order.begin(), order.end(), 0);
        if (kept < list.size())
          std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return list[a] > list[b]; });
        double const largest = *std::max_element(list.begin(), list.end());
        double total = 0;
        for (std::size_t k = 0; k < kept; ++k) total += std::exp(list[order[k]] - largest);
        for (std::size_t k = 0; k < kept; ++k) {
          double const score = list[order[k]];
          ids.push_back(order[k]);
          scores.push_back(score);
          weights.push_back(p.softmax ? std::exp(score - largest) / total : std::max(score, 0.0));
        }
      }
    }
    for (std::size_t k = 0; k < ids.size(); ++k) {
      if (!active) ids[k] = -1, weights[k] = 0;
      if (!active && !scores.empty()) scores[k] = 0;
      if (ids[k] < 0) continue;
      ++out.load[ids[k]];
      double const unit =
          p.up.empty() ? 1.0 : activated(p.activation, dot(p.up.data() + ids[k] * hidden, token, p.hidden));
      for (std::size_t i = 0; i < hidden; ++i) y[i] += weights[k] * unit * p.down[ids[k] * hidden + i];
    }
    if (active && !p.projection.empty()) {
      reference::numbers const z = mapped(p.projection_gate, p.projection_gate_bias, token, p.hidden);
      for (std::size_t i = 0; i < hidden; ++i) y[i] *= z[i] * reference::sigmoid(z[i]);
      y = mapped(p.projection, p.projection_bias, y.data(), p.hidden);
    }
    if (active && !p.gate.empty()) {
      double const z = dot(p.gate.data(), token, p.hidden) + (p.gate_bias.empty() ? 0.0 : p.gate_bias[0]);
      for (double& v : y) v *= reference::sigmoid(z);
    }
    out.output.insert(out.output.end(), y.begin(), y.end());
    out.experts.insert(out.experts.end(), ids.begin(), ids.end());
    out.weights.insert(out.weights.end(), weights.begin(), weights.end());
    out.scores.insert(out.scores.end(), scores.begin(), scores.end());
  }
  return out;
}

int unclear_choices(row_problem const& p, double margin) {
  std::size_t const kept = p.top_k / p.lists();
  int unclear = 0;
  for (std::int64_t t = 0; t < p.count(); ++t) {
    for (reference::numbers list : all_scores(p, p.tokens.data() + t * p.hidden)) {
      std::sort(list.begin(), list.end(), std::greater<>());
      for (std::size_t k = 0; k + 1 < list.size() && k < kept && kept < list.size(); ++k) {
        unclear += list[k] - list[k + 1] < margin * (1.0 + std::abs(list[k])) ? 1 : 0;
      }
    }
  }
  return unclear;
}

row_problem random_rows(row_words const& words, void (*round)(reference::numbers&), std::int64_t tokens,
                        unsigned seed) {
  random_numbers random(seed);
  auto const normals = [&](std::size_t count, double deviation) {
    reference::numbers values(count);
    for (double& v : values) v = static_cast<float>(deviation * random.normal());
    return values;
  };
  auto const elements = [&](std::size_t count, double deviation) {
    reference::numbers values = normals(count, deviation);
    round(values);
    return values;
  };
  row_problem p;
  p.hidden = words.hidden;
  p.keys = words.keys;
  p.heads = words.heads;
  p.top_k = words.top_k;
  p.width = words.width;
  p.sums_heads = words.sums_heads;
  p.softmax = words.softmax;
  p.activation = words.activation;
  std::size_t const d = words.hidden, experts = static_cast<std::size_t>(words.keys) * words.keys;
  std::size_t const queries = static_cast<std::size_t>(words.heads) * words.width;
  double const in = 1.0 / std::sqrt(double(words.hidden));
  if (words.projected) {
    p.query = normals(queries * d, in);
    p.query_bias = normals(queries, 0.3);
  }
  std::size_t const table = static_cast<std::size_t>(words.heads) * words.keys * (words.width / 2);
  p.first_keys = normals(table, 1.0 / std::sqrt(words.width / 2.0));
  p.second_keys = normals(table, 1.0 / std::sqrt(words.width / 2.0));
  if (!words.activation.empty()) p.up = elements(experts * d, in);
  p.down = elements(experts * d, 1.0);
  if (words.gated) {
    p.gate = elements(d, in);
    p.gate_bias = elements(1, 0.5);
  }
  if (words.projects_output) {
    p.projection_gate = elements(d * d, in);
    p.projection_gate_bias = elements(d, 0.5);
    p.projection = elements(d * d, in);
    p.projection_bias = elements(d, 0.5);
  }
  for (std::int64_t t = 0; t < tokens;) {
    reference::numbers const token = elements(d, 1.0);
    row_problem one = p;
    one.tokens = token;
    if (unclear_choices(one, 2e-6) > 0) continue;
    p.tokens.insert(p.tokens.end(), token.begin(), token.end());
    ++t;
  }
  return p;
}

}  // namespace support
