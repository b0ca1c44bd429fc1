#include <switchyard/expert/stored_as.hpp>
#include <switchyard/offload.hpp>
#include <switchyard/offload/host_store.hpp>
#include <switchyard/offload/pack_experts.hpp>
#include <switchyard/offload/packed_file.hpp>
#include <switchyard/quantised/quantise.hpp>
#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "catch.hpp"
#include "support/random_numbers.hpp"
#include "support/said.hpp"
#include "support/temporary_folder.hpp"

namespace sy = switchyard;
namespace offload = sy::offload;
namespace q = sy::quantised;

namespace {

constexpr sy::shape dims{.hidden = 64, .intermediate = 32, .experts = 6, .top_k = 2};
using format = q::block_matrix<q::q4_0>;
template <class Backend>
using layer_with =
    sy::layer<dims, sy::router::softmax_top_k, sy::capacity::dropless,
              sy::expert::stored_as<sy::expert::with_bias<sy::expert::gated_mlp<sy::silu>>, format>, Backend>;
using resident = layer_with<sy::backend::cpu>;
using offloaded = layer_with<sy::backend::offloaded<sy::backend::cpu>>;
using piece = offload::piece<resident>;
static_assert(piece::bytes == offload::piece<offloaded>::bytes && piece::bytes == 3 * 1152 + 2 * 128 + 256);
static_assert(piece::format() == "q4_0, gate and up [32, 64], down [64, 32], biases");

/// Two layers, of which the second has its gate projections with room between the rows.
struct two_layers {
  std::vector<float> router, biases;
  decltype(q::quantise<format>(static_cast<float*>(nullptr), 1, 1, 1)) in, out;
  std::vector<std::uint8_t> apart;
  std::vector<resident::weights> weights{2};

  static std::vector<float> numbers(std::size_t count, unsigned seed) {
    support::random_numbers random(seed);
    std::vector<float> result(count);
    for (float& value : result) value = static_cast<float>(random.normal()) * 0.3f;
    return result;
  }

  two_layers()
      : router(numbers(6 * 64, 1)),
        biases(numbers(6 * 64, 2)),
        in(q::quantise<format>(numbers(2 * 6 * 32 * 64, 3).data(), 12, 32, 64)),
        out(q::quantise<format>(numbers(2 * 6 * 64 * 32, 4).data(), 12, 64, 32)) {
    format const gates = in.view();
    constexpr std::size_t row = 36, room = 40;
    apart.resize(6 * 32 * room, 0xee);
    for (std::size_t line = 0; line < 6 * 32; ++line) {
      std::memcpy(apart.data() + line * room, gates.data + line * row, row);
    }
    for (int layer : {0, 1}) {
      resident::weights& w = weights[static_cast<std::size_t>(layer)];
      w.router.weight = router.data();
      w.gate_proj = gates.from(6 * layer);
      w.up_proj = in.view().from(6 * (1 - layer));
      w.down_proj = out.view().from(6 * layer);
      w.bias = {resident::in_bias(biases.data()), resident::in_bias(biases.data() + 32),
                resident::out_bias(biases.data())};
    }
    weights[1].gate_proj = format{apart.data(), 32 * std::int64_t{room}, std::int64_t{room}, 32, 64};
  }
};

template <class Layer>
std::vector<float> run(int tokens, typename Layer::weights const& weights) {
  std::vector<float> const x = two_layers::numbers(static_cast<std::size_t>(tokens) * 64, 9);
  std::vector<float> y(x.size());
  std::vector<std::byte> workspace(Layer::workspace_bytes(tokens));
  Layer::forward({.tokens = Layer::rows(x.data(), tokens),
                  .weights = weights,
                  .output = Layer::rows(y.data(), tokens),
                  .workspace = workspace},
                 {.threads = 1});
  return y;
}

/// Both layers from a cache of three experts, against those in memory.
template <class Store>
void check_bits(two_layers const& of, Store& store) {
  offload::expert_cache<Store> cache(store, {.budget_bytes = 3 * offload::place_bytes(piece::bytes), .readers = 1});
  for (int tokens : {1, 5, 70}) {
    for (int layer : {0, 1, 0}) {
      CAPTURE(tokens, layer);
      offloaded::weights weights;
      weights.router.weight = of.router.data();
      weights.experts = cache.layer(layer);
      bool const same =
          run<offloaded>(tokens, weights) == run<resident>(tokens, of.weights[static_cast<std::size_t>(layer)]);
      CHECK(same);
    }
  }
}

}  // namespace

TEST_CASE("quantised experts from a cache give the bits of those in memory", "[offload]") {
  two_layers const of;
  offload::weights_store<resident> packed_when_read(of.weights);
  check_bits(of, packed_when_read);

  std::vector<std::byte> pieces(static_cast<std::size_t>(12 * offload::place_bytes(piece::bytes)));
  for (std::size_t layer : {0u, 1u}) {
    offload::pack_experts<resident>(of.weights[layer], pieces.data() + layer * pieces.size() / 2);
  }
  offload::host_store in_memory({pieces.data(), 2, 6, piece::bytes});
  check_bits(of, in_memory);

  support::temporary_folder const folder;
  std::string const path = folder / "experts";
  REQUIRE(offload::pack(path, packed_when_read));
  auto file = offload::open_packed<resident>(path);
  check_bits(of, file);
}

TEST_CASE("pieces of another format are refused", "[offload]") {
  two_layers of;
  offload::weights_store<resident> store(of.weights);
  support::temporary_folder const folder;
  std::string const path = folder / "experts";
  REQUIRE(offload::pack(path, store));
  using dense = sy::layer<dims, sy::router::softmax_top_k, sy::capacity::dropless,
                          sy::expert::with_bias<sy::expert::gated_mlp<sy::silu>>>;
  std::string const said = support::said([&] { offload::open_packed<dense>(path); });
  CHECK(said.starts_with(
      "switchyard: offload::open_packed: expected pieces of float, gate and up [32, 64], down [64, 32], "
      "biases, got "));
  CHECK(said.find("with pieces of q4_0, gate and up [32, 64]") != said.npos);

  of.weights[1].up_proj = format::packed(of.apart.data(), 64, 32);
  std::vector<std::byte> place(static_cast<std::size_t>(piece::bytes));
  CHECK(support::said([&] { (void)offload::weights_store<resident>(of.weights).read(1, 0, place.data()); }) ==
        "switchyard: layer::forward, weights.up_proj, rows x columns: expected 32 x 64, got 64 x 32");
}
