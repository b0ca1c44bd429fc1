#pragma once

#include "skew.hpp"

#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

/// What a layer runs on: weights and tokens, so many of them that they come from memory and not from a cache.
namespace switchyard::bench {

/// Memory for `count` objects on pages of 2 MiB where the system has them.
template <class T>
class pages {
 public:
  pages() = default;
  explicit pages(std::int64_t count) : count_(count) {
    std::size_t const bytes = (static_cast<std::size_t>(count) * sizeof(T) + page - 1) / page * page;
    data_.reset(static_cast<T*>(std::aligned_alloc(page, std::max(bytes, page))));
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
  }
  T* data() const { return data_.get(); }
  std::int64_t size() const { return count_; }

 private:
  static constexpr std::size_t page = std::size_t{2} << 20;
  struct release {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T[], release> data_;
  std::int64_t count_ = 0;
};

/// `count` seeded values of variance `deviation` squared.
template <class T>
pages<T> noise_pages(std::int64_t count, std::uint32_t seed, float deviation) {
  pages<T> result(count);
  float const scale = deviation * 1.7320508f;
  constexpr std::int64_t piece = 1 << 16;
  backend::detail::parallel_for(backend::detail::resolved({}), (count + piece - 1) / piece, [&](std::int64_t item) {
    std::int64_t const end = std::min(count, (item + 1) * piece);
    for (std::int64_t i = item * piece; i < end; ++i) result.data()[i] = T(scale * noise(i, seed));
  });
  return result;
}

template <class T>
pages<T> zero_pages(std::int64_t count) {
  pages<T> result(count);
  std::fill(result.data(), result.data() + count, T{});
  return result;
}

/// One copy of a layer's weights.
template <class Layer>
class weight_copy {
 public:
  using element = typename Layer::element;

  explicit weight_copy(std::uint32_t seed) {
    constexpr shape dims = Layer::dims;
    constexpr expert_traits traits = Layer::expert_traits;
    constexpr std::int64_t matrix = std::int64_t{dims.hidden} * dims.intermediate;
    seed *= 16;
    up_ = projection(dims.experts * matrix, ++seed, dims.hidden);
    down_ = projection(dims.experts * matrix, ++seed, dims.intermediate);
    weights_.up_proj = weight_view<element>::packed(up_.data(), dims.intermediate, dims.hidden);
    weights_.down_proj = weight_view<element>::packed(down_.data(), dims.hidden, dims.intermediate);
    if constexpr (traits.gated) {
      gate_ = projection(dims.experts * matrix, ++seed, dims.hidden);
      weights_.gate_proj = weight_view<element>::packed(gate_.data(), dims.intermediate, dims.hidden);
    }
    if constexpr (traits.bias) {
      bias_ = noise_pages<element>(std::int64_t{dims.experts} * std::max(dims.intermediate, dims.hidden), ++seed, 0.1f);
      if constexpr (traits.gated) weights_.bias.gate = bias_view<element>::packed(bias_.data(), dims.intermediate);
      weights_.bias.up = bias_view<element>::packed(bias_.data(), dims.intermediate);
      weights_.bias.down = bias_view<element>::packed(bias_.data(), dims.hidden);
    }
    if constexpr (traits.shared_intermediate > 0) {
      constexpr std::int64_t width = traits.shared_intermediate, size = width * dims.hidden;
      shared_ = projection(3 * size, ++seed, dims.hidden);
      if constexpr (traits.gated) {
        weights_.shared.gate_proj = weight_view<element>::packed(shared_.data(), width, dims.hidden);
      }
      weights_.shared.up_proj = weight_view<element>::packed(shared_.data() + size, width, dims.hidden);
      weights_.shared.down_proj = weight_view<element>::packed(shared_.data() + 2 * size, dims.hidden, width);
      if constexpr (traits.gate == shared_gate::sigmoid) weights_.shared.gate = shared_.data();
    }
    if constexpr (!Layer::router_traits.precomputed) {
      // Expert e reads feature e and nothing else: tokens then say by these features where they go. Products with
      // zero take as long as any other.
      static_assert(dims.experts <= dims.hidden, "tokens name their experts by their first features");
      router_matrix_ = zero_pages<float>(std::int64_t{dims.experts} * dims.hidden);
      router_vectors_ = zero_pages<float>(dims.experts);
      for (int e = 0; e < dims.experts; ++e) router_matrix_.data()[std::int64_t{e} * dims.hidden + e] = 1.0f;
      if constexpr (Layer::router_traits.gate == gate_owner::layer) weights_.router = router();
    }
  }

  typename Layer::weights const& weights() const { return weights_; }
  router_weights router() const { return {router_matrix_.data(), router_vectors_.data(), router_vectors_.data()}; }

 private:
  static pages<element> projection(std::int64_t count, std::uint32_t seed, int inputs) {
    return noise_pages<element>(count, seed, 1.0f / std::sqrt(static_cast<float>(inputs)));
  }

  pages<element> gate_, up_, down_, bias_, shared_;
  pages<float> router_matrix_, router_vectors_;
  typename Layer::weights weights_;
};

/// Tokens whose routes have a given skew. Another `set` has other tokens, and other experts are popular.
template <class Layer>
pages<typename Layer::element> make_tokens(std::int64_t tokens, skew spread, std::uint32_t set) {
  constexpr int hidden = Layer::dims.hidden, experts = Layer::dims.experts, top_k = Layer::dims.top_k;
  using element = typename Layer::element;
  pages<element> result = noise_pages<element>(tokens * hidden, 1000 + set, 1.0f);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (int e = 0; e < experts; ++e) {
      result.data()[t * hidden + e] = element(naming_feature(t, e, experts, top_k, spread, set));
    }
  }
  return result;
}

/// Everything that the steps of one call read and write.
template <class Layer>
class call_data {
 public:
  using element = typename Layer::element;
  static constexpr shape dims = Layer::dims;

