#pragma once

#include <switchyard/backend/cpu/kernels.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/exponential.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/sida/sparsemax.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace switchyard::sida {

/// The weights of a linear map.
struct linear {
  float const* weight = nullptr;  ///< [outputs, inputs]
  float const* bias = nullptr;    ///< [outputs]
};

/// The weights of an LSTM layer. Rows are those of the input, forget, cell and output gates, one after the other; both biases are added.
struct lstm {
  float const *weight_ih = nullptr, *weight_hh = nullptr;  ///< [4 hidden, hidden]
  float const *bias_ih = nullptr, *bias_hh = nullptr;      ///< [4 hidden]
};

/// The network that predicts, from the embeddings of whole sequences, which experts each token will be sent to in every layer:
///
///   c = relu(compress x)                       embedding -> hidden
///   o = the LSTM layers over time, from zero   hidden -> hidden
///   a = SparseMax of each row of o o^T, over all positions of the sequence, divided by its sum
///   logits of layer l = head l (a o + residual c)
///
/// Attention is not causal: a token's prediction sees the tokens after it. Weights are the caller's.
/// Source: Du et al. 2024, SiDA-MoE: Sparsity-Inspired Data-Aware Serving, and its code (SimpleLSTMClassifierSparseAttention).
struct predictor {
  int embedding = 0;  ///< width of what it sees
  int hidden = 0;
  int experts = 0;  ///< of each layer
  linear compress = {};
  std::span<lstm const> lstm_layers = {};  ///< two, as published
  linear residual = {};
  std::span<linear const> heads = {};  ///< one for each layer of the model that has experts
  sparsemax_form form = sparsemax_form::correct;
};

namespace detail {

/// Sequences that go through time together, and time steps whose input products are made at once.
inline constexpr std::int64_t together = 16, steps_at_once = 32;
inline constexpr std::int64_t attention_rows = 32;

struct prediction_memory {
  std::int64_t sequences, steps;
  float *first, *second;     // [sequences, length, hidden]: what one step of the network reads and the next one writes
  float* sums;               // [sequences, length, hidden]: the residual, to which attention is added
  float *gates, *recurrent;  // [sequences, steps, 4 hidden], [sequences, 4 hidden]
  float* cell;               // [sequences, hidden]
  float* scores;             // [attention rows, length]

