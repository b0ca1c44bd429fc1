#pragma once

#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

#include "catch.hpp"
#include "support/compare.hpp"
#include "support/compile.hpp"
#include "support/operands.hpp"
#include "support/random_numbers.hpp"
#include "support/set_arguments.hpp"

/// Layers with low-rank adapters, and what their outputs are.
namespace support {

/// A projection of all experts: W [experts, rows, columns], A [adapters, experts, rank, columns], B [adapters, experts, rows, rank].
struct adapted_map {
  int experts = 0, rows = 0, columns = 0, rank = 0, adapters = 0;
  std::vector<float> weight, a, b, bias;

  adapted_map() = default;
  adapted_map(random_numbers& random, int expert_count, int row_count, int column_count, int rank_of, int adapter_count)
      : experts(expert_count), rows(row_count), columns(column_count), rank(rank_of), adapters(adapter_count) {
    std::int64_t const all = std::int64_t{experts} * rows * columns, of_rank = std::int64_t{adapters} * experts * rank;
    weight = few_bits<float>(random, all, 100, 1.0f / 512);
    a = few_bits<float>(random, of_rank * columns, 100, 1.0f / 256);
    b = few_bits<float>(random, of_rank * rows, 100, 1.0f / 256);
    bias = few_bits<float>(random, std::int64_t{experts} * rows, 100, 1.0f / 128);
  }

  /// W_e x + scale B (A x), and the bias where there is one, in double.
  std::vector<double> apply(std::vector<double> const& x, int expert, int adapter, double scale, bool has_bias) const {
    std::vector<double> y(static_cast<std::size_t>(rows));
    for (int r = 0; r < rows; ++r) {
      y[r] = has_bias ? bias[expert * rows + r] : 0.0;
      for (int c = 0; c < columns; ++c) y[r] += weight[(expert * rows + r) * columns + c] * x[c];
    }
    for (int k = 0; adapter >= 0 && k < rank; ++k) {
      int const entry = adapter * experts + expert;
      double narrow = 0;
      for (int c = 0; c < columns; ++c) narrow += a[(entry * rank + k) * columns + c] * x[c];
      for (int r = 0; r < rows; ++r) y[r] += scale * b[(entry * rows + r) * rank + k] * narrow;
    }
    return y;
  }
};

/// The layer without its adapters.
template <class Layer>
struct unadapted;
template <switchyard::shape Dims, class Router, class Capacity, int Count, int Rank, class Base, class Backend,
          class Element>
struct unadapted<
    switchyard::layer<Dims, Router, Capacity, switchyard::expert::adapters<Count, Rank, Base>, Backend, Element>> {
  using type = switchyard::layer<Dims, Router, Capacity, Base, Backend, Element>;
};

/// A layer's weights, adapters and tokens, and calls of it.
template <class Layer>
class adapters_problem {
  using element = typename Layer::element;
  using plain = typename unadapted<Layer>::type;
  static constexpr sy::shape dims = Layer::dims;
  static constexpr sy::expert_traits traits = Layer::expert_traits;
  static constexpr int count = Layer::expert::count, rank = Layer::expert::rank;