  call_data(std::int64_t token_count, skew spread, std::uint32_t set, weight_copy<Layer> const& weights,
            cpu_context const& where)
      : tokens(token_count),
        input(make_tokens<Layer>(tokens, spread, set)),
        logits(tokens * dims.experts),
        experts(tokens * dims.top_k),
        weight(tokens * dims.top_k),
        routed_weight(tokens * dims.top_k),
        priority(tokens),
        dropped(tokens * dims.top_k),
        order(tokens),
        load(dims.experts),
        used(dims.experts),
        offsets(dims.experts + 1),
        first_place(dims.experts + 1),
        first_item(dims.experts + 1),
        pair_of(tokens * dims.top_k),
        row_of(tokens * dims.top_k) {
    if constexpr (Layer::router_traits.precomputed) {  // spread evenly, whatever the skew
      for (std::int64_t pair = 0; pair < tokens * dims.top_k; ++pair) {
        experts[pair] = static_cast<std::int32_t>((pair + set) % dims.experts);
        weight[pair] = 1.0f / dims.top_k;
      }
    } else {
      route(weights, where);
    }
    routed_weight = weight;
    plan();
    for (int e = 0; e < dims.experts; ++e) experts_used += offsets[e + 1] > offsets[e];
    rows = offsets[dims.experts];
  }

  forward_args<Layer> args(weight_copy<Layer> const& from) const {
    forward_args<Layer> result{};
    result.tokens = {input.data(), tokens, dims.hidden};
    result.weights = from.weights();
    if constexpr (Layer::router_traits.precomputed) {
      result.routes = {experts.data(), routed_weight.data()};
    } else if constexpr (Layer::router_traits.gate == gate_owner::model) {
      result.shared_router = from.router();
    }
    return result;
  }

  void route(weight_copy<Layer> const& from, cpu_context const& where) {
    forward_args<Layer> const a = args(from);
    backend::detail::make_logits(a, from.router(), where, logits.data());
    backend::detail::select_experts(a, from.router(), where, logits.data(), experts.data(), weight.data(),
                                    priority.data());
  }

  void plan() {
    dispatch::make_plan<typename Layer::capacity, dims>({.tokens = tokens,
                                                         .experts = experts.data(),
                                                         .weights = weight.data(),
                                                         .priority = priority.data(),
                                                         .dropped = dropped.data(),
                                                         .load = load.data(),
                                                         .used = used.data(),
                                                         .order = order.data()},
                                                        the_plan());
  }

  dispatch_plan the_plan() { return {offsets.data(), pair_of.data(), row_of.data()}; }

  std::int64_t tokens;
  pages<element> input;
  std::vector<float> logits;
  std::vector<std::int32_t> experts;
  std::vector<float> weight, routed_weight, priority;
  std::vector<std::uint8_t> dropped;
  std::vector<std::int32_t> order;
  std::vector<std::int64_t> load;
  std::vector<std::int32_t> used, offsets;
  std::vector<std::int64_t> first_place, first_item;
  std::vector<std::int32_t> pair_of, row_of;
  std::int64_t rows = 0;  // pairs that were not dropped
  int experts_used = 0;   // experts with at least one row
};

/// Weights and tokens of one layer. Each call takes the next token set and the next copy of the weights.
template <class Layer>
class layer_memory {
 public:
  static constexpr int sets = 8;

  layer_memory(std::int64_t weight_copies, int threads) : where_(backend::detail::resolved({.threads = threads})) {
    for (std::int64_t c = 0; c < weight_copies; ++c) copies_.emplace_back(static_cast<std::uint32_t>(c));
  }

  /// Makes the tokens, unless the last call asked for the same.
  void prepare(std::int64_t tokens, skew spread) {
    if (!data_.empty() && data_[0].tokens == tokens && spread_ == spread) return;
    data_.clear();
    for (std::uint32_t s = 0; s < sets; ++s) data_.emplace_back(tokens, spread, s, copies_[0], where_);
    spread_ = spread;
    workspace_ = zero_pages<std::byte>(static_cast<std::int64_t>(Layer::workspace_bytes(tokens)));
    output_ = zero_pages<typename Layer::element>(tokens * Layer::dims.hidden);
  }

  /// The next call's data and weights.
  std::pair<call_data<Layer>&, weight_copy<Layer> const&> next() {
    ++calls_;
    return {data_[calls_ % sets], copies_[calls_ % copies_.size()]};
  }

  cpu_context const& where() const { return where_; }
  std::vector<call_data<Layer>>& data() { return data_; }
  std::vector<weight_copy<Layer>> const& copies() const { return copies_; }
  std::span<std::byte> workspace() const { return {workspace_.data(), static_cast<std::size_t>(workspace_.size())}; }
  view<typename Layer::element> output() const {
    return {output_.data(), output_.size() / Layer::dims.hidden, Layer::dims.hidden};
  }

 private:
  cpu_context where_;
  std::vector<weight_copy<Layer>> copies_;
  std::vector<call_data<Layer>> data_;
  skew spread_ = skew::uniform;
  pages<std::byte> workspace_;
  pages<typename Layer::element> output_;
  std::size_t calls_ = 0;
};

}  // namespace switchyard::bench
