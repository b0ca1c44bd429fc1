#pragma once

#include "arguments.hpp"
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
  cpu::parallel_for(cpu::resolved({}), (count + piece - 1) / piece, [&](std::int64_t item) {
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

/// What the bench has to know of a layer on the CPU.
template <class Element>
struct layer_facts {
  shape dims;
  expert_traits expert;
  bool makes_logits = true;
  std::int64_t parameters = 0;
  std::size_t (*workspace_bytes)(std::int64_t tokens) = nullptr;
  /// Logits, experts and combine weights of a call; null where routes are given.
  void (*route)(call_memory<Element> const& call, cpu_context const& where, float* logits, std::int32_t* experts,
                float* weights, float* priority) = nullptr;
  void (*plan)(dispatch::assignment const& from, dispatch_plan to) = nullptr;
};

template <class Layer>
layer_facts<typename Layer::element> facts_of() {
  using element = typename Layer::element;
  // What tokens are made of, see `make_tokens`.
  static_assert(Layer::dims.experts <= Layer::dims.hidden, "tokens name their experts by their first features");
  layer_facts<element> result;
  result.dims = Layer::dims;
  result.expert = Layer::expert_traits;
  result.makes_logits = makes_logits<typename Layer::router>;
  result.parameters = costs<Layer>(0).parameters;
  result.workspace_bytes = &Layer::workspace_bytes;
  if constexpr (makes_logits<typename Layer::router>) {
    result.route = [](call_memory<element> const& call, cpu_context const& where, float* logits, std::int32_t* experts,
                      float* weights, float* priority) {
      constexpr shape dims = Layer::dims;
      cpu::router_product<element> const product{Layer::rows(call.input, call.tokens), dims.hidden, dims.experts,
                                                 call.router.weight,
                                                 Layer::router_traits.bias ? call.router.bias : nullptr};
      cpu::make_logits(product, where, logits);
      cpu::select_experts<typename Layer::router, dims.experts, dims.top_k>(call.tokens, nullptr, call.router, where,
                                                                            logits, experts, weights, priority);
    };
  }
  result.plan = [](dispatch::assignment const& from, dispatch_plan to) {
    dispatch::make_plan<typename Layer::capacity, Layer::dims>(from, to);
  };
  return result;
}

/// One copy of a layer's weights.
template <class Element>
class weight_copy {
 public:
  weight_copy(layer_facts<Element> const& of, std::uint32_t seed) {
    std::int64_t const hidden = of.dims.hidden, intermediate = of.dims.intermediate, experts = of.dims.experts;
    std::int64_t const matrix = hidden * intermediate;
    seed *= 16;
    up_ = projection(experts * matrix, ++seed, of.dims.hidden);
    down_ = projection(experts * matrix, ++seed, of.dims.intermediate);
    call_.up_proj = weight_view<Element>::packed(up_.data(), intermediate, hidden);
    call_.down_proj = weight_view<Element>::packed(down_.data(), hidden, intermediate);
    if (of.expert.gated) {
      gate_ = projection(experts * matrix, ++seed, of.dims.hidden);
      call_.gate_proj = weight_view<Element>::packed(gate_.data(), intermediate, hidden);
    }
    if (of.expert.bias) {
      bias_ = noise_pages<Element>(experts * std::max(intermediate, hidden), ++seed, 0.1f);
      call_.bias.gate = bias_view<Element>::packed(bias_.data(), intermediate);
      call_.bias.up = bias_view<Element>::packed(bias_.data(), intermediate);
      call_.bias.down = bias_view<Element>::packed(bias_.data(), hidden);
    }
    if (of.expert.shared_intermediate > 0) {
      std::int64_t const width = of.expert.shared_intermediate, size = width * hidden;
      shared_ = projection(3 * size, ++seed, of.dims.hidden);
      call_.shared.gate_proj = weight_view<Element>::packed(shared_.data(), width, hidden);
      call_.shared.up_proj = weight_view<Element>::packed(shared_.data() + size, width, hidden);
      call_.shared.down_proj = weight_view<Element>::packed(shared_.data() + 2 * size, hidden, width);
      call_.shared.gate = shared_.data();
    }
    if (!of.makes_logits) return;
    // Expert e reads feature e and nothing else: tokens then say by these features where they go. Products with zero take
    // as long as any other.
    router_matrix_ = zero_pages<float>(experts * hidden);
    router_vectors_ = zero_pages<float>(experts);
    for (std::int64_t e = 0; e < experts; ++e) router_matrix_.data()[e * hidden + e] = 1.0f;
    call_.router = {router_matrix_.data(), router_vectors_.data(), router_vectors_.data()};
  }

  /// The weights in a call, of which the rest is empty.
  call_memory<Element> const& call() const { return call_; }

 private:
  static pages<Element> projection(std::int64_t count, std::uint32_t seed, int inputs) {
    return noise_pages<Element>(count, seed, 1.0f / std::sqrt(static_cast<float>(inputs)));
  }

  pages<Element> gate_, up_, down_, bias_, shared_;
  pages<float> router_matrix_, router_vectors_;
  call_memory<Element> call_;
};

/// Tokens whose routes have a given skew. Another `set` has other tokens, and other experts are popular.
template <class Element>
pages<Element> make_tokens(shape dims, std::int64_t tokens, skew spread, std::uint32_t set) {
  pages<Element> result = noise_pages<Element>(tokens * dims.hidden, 1000 + set, 1.0f);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (int e = 0; e < dims.experts; ++e) {
      result.data()[t * dims.hidden + e] = Element(naming_feature(t, e, dims.experts, dims.top_k, spread, set));
    }
  }
  return result;
}

/// Everything that the steps of one call read and write.
template <class Element>
class call_data {
 public:
  call_data(layer_facts<Element> const& layer, std::int64_t token_count, skew spread, std::uint32_t set,
            weight_copy<Element> const& weights, cpu_context const& where)
      : of(&layer),
        tokens(token_count),
        input(make_tokens<Element>(of->dims, tokens, spread, set)),
        logits(tokens * of->dims.experts),
        experts(tokens * of->dims.top_k),
        weight(tokens * of->dims.top_k),
        routed_weight(tokens * of->dims.top_k),
        priority(tokens),
        dropped(tokens * of->dims.top_k),
        order(tokens),
        load(of->dims.experts),
        used(of->dims.experts),
        offsets(of->dims.experts + 1),
        pair_of(tokens * of->dims.top_k),
        row_of(tokens * of->dims.top_k) {
    shape const dims = of->dims;
    if (of->route == nullptr) {  // spread evenly, whatever the skew
      for (std::int64_t pair = 0; pair < tokens * dims.top_k; ++pair) {
        experts[pair] = static_cast<std::int32_t>((pair + set) % dims.experts);
        weight[pair] = 1.0f / static_cast<float>(dims.top_k);
      }
    } else {
      route(weights, where);
    }
    routed_weight = weight;
    plan();
    for (int e = 0; e < dims.experts; ++e) experts_used += offsets[e + 1] > offsets[e];
    rows = offsets[dims.experts];
  }

  /// A call without output and workspace.
  call_memory<Element> memory(weight_copy<Element> const& from) const {
    call_memory<Element> result = from.call();
    result.tokens = tokens;
    result.input = input.data();
    result.routes = {experts.data(), routed_weight.data()};
    return result;
  }

  void route(weight_copy<Element> const& from, cpu_context const& where) {
    of->route(memory(from), where, logits.data(), experts.data(), weight.data(), priority.data());
  }

  void plan() {
    of->plan({.tokens = tokens,
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

  layer_facts<Element> const* of;
  std::int64_t tokens;
  pages<Element> input;
  std::vector<float> logits;
  std::vector<std::int32_t> experts;
  std::vector<float> weight, routed_weight, priority;
  std::vector<std::uint8_t> dropped;
  std::vector<std::int32_t> order;
  std::vector<std::int64_t> load;
  std::vector<std::int32_t> used, offsets;
  std::vector<std::int32_t> pair_of, row_of;
  std::int64_t rows = 0;  // pairs that were not dropped
  int experts_used = 0;   // experts with at least one row
};

/// Weights and tokens of one layer. Each call takes the next token set and the next copy of the weights.
template <class Element>
class layer_memory {
 public:
  static constexpr int sets = 8;

  layer_memory(layer_facts<Element> const& of, std::int64_t weight_copies, int threads)
      : of_(of), where_(cpu::resolved({.threads = threads})) {
    for (std::int64_t c = 0; c < weight_copies; ++c) copies_.emplace_back(of_, static_cast<std::uint32_t>(c));
  }
  layer_memory(layer_memory const&) = delete;

  /// Makes the tokens, unless the last call asked for the same.
  void prepare(std::int64_t tokens, skew spread) {
    if (!data_.empty() && data_[0].tokens == tokens && spread_ == spread) return;
    data_.clear();
    for (std::uint32_t s = 0; s < sets; ++s) data_.emplace_back(of_, tokens, spread, s, copies_[0], where_);
    spread_ = spread;
    workspace_ = zero_pages<std::byte>(static_cast<std::int64_t>(of_.workspace_bytes(tokens)));
    output_ = zero_pages<Element>(tokens * of_.dims.hidden);
  }

  /// The next call's data and weights.
  std::pair<call_data<Element>&, weight_copy<Element> const&> next() {
    ++calls_;
    return {data_[calls_ % sets], copies_[calls_ % copies_.size()]};
  }

  cpu_context const& where() const { return where_; }
  std::vector<call_data<Element>>& data() { return data_; }
  std::vector<weight_copy<Element>> const& copies() const { return copies_; }
  std::span<std::byte> workspace() const { return {workspace_.data(), static_cast<std::size_t>(workspace_.size())}; }
  Element* output() const { return output_.data(); }

 private:
  layer_facts<Element> of_;
  cpu_context where_;
  std::vector<weight_copy<Element>> copies_;
  std::vector<call_data<Element>> data_;
  skew spread_ = skew::uniform;
  pages<std::byte> workspace_;
  pages<Element> output_;
  std::size_t calls_ = 0;
};

}  // namespace switchyard::bench
