#pragma once

#include <switchyard/offload.cuh>
#include <switchyard/offload/host_store.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "backend/cuda/device.cuh"
#include "catch.hpp"
#include "layers.hpp"
#include "support/compare.hpp"
#include "support/failing_store.hpp"
#include "support/random_numbers.hpp"
#include "support/set_arguments.hpp"

/// Layers of a GPU with their experts in memory and in a cache, on the same numbers.
namespace support {

template <class Store>
using device_cache = sy::offload::expert_cache<Store, sy::offload::lru_with_lookahead, sy::offload::device_memory>;

/// Two layers of one type on random tokens.
template <class Resident>
class offloaded_problem {
 public:
  using element = typename Resident::element;
  using layer = typename tested::moved<Resident, sy::backend::offloaded<typename Resident::backend>>::type;
  static constexpr sy::shape dims = Resident::dims;
  static constexpr int layers = 2;
  static constexpr std::int64_t bytes = sy::offload::piece<layer>::bytes, place = sy::offload::place_bytes(bytes);

  explicit offloaded_problem(std::int64_t tokens)
      : pieces_(layers * dims.experts * place),
        tokens_(tokens),
        x_(numbers<element>(tokens * dims.hidden, 1)),
        router_(numbers<float>(Resident::all_experts * dims.hidden, 1)),
        ones_(std::vector<float>(dims.hidden, 1.0f)),
        norms_(numbers<float>(dims.experts * dims.intermediate, 1)),
        more_(numbers<element>((4 + Resident::expert_traits.shared_intermediate) * dims.hidden, 0.1f)),
        resident_pieces_(pieces_.size()) {
    std::vector<element> const values = numbers<element>(pieces_.size() / sizeof(element), 0.2f);
    std::memcpy(pieces_.data(), values.data(), pieces_.size());
    check_cuda(cudaMemcpy(resident_pieces_.data(), values.data(), pieces_.size(), cudaMemcpyHostToDevice));
  }

  sy::offload::host_store store() const { return store_in(pieces_.data()); }
  static sy::offload::host_store store_in(std::byte const* pieces) {
    return sy::offload::host_store({.pieces = pieces, .layers = layers, .experts = dims.experts, .piece_bytes = bytes});
  }
  sy::offload::pinned_memory const& pieces() const { return pieces_; }

  /// What a call has of its own.
  struct call {
    device_array<element> output;
    device_array<std::byte> workspace;
  };
  template <class Layer = layer>
  call new_call() const {
    return {device_array<element>(tokens_ * dims.hidden), device_array<std::byte>(Layer::workspace_bytes(tokens_))};
  }

  template <class Store>
  void forward(device_cache<Store>& cache, int number, call const& c, cudaStream_t on) const {
    auto args = args_of<layer>(c);
    args.weights.experts = cache.layer(number);
    layer::forward(args, {.stream = on});
  }
  std::vector<element> resident(int number) const {
    call const c = new_call<Resident>();
    auto args = args_of<Resident>(c);
    sy::offload::placed_weights<Resident> const placed(resident_pieces_.data() + number * dims.experts * place, place);
    args.weights.up_proj = placed.up_proj;
    args.weights.down_proj = placed.down_proj;
    if constexpr (Resident::expert_traits.gated) args.weights.gate_proj = placed.gate_proj;
    if constexpr (Resident::expert_traits.bias) {
      args.weights.bias = {placed.bias.gate, placed.bias.up, placed.bias.down};
    }
    forward_and_wait<Resident>(args);
    return c.output.copy_out();
  }

  template <class Layer>
  typename Layer::args args_of(call const& c) const {
    typename Layer::args args{};
    args.tokens = Layer::rows(static_cast<element const*>(x_.data()), tokens_);
    args.output = Layer::rows(c.output.data(), tokens_);
    args.workspace = {c.workspace.data(), c.workspace.size()};
    optional_arguments<element> all{.residual = args.tokens, .unit_norms = norms_.data()};
    for (auto& router : all.router) router.weight = router_.data();
    for (auto& norm : all.norm) norm = {ones_.data(), ones_.data()};
    if constexpr (Resident::expert_traits.shared_intermediate > 0) {
      element const* const first = more_.data() + dims.hidden;
      all.shared = {Layer::shared_in_proj(first), Layer::shared_in_proj(first), Layer::shared_out_proj(first),
                    more_.data()};
    }
    all.output_bias = more_.data();
    all.constant_experts = {more_.data(), more_.data()};
    set_all_but_weights(args, all);
    return args;
  }

 private:
  template <class T>
  static std::vector<T> numbers(std::size_t count, float scale) {
    random_numbers random(static_cast<unsigned>(count));
    std::vector<T> values(count);
    for (T& value : values) value = T(scale * static_cast<float>(2 * random.uniform() - 1));
    return values;
  }

  sy::offload::pinned_memory pieces_;  // [layers, experts] places
  std::int64_t tokens_;
  device_array<element> x_;
  device_array<float> router_, ones_, norms_;
  device_array<element> more_;
  device_array<std::byte> resident_pieces_;
};

/// Calls of two layers in turn, with a prediction that is wrong, for budgets of one piece, half of them and all: the bits are those of the
/// layers with their experts in memory.
template <class Resident>
void check_offloaded(std::int64_t tokens) {
  using compared = offloaded_problem<Resident>;
  constexpr int pieces = compared::layers * Resident::dims.experts;
  INFO(sy::describe<typename compared::layer>() << ", " << tokens << " tokens");
  compared const p(tokens);
  std::vector<typename compared::element> const expected[] = {p.resident(0), p.resident(1)};
  auto const check = [&](auto& store, int places) {
    INFO(places << " places");
    device_cache<std::remove_reference_t<decltype(store)>> cache(store,
                                                                 {.budget_bytes = places * compared::place + 4095});
    stream const own;
    std::vector<typename compared::call> calls;
    for (int c = 0; c < 3; ++c) calls.push_back(p.new_call());
    for (int c = 0; c < 3; ++c) {
      p.forward(cache, c % 2, calls[c], own);
      if (c == 0) cache.expect(1, std::vector<std::int32_t>{0});
    }
    own.wait();
    for (int c : {0, 1, 2}) CHECK(same_bits(calls[c].output.copy_out(), expected[c % 2]));
    CHECK(cache.places() == places);
    CHECK(cache.measure().peak_bytes <= places * compared::place);
  };
  auto in_memory = p.store();
  failing_store read(in_memory);
  check(read, 1);
  check(in_memory, pieces / 2);
  check(in_memory, pieces);
}

template <class... Layers>
void check_all_offloaded(std::tuple<Layers...> const*) {
  for (std::int64_t tokens : {6, 90}) (check_offloaded<Layers>(tokens), ...);
}

}  // namespace support