 public:
  explicit adapters_problem(int token_count)
      : tokens(token_count), memory_(reached<typename Layer::backend>::memory()) {
    random_numbers random(7);
    gate_ = {random, dims.experts, dims.intermediate, dims.hidden, rank, count};
    up_ = {random, dims.experts, dims.intermediate, dims.hidden, rank, count};
    down_ = {random, dims.experts, dims.hidden, dims.intermediate, rank, count};
    x_ = few_bits<float>(random, std::int64_t{tokens} * dims.hidden, 100, 1.0f / 64);
    for (int t = 0; t < tokens; ++t) adapter.push_back(random.below(count + 1) - 1);
    for (int a = 0; a < count; ++a) scale.push_back(a == 0 ? 1.0f : 0.5f * static_cast<float>(a));

    if constexpr (traits.gated) args.weights.gate_proj = Layer::in_proj(put(gate_.weight), put(gate_.a), put(gate_.b));
    args.weights.up_proj = Layer::in_proj(put(up_.weight), put(up_.a), put(up_.b));
    args.weights.down_proj = Layer::out_proj(put(down_.weight), put(down_.a), put(down_.b));
    auto const numbers = [&](std::int64_t many) { return memory_.put(few_bits<float>(random, many, 500, 0.002f)); };
    optional_arguments<element> optional;
    for (sy::router_weights& router : optional.router) {
      constexpr std::int64_t all = Layer::all_experts;
      router = {numbers(all * dims.hidden), numbers(all), numbers(all)};
    }
    optional.bias = {Layer::in_bias(put(gate_.bias)), Layer::in_bias(put(up_.bias)), Layer::out_bias(put(down_.bias))};
    if constexpr (traits.shared_intermediate > 0) {
      shared_ = few_bits<float>(random, std::int64_t{traits.shared_intermediate} * dims.hidden, 100, 1.0f / 512);
      element const* const w = put(shared_);
      optional.shared = {Layer::shared_in_proj(w), Layer::shared_in_proj(w), Layer::shared_out_proj(w), nullptr};
    }
    std::vector<std::int32_t> ids, words;
    for (int i = 0; i < tokens * dims.top_k; ++i) ids.push_back(i % 5 == 0 ? 0 : random.below(dims.experts));
    for (int t = 0; t < tokens; ++t) words.push_back(t);
    optional.routes = {memory_.put(ids), memory_.put(std::vector<float>(ids.size(), 0.5f))};
    optional.words = memory_.put(words);
    optional.vocabulary = tokens;
    std::size_t const pairs = ids.size(), bytes = Layer::workspace_bytes(tokens);
    args.tokens = Layer::rows(put(x_), tokens);
    args.output = Layer::rows(memory_.template room<element>(x_.size()), tokens);
    args.workspace = {memory_.template room<std::byte>(bytes), bytes};
    args.decisions.experts = memory_.template room<std::int32_t>(pairs);
    args.decisions.weights = memory_.template room<float>(pairs);
    set_all_but_weights(args, optional);
    set_all_but_weights(plain_args_, optional);
  }

  /// Outputs, where tokens have the adapters `adapter`.
  std::vector<float> run(sy::cpu_context const& context = {.threads = 1}) {
    args.expert_inputs = {memory_.put(adapter), scale.empty() ? nullptr : memory_.put(scale)};
    reached<typename Layer::backend>::template forward<Layer>(args, context);
    return output();
  }
  /// Those of the layer without adapters.
  std::vector<float> run_plain(sy::cpu_context const& context = {.threads = 1}) {
    if constexpr (traits.gated) plain_args_.weights.gate_proj = args.weights.gate_proj.base;
    plain_args_.weights.up_proj = args.weights.up_proj.base;
    plain_args_.weights.down_proj = args.weights.down_proj.base;
    std::size_t const bytes = plain::workspace_bytes(tokens);
    plain_args_.tokens = args.tokens;
    plain_args_.output = args.output;
    plain_args_.workspace = {memory_.template room<std::byte>(bytes), bytes};
    reached<typename Layer::backend>::template forward<plain>(plain_args_, context);
    return output();
  }

  /// What the last call's decisions make of the tokens, in double.
  std::vector<double> reference() const {
    std::size_t const pairs = static_cast<std::size_t>(tokens) * dims.top_k;
    auto const experts = memory_.get(args.decisions.experts, pairs);
    auto const weights = memory_.get(args.decisions.weights, pairs);
    std::vector<double> all;
    for (int t = 0; t < tokens; ++t) {
      int const a = adapter[t];
      double const s = a < 0 || scale.empty() ? 1.0 : scale[a];
      std::vector<double> y(dims.hidden);
      for (int k = 0; k < dims.top_k; ++k) {
        std::size_t const pair = static_cast<std::size_t>(t * dims.top_k + k);
        double const weight = weights[pair];
        if (experts[pair] < 0 || weight == 0.0) continue;
        if (experts[pair] >= dims.experts) {  // an identity
          for (int h = 0; h < dims.hidden; ++h) y[h] += weight * double(x_[t * dims.hidden + h]);
          continue;
        }
        constexpr bool on_input = Layer::router_traits.weighs_input;
        std::vector<double> x(x_.begin() + t * dims.hidden, x_.begin() + (t + 1) * dims.hidden);
        for (double& v : x) v *= on_input ? weight : 1.0;
        std::vector<double> inner = up_.apply(x, experts[pair], a, s, traits.bias);
        std::vector<double> const gate = gate_.apply(x, experts[pair], a, s, traits.bias);
        for (int i = 0; i < dims.intermediate; ++i) {
          inner[i] = traits.gated ? gate[i] / (1.0 + std::exp(-gate[i])) * inner[i] : std::fmax(inner[i], 0.0);
        }
        std::vector<double> const result = down_.apply(inner, experts[pair], a, s, traits.bias);
        for (int h = 0; h < dims.hidden; ++h) y[h] += (on_input ? 1.0 : weight) * result[h];
      }
      for (int i = 0; i < traits.shared_intermediate; ++i) {
        double sum = 0;
        for (int h = 0; h < dims.hidden; ++h) sum += shared_[i * dims.hidden + h] * double(x_[t * dims.hidden + h]);
        double const inner = traits.gated ? sum / (1.0 + std::exp(-sum)) * sum : std::fmax(sum, 0.0);
        for (int h = 0; h < dims.hidden; ++h) y[h] += shared_[h * traits.shared_intermediate + i] * inner;
      }
      all.insert(all.end(), y.begin(), y.end());
    }
    return all;
  }

