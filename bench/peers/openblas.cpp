#include "openblas.hpp"

#include <cblas.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace switchyard::bench::openblas {

namespace {

/// c[rows, columns] = a[rows, depth] * b[columns, depth] transposed.
void product(std::int64_t rows, int columns, int depth, float const* a, float const* b, float* c) {
  if (rows == 1) {
    cblas_sgemv(CblasRowMajor, CblasNoTrans, columns, depth, 1.0f, b, depth, a, 1, 0.0f, c, 1);
  } else {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(rows), columns, depth, 1.0f, a, depth, b,
                depth, 0.0f, c, columns);
  }
}

/// Which rows belong to which expert, in token order.
void group(problem const& p, scratch& s) {
  std::int64_t const pairs = p.tokens * p.top_k;
  std::fill(s.offsets.begin(), s.offsets.end(), 0);
  for (std::int64_t pair = 0; pair < pairs; ++pair) ++s.offsets[p.routes[pair] + 1];
  for (int e = 0; e < p.experts; ++e) s.offsets[e + 1] += s.offsets[e];
  std::copy(s.offsets.begin(), s.offsets.end() - 1, s.next.begin());
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    s.row_of[pair] = s.next[p.routes[pair]]++;
    s.pair_of[s.row_of[pair]] = static_cast<std::int32_t>(pair);
  }
}

/// gate = silu(gate) * up
void activate(std::int64_t count, float* gate, float const* up) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void expert(problem const& p, int e, scratch& s) {
  std::int64_t const first = s.offsets[e], rows = s.offsets[e + 1] - first;
  if (rows == 0) return;
  std::int64_t const matrix = std::int64_t{p.hidden} * p.intermediate;
  float* const gathered = s.gathered.data() + first * p.hidden;
  float* const gate = s.gate.data() + first * p.intermediate;
  float* const up = s.up.data() + first * p.intermediate;
  for (std::int64_t r = 0; r < rows; ++r) {
    float const* const from = p.input + s.pair_of[first + r] / p.top_k * std::int64_t{p.hidden};
    std::copy(from, from + p.hidden, gathered + r * p.hidden);
  }
  product(rows, p.intermediate, p.hidden, gathered, p.gate_proj + e * matrix, gate);
  product(rows, p.intermediate, p.hidden, gathered, p.up_proj + e * matrix, up);
  activate(rows * p.intermediate, gate, up);
  product(rows, p.hidden, p.intermediate, gate, p.down_proj + e * matrix, s.outer.data() + first * p.hidden);
}

void combine(problem const& p, std::int64_t token, scratch const& s) {
  float* const to = p.output + token * p.hidden;
  std::fill(to, to + p.hidden, 0.0f);
  for (int k = 0; k < p.top_k; ++k) {
    std::int64_t const pair = token * p.top_k + k;
    float const weight = p.weights[pair];
    float const* const from = s.outer.data() + std::int64_t{s.row_of[pair]} * p.hidden;
    for (int h = 0; h < p.hidden; ++h) to[h] += weight * from[h];
  }
}

}  // namespace

scratch::scratch(problem const& largest)
    : offsets(largest.experts + 1),
      next(largest.experts),
      pair_of(largest.tokens * largest.top_k),
      row_of(pair_of.size()),
      gathered(pair_of.size() * largest.hidden),
      gate(pair_of.size() * largest.intermediate),
      up(gate.size()),
      outer(gathered.size()) {}

void forward(problem const& p, threading how, int threads, scratch& s) {
  group(p, s);
  if (how == threading::one_expert_each) {
    openblas_set_num_threads(1);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int e = 0; e < p.experts; ++e) expert(p, e, s);
#pragma omp parallel for num_threads(threads)
    for (std::int64_t token = 0; token < p.tokens; ++token) combine(p, token, s);
  } else {
    // No OpenMP here: its threads and the library's own would wait for each other in turns, spinning.
    openblas_set_num_threads(threads);
    for (int e = 0; e < p.experts; ++e) expert(p, e, s);
    for (std::int64_t token = 0; token < p.tokens; ++token) combine(p, token, s);
  }
}

char const* version() { return openblas_get_config(); }

}  // namespace switchyard::bench::openblas
