#include <switchyard/offload.hpp>
#include <switchyard/offload/host_store.hpp>
#include <switchyard/offload/pack_experts.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "support/failing_store.hpp"
#include "support/random_numbers.hpp"
#include "support/said.hpp"

namespace sy = switchyard;
namespace offload = sy::offload;
using support::said;

namespace {

constexpr int layers = 2, most_tokens = 40;

template <class Backend>
using with_biases =
    sy::layer<sy::shape{.hidden = 48, .intermediate = 40, .experts = 12, .top_k = 3}, sy::router::softmax_top_k,
              sy::capacity::factor<5, 4>,
              sy::expert::with_shared<sy::expert::with_bias<sy::expert::gated_mlp<sy::silu>>, 32>, Backend>;
template <class Backend>
using with_strata = sy::layer<sy::shape{.hidden = 48, .intermediate = 40, .experts = 8, .top_k = 2},
                              sy::router::stratified<sy::router::softmax_top_k, 4, 4>, sy::capacity::dropless,
                              sy::expert::mlp<sy::relu>, Backend>;
template <class Backend>
using with_kept_units =
    sy::layer<sy::shape{.hidden = 48, .intermediate = 40, .experts = 9, .top_k = 3}, sy::router::sigma_moe,
              sy::capacity::dropless,
              sy::expert::with_output_bias<
                  sy::expert::top_k_units<sy::expert::mlp<sy::relu>, 7, sy::unit_ranking::norm_compensated>>,
              Backend, sy::bfloat16>;

/// What a layer's weights point to.
template <class Element>
struct numbers {
  std::vector<float> routers, norms, unit_norms;
  std::vector<Element> vectors, shared;
};

template <template <class> class Of>
struct compared {
  using resident = Of<sy::backend::cpu>;
  using offloaded = Of<sy::backend::offloaded<sy::backend::cpu>>;
  using element = typename resident::element;
  using piece = offload::piece<resident>;
  static_assert(piece::bytes == offload::piece<offloaded>::bytes);

  numbers<element> of;
  std::vector<std::byte> pieces;  // [layers, experts, place]

  compared() {
    auto fill = [random = support::random_numbers(1)](auto& to, std::size_t count) mutable {
      to.resize(count);
      for (auto& value : to)
        value = static_cast<std::remove_reference_t<decltype(value)>>(static_cast<float>(random.uniform()) - 0.5f);
    };
    fill(of.routers, 4 * 16 * 48);
    fill(of.norms, 4 * 48);
    fill(of.unit_norms, 16 * 40);
    fill(of.vectors, 48);
    fill(of.shared, 3 * 48 * 32);
    std::vector<element> all;
    fill(all, static_cast<std::size_t>(layers * resident::dims.experts) *
                  static_cast<std::size_t>(offload::place_bytes(piece::bytes)) / sizeof(element));
    pieces.resize(all.size() * sizeof(element));
    std::memcpy(pieces.data(), all.data(), pieces.size());
  }

  offload::host_store store() const {
    return offload::host_store({pieces.data(), layers, resident::dims.experts, piece::bytes});
  }

  template <class Layer>
  void set_common(typename Layer::args& args) const {
    if constexpr (Layer::router::schedule::passes > 1) {
      for (int s = 0; s < 2; ++s) {
        args.weights.router.stratum[s] = {.weight = of.routers.data() + s * 16 * 48};
        args.inputs.norm.after[s] = {of.norms.data() + 2 * s * 48, of.norms.data() + (2 * s + 1) * 48};
      }
      args.inputs.residual = args.tokens;
    } else {
      args.weights.router = {.weight = of.routers.data()};
    }
    if constexpr (Layer::expert_traits.shared_intermediate > 0) {
      args.weights.shared.gate_proj = Layer::shared_in_proj(of.shared.data() + 2 * 48 * 32);
      args.weights.shared.up_proj = Layer::shared_in_proj(of.shared.data());
      args.weights.shared.down_proj = Layer::shared_out_proj(of.shared.data() + 48 * 32);
    }
    if constexpr (Layer::expert_traits.output_bias) args.weights.output_bias = of.vectors.data();
    if constexpr (Layer::expert_traits.ranking == sy::unit_ranking::norm_compensated) {
      args.weights.unit_norms = of.unit_norms.data();
    }
  }

  /// The output of one call, and which experts it used.
  template <class Layer, class SetExperts>
  std::vector<element> run(int tokens, unsigned seed, int threads, std::vector<std::int64_t>& counts,
                           SetExperts const& set_experts) const {
    std::vector<element> x(static_cast<std::size_t>(tokens) * 48), y(x.size());
    support::random_numbers random(seed);
    for (element& value : x) value = static_cast<element>(static_cast<float>(random.uniform()) - 0.5f);
    std::vector<std::byte> workspace(Layer::workspace_bytes(tokens));
    counts.assign(static_cast<std::size_t>(Layer::all_experts), 0);
    typename Layer::args args{};
    args.tokens = Layer::rows(x.data(), tokens);
    args.output = Layer::rows(y.data(), tokens);
    args.workspace = workspace;
    args.decisions.counts = counts.data();
    set_common<Layer>(args);
    set_experts(args.weights);
    Layer::forward(args, {.threads = threads});
    return y;
  }
  std::vector<element> in_memory(int layer, int tokens, unsigned seed) const {
    std::vector<std::int64_t> counts;
    offload::placed_weights<resident> const placed(store().at(layer, 0), offload::place_bytes(piece::bytes));
    return run<resident>(tokens, seed, 1, counts, [&](auto& weights) {
      if constexpr (piece::gated) weights.gate_proj = placed.gate_proj;
      weights.up_proj = placed.up_proj;
      weights.down_proj = placed.down_proj;
      if constexpr (piece::has_bias) weights.bias = {placed.bias.gate, placed.bias.up, placed.bias.down};
    });
  }
};

template <class Element>
bool same_bits(std::vector<Element> const& a, std::vector<Element> const& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(Element)) == 0;
}

}  // namespace

