#include "peer.hpp"

#include "vectorised.hpp"

#include <omp.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <exception>

namespace switchyard::bench::peers {

namespace {

void silu_of_gate(float const* gate, float const* up, float* to, int n) { silu_gated(gate, up, to, n); }
void silu_of_gate(float const* gate, float const* up, bfloat16* to, int n) { silu_gated(gate, up, &to->bits, n); }

/// Nearest, ties to even, written so that the compiler makes vectors of it. Values are finite.
void narrow(float x, float& to) { to = x; }
void narrow(float x, bfloat16& to) {
  std::uint32_t const bits = std::bit_cast<std::uint32_t>(x);
  to = std::bit_cast<bfloat16>(static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16));
}

}  // namespace

/// Which rows belong to which expert, in token order.
template <class Element>
void loop_over_experts<Element>::group(std::int64_t tokens, std::int32_t const* routes) {
  std::int64_t const pairs = tokens * of_.top_k;
  offsets_.assign(of_.experts + 1, 0);
  for (std::int64_t pair = 0; pair < pairs; ++pair) ++offsets_[routes[pair] + 1];
  for (int e = 0; e < of_.experts; ++e) offsets_[e + 1] += offsets_[e];
  next_.assign(offsets_.begin(), offsets_.end() - 1);
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    row_of_[pair] = next_[routes[pair]]++;
    pair_of_[row_of_[pair]] = pair;
  }
}

template <class Element>
void loop_over_experts<Element>::prepare(std::int64_t tokens, std::int32_t const* routes) {
  std::size_t const pairs = static_cast<std::size_t>(tokens * of_.top_k);
  if (pair_of_.size() < pairs) {
    pair_of_.resize(pairs);
    row_of_.resize(pairs);
    gathered_.resize(pairs * of_.hidden);
    inner_.resize(pairs * of_.intermediate);
    gate_up_.resize(pairs * of_.in_features());
    outer_.resize(pairs * of_.hidden);
  }
  group(tokens, routes);
  for (int e = 0; e < of_.experts; ++e) {
    if (offsets_[e + 1] > offsets_[e]) with_->announce(offsets_[e + 1] - offsets_[e]);
  }
}

template <class Element>
void loop_over_experts<Element>::expert(call<Element> const& c, int e) {
  std::int64_t const first = offsets_[e], rows = offsets_[e + 1] - first;
  if (rows == 0) return;
  Element* const gathered = gathered_.data() + first * of_.hidden;
  for (std::int64_t r = 0; r < rows; ++r) {
    Element const* const from = c.input + pair_of_[first + r] / of_.top_k * of_.hidden;
    std::copy(from, from + of_.hidden, gathered + r * of_.hidden);
  }
  float* const gate_up = gate_up_.data() + first * of_.in_features();
  with_->in(c.copy, e, rows, gathered, gate_up);
  Element* const inner = inner_.data() + first * of_.intermediate;
  for (std::int64_t r = 0; r < rows; ++r) {
    float const* const gate = gate_up + r * of_.in_features();
    float const* const up = gate + of_.intermediate;
    Element* const to = inner + r * of_.intermediate;
    if (of_.gated) {
      silu_of_gate(gate, up, to, of_.intermediate);
    } else {
#pragma omp simd
      for (int i = 0; i < of_.intermediate; ++i) narrow(std::max(gate[i], 0.0f), to[i]);
    }
  }
  with_->out(c.copy, e, rows, inner, outer_.data() + first * of_.hidden);
}

template <class Element>
void loop_over_experts<Element>::combine(call<Element> const& c, std::int64_t token) const {
  Element* const to = c.output + token * of_.hidden;
  constexpr int width = 64;
  for (int h = 0; h < of_.hidden; h += width) {
    int const count = std::min(width, of_.hidden - h);
    float sum[width] = {};
    for (int k = 0; k < of_.top_k; ++k) {
      std::int64_t const pair = token * of_.top_k + k;
      float const weight = c.weights[pair];
      float const* const from = outer_.data() + row_of_[pair] * of_.hidden + h;
      for (int i = 0; i < count; ++i) sum[i] += weight * from[i];
    }
    for (int i = 0; i < count; ++i) narrow(sum[i], to[h + i]);
  }
}

template <class Element>
void loop_over_experts<Element>::forward(call<Element> const& c, threading how) {
  group(c.tokens, c.routes);
  if (how == threading::one_expert_each) {
    with_->use_threads(1);
    std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_)
    for (int e = 0; e < of_.experts; ++e) {
      try {
        expert(c, e);
      } catch (...) {  // no exception may leave the region
#pragma omp critical
        failure = std::current_exception();
      }
    }
    if (failure != nullptr) std::rethrow_exception(failure);
#pragma omp parallel for num_threads(threads_)
    for (std::int64_t token = 0; token < c.tokens; ++token) combine(c, token);
  } else {
    // No OpenMP of our own here: its threads and the library's would wait for each other in turns, spinning.
    with_->use_threads(threads_);
    for (int e = 0; e < of_.experts; ++e) expert(c, e);
    for (std::int64_t token = 0; token < c.tokens; ++token) combine(c, token);
  }
}

template class loop_over_experts<float>;
template class loop_over_experts<bfloat16>;

}  // namespace switchyard::bench::peers
