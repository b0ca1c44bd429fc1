#pragma once

#include <switchyard/core/language.hpp>

#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/core/checks.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/offload/trace.hpp>
#include <switchyard/router/router_policy.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

/// Which experts a call to come will need. A prediction is a list of experts, in ascending order, for `cache.expect(layer, experts)`; it
/// moves experts early and changes no result. What predicts SiDA's way, from the embeddings of a whole batch, is in `sida/`.
namespace switchyard::offload {

/// A recorded trace as a prediction that is always right: what the best one could reach.
///
/// `tell` is called before each call, and tells a cache (or a `residency`) of the trace's calls that it has not heard of, from the call
/// that begins to `ahead` calls after it, as far as the cache has room to expect. The trace outlives the oracle.
class oracle {
 public:
  oracle(trace const& of, std::int64_t ahead) : of_(&of), ahead_(ahead) {
    if (ahead < 0) fail("offload::oracle, ahead", "0 or more calls", std::to_string(ahead));
  }

  template <class Cache>
  void tell(Cache& cache, std::int64_t call) {
    told_ = std::max(told_, call);
    std::int64_t const end = call < of_->calls() - ahead_ ? call + ahead_ + 1 : of_->calls();
    for (; told_ < end && cache.room_to_expect() > 0; ++told_) {
      traced_call const next = (*of_)[told_];
      cache.expect(next.layer, next.experts);
    }
  }

 private:
  trace const* of_;
  std::int64_t ahead_, told_ = 0;
};

/// The experts of each layer that calls needed most often, whatever the tokens are.
class most_frequent {
 public:
  /// Of every layer the `count` experts with most uses; `uses` is [layers, experts], such as `trace::uses()`. The lower of two with the
  /// same number comes first.
  most_frequent(std::span<std::int64_t const> uses, int layers, int experts, int count)
      : count_(static_cast<std::size_t>(count)) {
    if (layers < 1 || experts < 1 ||
        uses.size() != static_cast<std::size_t>(layers) * static_cast<std::size_t>(experts)) {
      fail("offload::most_frequent, uses", std::to_string(layers) + " x " + std::to_string(experts) + " numbers",
           std::to_string(uses.size()));
    }
    if (count < 1 || count > experts) {
      fail("offload::most_frequent, count", "1 to " + std::to_string(experts), std::to_string(count));
    }
    std::vector<std::int32_t> order(static_cast<std::size_t>(experts));
    for (std::size_t layer = 0; layer < static_cast<std::size_t>(layers); ++layer) {
      std::int64_t const* const of = uses.data() + layer * order.size();
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return of[a] > of[b]; });
      std::sort(order.begin(), order.begin() + count);
      chosen_.insert(chosen_.end(), order.begin(), order.begin() + count);
    }
  }
  most_frequent(trace const& of, int count) : most_frequent(of.uses(), of.layers(), of.experts(), count) {}

  /// What a call of the layer is expected to need.
  std::span<std::int32_t const> expected(int layer) const {
    return {chosen_.data() + static_cast<std::size_t>(layer) * count_, count_};
  }

 private:
  std::size_t count_;
  std::vector<std::int32_t> chosen_;  // [layers, count]
};

/// The router of a layer to come, applied on the CPU to what the present layer gets: in a decoder the residual stream changes little
/// from one layer to the next.
///
/// `Layer` is the layer to come, on whatever backend; its router makes logits.
/// Source: Eliseev and Mazur 2023, Fast inference of Mixture-of-Experts language models with offloading.
template <class Layer>
class by_next_router {
  static_assert(makes_logits<typename Layer::router>,
                "switchyard: offload::by_next_router runs the router of the layer to come, and this layer's router "
                "gets its experts "
                "from the caller: tell the cache of these, with cache.expect(layer, experts).");
  static_assert(std::is_same_v<typename Layer::router::schedule, router::one_pass>,
                "switchyard: offload::by_next_router runs a router once, and router::stratified runs once for every "
                "stratum, on rows that "
                "experts have made. Use offload::most_frequent, or offload::oracle.");
  using routing = cpu::route_step<typename Layer::router::source>;

 public:
  explicit by_next_router(std::int64_t most_tokens)
      : workspace_(bytes_of_memory<memory>(most_tokens) + workspace_alignment),
        experts_(static_cast<std::size_t>(Layer::dims.experts)),
        most_tokens_(most_tokens) {
    expected_.reserve(experts_.size());
  }

  /// What a call of the layer to come is expected to need. Of `args` it reads `.tokens`, [tokens, hidden], which are those of the present
  /// layer, and of the layer to come the router: `.weights.router` (or `.shared_router`), `.inputs`, `.active`. Valid until the next call.
  /// Throws `error` where `forward` would throw about these, and for more tokens than it was made for.
  std::span<std::int32_t const> expected(typename Layer::args const& args, cpu_context const& where = {}) {
    std::int64_t const tokens = args.tokens.rows;
    if (tokens < 0 || tokens > most_tokens_) {
      fail("offload::by_next_router, tokens", "0 to " + std::to_string(most_tokens_), std::to_string(tokens));
    }
    checks::check_matrix(args.tokens, "tokens", tokens, Layer::dims.hidden);
    Layer::router::template check<Layer>(args);
    std::fill(experts_.begin(), experts_.end(), std::uint8_t{0});
    carver split(workspace_.data());
    memory const m(split, tokens);
    routing::template run<Layer>(args, cpu::resolved(where), m.of_routing, m.routed, {});
    for (std::int64_t pair = 0; pair < tokens * Layer::dims.top_k; ++pair) {
      std::int32_t const e = m.routed.experts[pair];
      if (e >= 0 && e < Layer::dims.experts) experts_[static_cast<std::size_t>(e)] = 1;  // others compute nothing
    }
    expected_.clear();
    for (std::int32_t e = 0; e < Layer::dims.experts; ++e) {
      if (experts_[static_cast<std::size_t>(e)] != 0) expected_.push_back(e);
    }
    return expected_;
  }

 private:
  struct memory {
    typename routing::template memory<Layer> of_routing;
    cpu::routes routed;

    constexpr memory(carver& from, std::int64_t tokens)
        : of_routing(from, tokens),
          routed{from.take<std::int32_t>(tokens * Layer::dims.top_k), from.take<float>(tokens * Layer::dims.top_k),
                 from.take<float>(tokens)} {}
  };

  std::vector<std::byte> workspace_;
  std::vector<std::uint8_t> experts_;  // 1 where a token chose it
  std::vector<std::int32_t> expected_;
  std::int64_t most_tokens_;
};

}  // namespace switchyard::offload