  constexpr prediction_memory(carver& from, predictor const& of, std::int64_t count, std::int64_t length)
      : sequences(count < together ? count : together),
        steps(length < steps_at_once ? length : steps_at_once),
        first(from.take<float>(sequences * length * of.hidden)),
        second(from.take<float>(sequences * length * of.hidden)),
        sums(from.take<float>(sequences * length * of.hidden)),
        gates(from.take<float>(sequences * steps * 4 * of.hidden)),
        recurrent(from.take<float>(sequences * 4 * of.hidden)),
        cell(from.take<float>(sequences * of.hidden)),
        scores(from.take<float>(attention_rows * length)) {}
};

/// to[row] = x[row] times the weight, plus the bias if there is one; rows of `to` are dense.
inline void multiply(view<float const> const& x, linear const& by, int outputs, cpu_context const& context, float* to) {
  cpu::make_logits<float, float>(
      {.tokens = x, .hidden = static_cast<int>(x.columns), .experts = outputs, .weight = by.weight, .bias = by.bias},
      context, to);
}

/// Replaces values by their sigmoids.
inline void sigmoids(float* values, int count) {
  constexpr int width = 32;
  float e[width];
  for (int first = 0; first < count; first += width) {
    int const some = std::min(width, count - first);
    for (int i = 0; i < some; ++i) e[i] = -values[first + i];
    for (int i = some; i < width; ++i) e[i] = 0.0f;
    exponentials(e);
    for (int i = 0; i < some; ++i) values[first + i] = 1.0f / (1.0f + e[i]);
  }
}
/// The hyperbolic tangents of values, which may stand in the same place.
inline void tangents(float const* values, int count, float* to) {
  constexpr int width = 32;
  float e[width];
  for (int first = 0; first < count; first += width) {
    int const some = std::min(width, count - first);
    for (int i = 0; i < some; ++i) e[i] = 2.0f * values[first + i];
    for (int i = some; i < width; ++i) e[i] = 0.0f;
    exponentials(e);
    for (int i = 0; i < some; ++i) to[first + i] = 1.0f - 2.0f / (1.0f + e[i]);
  }
}

/// One step of one sequence: its gates, [4 hidden], are overwritten.
inline void lstm_step(float* gates, float const* recurrent, int hidden, float* cell, float* output) {
  for (int i = 0; i < 4 * hidden; ++i) gates[i] += recurrent[i];
  float *const input = gates, *const forget = gates + hidden, *const candidate = gates + 2 * hidden,
               *const out = gates + 3 * hidden;
  sigmoids(input, 2 * hidden);  // and forget
  tangents(candidate, hidden, candidate);
  sigmoids(out, hidden);
  for (int i = 0; i < hidden; ++i) cell[i] = forget[i] * cell[i] + input[i] * candidate[i];
  tangents(cell, hidden, output);
  for (int i = 0; i < hidden; ++i) output[i] *= out[i];
}

/// One layer over `count` sequences, [count, length, hidden] each. The input products of many steps are made at once; those of what the
/// layer put out the step before are made step by step, of all sequences together.
inline void run_lstm(lstm const& by, float const* x, std::int64_t count, std::int64_t length, int hidden,
                     cpu_context const& context, prediction_memory const& m, float* to) {
  std::int64_t const sequence = length * hidden, gates = std::int64_t{4} * hidden;
  std::fill(m.cell, m.cell + count * hidden, 0.0f);
  for (std::int64_t begin = 0; begin < length; begin += m.steps) {
    std::int64_t const steps = std::min(m.steps, length - begin);
    for (std::int64_t s = 0; s < count; ++s) {
      multiply({x + s * sequence + begin * hidden, steps, hidden}, {by.weight_ih, by.bias_ih}, 4 * hidden, context,
               m.gates + s * steps * gates);
    }
    for (std::int64_t step = 0; step < steps; ++step) {
      std::int64_t const t = begin + step;
      if (t == 0) {
        for (std::int64_t s = 0; s < count; ++s) std::copy(by.bias_hh, by.bias_hh + gates, m.recurrent + s * gates);
      } else {
        multiply({to + (t - 1) * hidden, count, hidden, sequence}, {by.weight_hh, by.bias_hh}, 4 * hidden, context,
                 m.recurrent);
      }
      cpu::parallel_for(context, count, [&](std::int64_t s) {
        lstm_step(m.gates + (s * steps + step) * gates, m.recurrent + s * gates, hidden, m.cell + s * hidden,
                  to + s * sequence + t * hidden);
      });
    }
  }
}

/// Adds what some positions of a sequence, [length, hidden], attend to, from `begin` on. On request the attention is kept, [rows, length].
inline void attend(predictor const& by, view<float const> const& o, std::int64_t begin, std::int64_t rows,
                   cpu_context const& context, prediction_memory const& m, float* kept, float* to) {
  int const hidden = by.hidden;
  std::int64_t const length = o.rows;
  multiply({o.row(begin), rows, hidden}, {o.data, nullptr}, static_cast<int>(length), context, m.scores);
  cpu::parallel_for(context, rows, [&](std::int64_t r) {
    float* const weights = m.scores + r * length;
    sparsemax({weights, static_cast<std::size_t>(length)}, by.form);
    double total = 0.0;
    for (std::int64_t s = 0; s < length; ++s) total += static_cast<double>(weights[s]);
    auto const scale = static_cast<float>(1.0 / total);
    float* const sum = to + r * hidden;
    for (std::int64_t s = 0; s < length; ++s) {
      if (weights[s] == 0.0f) continue;  // most are
      float const weight = weights[s] *= scale;
      float const* const row = o.row(s);
      for (int h = 0; h < hidden; ++h) sum[h] += weight * row[h];
    }
    if (kept != nullptr) std::copy(weights, weights + length, kept + r * length);
  });
}

inline void check_predictor(predictor const& of, std::int64_t sequences, std::int64_t length) {
  auto const at_least_one = [](char const* name, std::int64_t got) {
    if (got < 1) fail(std::string("sida::predict, ") + name, "at least 1", std::to_string(got));
  };
  at_least_one("embedding", of.embedding);
  at_least_one("hidden", of.hidden);
  at_least_one("experts", of.experts);
  at_least_one("lstm_layers", static_cast<std::int64_t>(of.lstm_layers.size()));
  at_least_one("heads", static_cast<std::int64_t>(of.heads.size()));
  if (sequences < 0) fail("sida::predict, sequences", "0 or more", std::to_string(sequences));
  constexpr std::int64_t longest = std::int64_t{1} << 30;
  if (length < 0 || length > longest) {
    fail("sida::predict, length", "0 to " + std::to_string(longest), std::to_string(length));
  }
}

}  // namespace detail