  /// The outputs of tokens with one adapter, -1 for those with none.
  std::vector<float> of_adapter(std::vector<float> const& y, int which, std::vector<std::int32_t> const& ids) const {
    std::vector<float> part;
    for (int t = 0; t < tokens; ++t) {
      if (ids[t] == which) part.insert(part.end(), y.begin() + t * dims.hidden, y.begin() + (t + 1) * dims.hidden);
    }
    return part;
  }

  int tokens;
  std::vector<std::int32_t> adapter;
  std::vector<float> scale;
  typename Layer::args args{};

 private:
  element const* put(std::vector<float> const& values) {
    return memory_.put(std::vector<element>(values.begin(), values.end()));
  }
  std::vector<float> output() const {
    auto const y = memory_.template get<element>(args.output.data, x_.size());
    return {y.begin(), y.end()};
  }

  placed_arrays memory_;
  adapted_map gate_, up_, down_;
  std::vector<float> x_, shared_;
  typename plain::args plain_args_{};
};

/// Of every element, with what of a layer meets the terms: gates, biases, a shared expert, weights of the input, capacities that drop.
template <class Backend>
struct adapter_layers {
  template <int Experts, int TopK, class Router, class Capacity, class Expert, class Element>
  using layer = sy::layer<sy::shape{40, 72, Experts, TopK}, Router, Capacity, Expert, Backend, Element>;
  template <int Rank, class Expert>
  using adapted = sy::expert::adapters<3, Rank, Expert>;
  using gated = sy::expert::gated_mlp<sy::silu>;
  using plain = sy::expert::mlp<sy::relu>;

  using type = std::tuple<
      layer<4, 2, sy::router::softmax_top_k, sy::capacity::dropless, adapted<4, sy::expert::with_bias<gated>>, float>,
      layer<3, 2, sy::router::on_input<sy::router::sigmoid_top_k>, sy::capacity::dropless,
            adapted<33, sy::expert::with_shared<gated, 24>>, sy::bfloat16>,
      layer<2, 1, sy::router::precomputed, sy::capacity::factor<1, 1>, adapted<19, plain>, sy::half>>;
};

/// Outputs against the formula, those of tokens without an adapter against the layer without, and of each adapter against a call in which
/// no other is used.
template <class Layer>
void check_adapters(int tokens, sy::cpu_context const& context = {.threads = 1}) {
  INFO(sy::describe<Layer>() << ", " << tokens << " tokens");
  adapters_problem<Layer> p(tokens);
  std::vector<float> const y = p.run(context);
  CHECK(relative_error(y, p.reference()) <= (sizeof(typename Layer::element) == 4 ? 1e-6 : 1e-2));
  std::vector<std::int32_t> const ids = p.adapter;
  std::vector<float> const plain = p.run_plain(context);
  CHECK(same_bits(p.of_adapter(y, -1, ids), p.of_adapter(plain, -1, ids)));
  for (int a = 0; a < Layer::expert::count; ++a) {
    p.adapter = ids;
    for (std::int32_t& id : p.adapter) id = id == a ? a : -7;
    CHECK(same_bits(p.of_adapter(p.run(context), a, ids), p.of_adapter(y, a, ids)));
  }
  p.adapter = ids;
  p.scale.clear();
  p.run(context);
  CHECK(relative_error(p.run(context), p.reference()) <= (sizeof(typename Layer::element) == 4 ? 1e-6 : 1e-2));
}

template <class List>
void check_all_adapters(int tokens, sy::cpu_context const& context = {.threads = 1}) {
  [&]<class... Layers>(std::tuple<Layers...> const*) {
    (check_adapters<Layers>(tokens, context), ...);
  }(static_cast<List const*>(nullptr));
}

}  // namespace support
