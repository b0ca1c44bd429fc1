#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>
#include <vector>

/// SiDA in float64, written from the publication: Du et al. 2024, SiDA-MoE: Sparsity-Inspired Data-Aware Serving.
namespace sida_reference {

using numbers = std::vector<double>;

inline double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

inline numbers softmax(numbers x) {
  double const largest = *std::max_element(x.begin(), x.end());
  double total = 0.0;
  for (double& v : x) total += v = std::exp(v - largest);
  for (double& v : x) v /= total;
  return x;
}

/// Positions of the largest, largest first; of equal ones the lower first.
inline std::vector<std::size_t> largest(numbers const& x, std::size_t count) {
  std::vector<std::size_t> order(x.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return x[a] > x[b]; });
  order.resize(count);
  return order;
}

/// With z sorted: support = max{ j : 1 + j z_j > z_1 + ... + z_j }, tau = (z_1 + ... + z_support - 1) / support, max(z - tau, 0). The
/// published code subtracts 1 twice.
inline numbers sparsemax(numbers z, bool published) {
  numbers sorted = z;
  std::sort(sorted.rbegin(), sorted.rend());
  double sum = 0.0, of_support = 0.0, support = 0.0;
  for (std::size_t j = 1; j <= sorted.size(); ++j) {
    sum += sorted[j - 1];
    if (1.0 + static_cast<double>(j) * sorted[j - 1] > sum) {
      support = static_cast<double>(j);
      of_support = sum;
    }
  }
  double const tau = (of_support - (published ? 2.0 : 1.0)) / support;
  for (double& v : z) v = std::max(v - tau, 0.0);
  return z;
}

struct linear {
  numbers weight, bias;  // [outputs, inputs], [outputs]

  numbers operator()(numbers const& x) const {
    numbers y = bias;
    for (std::size_t o = 0; o < y.size(); ++o) {
      for (std::size_t i = 0; i < x.size(); ++i) y[o] += weight[o * x.size() + i] * x[i];
    }
    return y;
  }
};

struct network {
  std::size_t embedding = 0, hidden = 0, experts = 0;
  linear compress;
  std::vector<std::pair<linear, linear>>
      lstm;  // of the input and of the last output; gates: input, forget, cell, output
  linear residual;
  std::vector<linear> heads;
  bool published = false;
};

struct prediction {
  numbers lstm_output, attention,
      logits;  // [sequences, length, hidden], [sequences, length, length], [layers, rows, experts]
};

inline prediction predict(network const& by, numbers const& x, std::size_t sequences, std::size_t length) {
  std::size_t const width = by.hidden, rows = sequences * length;
  prediction result;
  result.logits.resize(by.heads.size() * rows * by.experts);
  for (std::size_t s = 0; s < sequences; ++s) {
    std::vector<numbers> c, o;
    for (std::size_t t = 0; t < length; ++t) {
      auto const first = x.begin() + static_cast<std::ptrdiff_t>((s * length + t) * by.embedding);
      o.push_back(by.compress({first, first + static_cast<std::ptrdiff_t>(by.embedding)}));
      for (double& v : o.back()) v = std::max(v, 0.0);
    }
    c = o;
    for (auto const& [of_input, of_output] : by.lstm) {
      numbers h(width, 0.0), cell(width, 0.0);
      for (numbers& row : o) {
        numbers const a = of_input(row), b = of_output(h);
        for (std::size_t i = 0; i < width; ++i) {
          auto const gate = [&](std::size_t which) { return a[which * width + i] + b[which * width + i]; };
          cell[i] = sigmoid(gate(1)) * cell[i] + sigmoid(gate(0)) * std::tanh(gate(2));
          h[i] = sigmoid(gate(3)) * std::tanh(cell[i]);
        }
        row = h;
      }
    }
    for (std::size_t t = 0; t < length; ++t) {
      result.lstm_output.insert(result.lstm_output.end(), o[t].begin(), o[t].end());
      numbers weights;
      for (numbers const& key : o) weights.push_back(std::inner_product(key.begin(), key.end(), o[t].begin(), 0.0));
      weights = sparsemax(weights, by.published);
      double const total = std::accumulate(weights.begin(), weights.end(), 0.0);
      numbers context = by.residual(c[t]);
      for (std::size_t k = 0; k < length; ++k) {
        weights[k] /= total;
        for (std::size_t i = 0; i < width; ++i) context[i] += weights[k] * o[k][i];
      }
      result.attention.insert(result.attention.end(), weights.begin(), weights.end());
      for (std::size_t layer = 0; layer < by.heads.size(); ++layer) {
        numbers const logits = by.heads[layer](context);
        std::size_t const at = (layer * rows + s * length + t) * by.experts;
        std::copy(logits.begin(), logits.end(), result.logits.begin() + static_cast<std::ptrdiff_t>(at));
      }
    }
  }
  return result;
}

struct losses {
  double loss = 0.0, distillation = 0.0, cross_entropy = 0.0;
};

/// Logits [rows, experts]; the K largest entries of each row of the teacher are compared.
inline losses truncated_distillation(numbers const& student, numbers const& teacher, std::size_t experts,
                                     std::size_t kept, double weight) {
  auto const rows = static_cast<double>(student.size() / experts);
  kept = std::min(kept, experts);
  losses result;
  for (std::size_t first = 0; first < student.size(); first += experts) {
    auto const row = [&](numbers const& from) {
      return numbers(from.begin() + static_cast<std::ptrdiff_t>(first),
                     from.begin() + static_cast<std::ptrdiff_t>(first + experts));
    };
    numbers const z = row(student), right = row(teacher);
    numbers mine, theirs;
    for (std::size_t e : largest(right, kept)) {
      mine.push_back(z[e]);
      theirs.push_back(right[e]);
    }
    mine = softmax(mine);
    theirs = softmax(theirs);
    for (std::size_t i = 0; i < kept; ++i) {
      result.distillation += std::abs(mine[i] - theirs[i]) / (rows * static_cast<double>(kept));
    }
    result.cross_entropy -= std::log(softmax(z)[largest(right, 1)[0]]) / rows;
  }
  result.loss = result.distillation + weight * result.cross_entropy;
  return result;
}

}  // namespace sida_reference