/// What `predict` reads and writes.
struct predict_args {
  float const* embeddings = nullptr;  ///< [sequences, length, embedding]: rows of the model's embedding table
  std::int64_t sequences = 0, length = 0;
  float* logits = nullptr;  ///< [layers, sequences, length, experts]
  /// At least `predict_workspace_bytes` of them, at a multiple of 16, for this call alone while it runs.
  std::span<std::byte> workspace = {};
  float* lstm_output = nullptr;  ///< [sequences, length, hidden]; null: not wanted
  float* attention = nullptr;    ///< [sequences, length, length], rows with the sum 1; null: not wanted
};

/// Bytes of scratch memory that `predict` needs: the same for any number of sequences from 16 on.
inline std::size_t predict_workspace_bytes(predictor const& by, std::int64_t sequences, std::int64_t length) {
  detail::check_predictor(by, sequences, length);
  carver measure;
  detail::prediction_memory const all(measure, by, sequences, length);
  static_cast<void>(all);
  return measure.bytes();
}

/// Predicts. Allocates nothing. It runs beside inference, on the calling thread unless `context` says otherwise; products use the vector
/// instructions of the CPU backend. The result has the same bits for any number of threads, and a sequence's do not depend on those
/// beside it. Throws `error` for sizes below 1, missing pointers and too little workspace. The matrices are read as they are: a weight
/// that is no number shows in the logits.
inline void predict(predictor const& by, predict_args const& args, cpu_context const& wanted = {.threads = 1}) {
  std::size_t const needed = predict_workspace_bytes(by, args.sequences, args.length);
  if (args.sequences == 0 || args.length == 0) return;
  auto const check = [](void const* pointer, char const* name, char const* shape) {
    if (pointer == nullptr) fail(std::string("sida::predict, ") + name, shape, "a null pointer");
  };
  auto const check_linear = [&](linear const& l, char const* name) {
    check(l.weight, name, "a weight, [outputs, inputs]");
    check(l.bias, name, "a bias, [outputs]");
  };
  check(args.embeddings, "embeddings", "[sequences, length, embedding]");
  check(args.logits, "logits", "[layers, sequences, length, experts]");
  check_linear(by.compress, "compress");
  check_linear(by.residual, "residual");
  for (linear const& head : by.heads) check_linear(head, "heads");
  for (lstm const& layer : by.lstm_layers) {
    for (float const* weight : {layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh}) {
      check(weight, "lstm_layers", "weights, [4 hidden, hidden], and biases, [4 hidden]");
    }
  }
  auto const address = reinterpret_cast<std::uintptr_t>(args.workspace.data());
  if (args.workspace.size() < needed || address % workspace_alignment != 0) {
    fail("sida::predict, workspace",
         std::to_string(needed) + " bytes at a multiple of " + std::to_string(workspace_alignment),
         std::to_string(args.workspace.size()) + " bytes, " + std::to_string(address % workspace_alignment) +
             " past such a multiple");
  }
  cpu_context const context = cpu::resolved(wanted);
  carver from(args.workspace.data());
  detail::prediction_memory const m(from, by, args.sequences, args.length);
  std::int64_t const length = args.length, all = args.sequences * length, hidden = by.hidden;

  for (std::int64_t begin = 0; begin < args.sequences; begin += m.sequences) {
    std::int64_t const count = std::min(m.sequences, args.sequences - begin), rows = count * length;
    float *x = m.first, *o = m.second;
    detail::multiply({args.embeddings + begin * length * by.embedding, rows, by.embedding}, by.compress, by.hidden,
                     context, x);
    for (std::int64_t i = 0; i < rows * hidden; ++i) x[i] = x[i] > 0.0f || x[i] != x[i] ? x[i] : 0.0f;
    detail::multiply({x, rows, hidden}, by.residual, by.hidden, context, m.sums);
    for (lstm const& layer : by.lstm_layers) {
      detail::run_lstm(layer, x, count, length, by.hidden, context, m, o);
      std::swap(x, o);
    }
    if (args.lstm_output != nullptr) std::copy(x, x + rows * hidden, args.lstm_output + begin * length * hidden);
    for (std::int64_t s = 0; s < count; ++s) {
      view<float const> const sequence(x + s * length * hidden, length, hidden);
      for (std::int64_t first = 0; first < length; first += detail::attention_rows) {
        std::int64_t const some = std::min(detail::attention_rows, length - first), row = s * length + first;
        float* const kept = args.attention == nullptr ? nullptr : args.attention + (begin * length + row) * length;
        detail::attend(by, sequence, first, some, context, m, kept, m.sums + row * hidden);
      }
    }
    for (std::size_t layer = 0; layer < by.heads.size(); ++layer) {
      float* const to = args.logits + (static_cast<std::int64_t>(layer) * all + begin * length) * by.experts;
      detail::multiply({m.sums, rows, hidden}, by.heads[layer], by.experts, context, to);
    }
  }
}

}  // namespace switchyard::sida