TEMPLATE_TEST_CASE("offloaded experts give the bits of resident ones, whatever the budget and what was expected",
                   "[offload]", compared<with_biases>, compared<with_strata>, compared<with_kept_units>) {
  using offloaded = typename TestType::offloaded;
  TestType const of;
  auto store = of.store();
  support::failing_store slow(store);
  for (int places : {1, 3, 2 * offloaded::dims.experts}) {
    CAPTURE(places);
    offload::expert_cache<decltype(slow)> cache(
        slow, {.budget_bytes = places * offload::place_bytes(TestType::piece::bytes), .readers = 2});
    for (unsigned call = 0; call < 8; ++call) {
      CAPTURE(call);
      int const layer = static_cast<int>(call / 2 % 2),
                tokens = call % 3 == 0 ? most_tokens : 1 + static_cast<int>(call);
      std::vector<std::int32_t> const guess{static_cast<std::int32_t>(call), 0, 7};
      if (call % 3 > 0) cache.expect(layer, guess);
      std::vector<std::int64_t> counts;
      auto const got = of.template run<offloaded>(tokens, call, 1 + static_cast<int>(call % 2), counts,
                                                  [&](auto& weights) { weights.experts = cache.layer(layer); });
      CHECK(same_bits(got, of.in_memory(layer, tokens, call)));
    }
    auto const m = cache.measure();
    CHECK(m.peak_bytes <= m.budget_bytes);
    CHECK(m.all().calls >= 8);
    CHECK(m.all().loads > 0);
  }
}

namespace {

using turned =
    sy::layer<sy::shape{.hidden = 40, .intermediate = 48, .experts = 12, .top_k = 3}, sy::router::softmax_top_k,
              sy::capacity::dropless, sy::expert::with_bias<sy::expert::gated_mlp<sy::silu>>>;
turned::weights const no_weights{};

}  // namespace

TEST_CASE("an offloaded layer says what is wrong with its experts", "[offload]") {
  using layer = with_biases<sy::backend::offloaded<sy::backend::cpu>>;
  CHECK(sy::describe<layer>() ==
        "softmax_top_k:3of12/factor<5:4>/with_shared<with_bias<gated_mlp<silu>>,32>/48x40/offloaded<cpu>/float");
  compared<with_biases> const of;
  auto store = of.store();
  support::failing_store failing(store);
  failing.fail_piece(0, 1);
  failing.fail_piece(0, 2);
  offload::expert_cache<decltype(failing)> cache(failing, {.budget_bytes = 1 << 20});
  std::vector<std::int64_t> counts;
  auto const run = [&](offload::layer_experts<offload::host_memory> const& experts) {
    return said([&] { of.run<layer>(most_tokens, 1, 1, counts, [&](auto& weights) { weights.experts = experts; }); });
  };
  CHECK(run({}) ==
        "switchyard: layer::forward, weights.experts: expected the layer of a cache, cache.layer(number), got null");
  CHECK(run(cache.layer(0)).find("of layer 0 from its store, got the store fails on request") != std::string::npos);
  CHECK(run(cache.layer(1)).empty());

  offload::host_store const fewer({of.pieces.data(), 1, 4, offload::piece<layer>::bytes});
  offload::host_store const smaller({of.pieces.data(), 1, 12, 1000});
  offload::expert_cache<offload::host_store const> few(fewer, {.budget_bytes = 1 << 20}),
      small(smaller, {.budget_bytes = 1 << 20});
  CHECK(run(few.layer(0)) ==
        "switchyard: layer::forward, weights.experts: expected 12 experts in a layer of the store, got 4");
  CHECK(run(small.layer(0)) == "switchyard: layer::forward, weights.experts: expected pieces of " +
                                   std::to_string(offload::piece<layer>::bytes) +
                                   " bytes in the store (offload::piece<Layer> says what they have), got 1000");

  // Pieces of as many bytes, of other matrices.
  offload::weights_store<turned> const others(std::span<turned::weights const>(&no_weights, 1));
  offload::expert_cache<offload::weights_store<turned> const> other(others, {.budget_bytes = 1 << 20});
  CHECK(run(other.layer(0)) ==
        "switchyard: layer::forward, weights.experts: expected pieces of float, gate and up [40, 48], down [48, 40], "
        "biases, "
        "got float, gate and up [48, 40], down [40, 48], biases");
}
