// Policies of one's own, used in layers like those of the library: a router that changes another one, a router with an input of its own,
// a capacity, an activation, and an expert whose weights are no dense matrices.
#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string_view>
#include <vector>

namespace sy = switchyard;

/// Top-k whose later choices weigh nothing where the first is more than twice as likely.
struct confident : sy::router::by_logits {
  static constexpr std::string_view name = "confident";

  template <int TopK, int Experts, class Lanes>
  SWITCHYARD_HD static sy::route<TopK> select(Lanes lanes, sy::per_expert<Experts, Lanes> const& logits,
                                              sy::router_weights const& weights) {
    auto result = sy::router::softmax_top_k_raw::select<TopK>(lanes, logits, weights);
    for (float& w : result.weight) w = 2.0f * w < result.weight[0] ? 0.0f : w;
    sy::router::weighting::sum::apply(result.weight);
    return result;
  }
};

/// A token's word says where it goes: no logits, and the same on every backend (Roller et al. 2021, Hash Layers).
template <int Experts>
struct by_word : sy::router::by_inputs {
  static constexpr std::string_view name = "by_word";
  struct words {
    std::uint32_t const* ids = nullptr;  ///< [tokens]
  };
  template <class Layer>
  using inputs = words;

  SWITCHYARD_HD static sy::routed_pair pair(words const& of, std::int64_t token, int top_k, int choice) {
    std::uint32_t const hash = of.ids[token] * 2654435761u >> 16;
    return {static_cast<int>((hash + static_cast<std::uint32_t>(choice)) % Experts), 1.0f / static_cast<float>(top_k)};
  }
  template <class Layer>
  static void check(sy::forward_args<Layer> const& args) {
    sy::checks::check_pointer(args.inputs.ids, "inputs.ids", "[tokens] uint32");
  }
};

/// The next power of two above an even share, for kernels that like such sizes.
struct power_of_two {
  static constexpr std::string_view name = "power_of_two";
  static constexpr sy::capacity_traits traits{.on_drop = sy::dropped::weighted_input};
  static constexpr std::int64_t slots_per_expert(sy::shape dims, std::int64_t tokens) {
    std::int64_t slots = 1;
    while (slots * dims.experts < tokens * dims.top_k) slots *= 2;
    return slots;
  }
};

/// Two input projections whose product is squashed: down(tanh(gate(x) * up(x))).
struct tanh_of_product {
  static constexpr std::string_view name = "tanh_of_product";
  SWITCHYARD_HD static float apply(float gate, float up) { return std::tanh(gate * up); }
};

/// Weights of 8 bits, and a scale for every row. Products restore them while they read: this is all there is to a format.
template <class Element>
struct bytes_of_rows {
  using element = Element;
  static constexpr bool in_place = false;
  static constexpr int granule = 32;

  std::int8_t const* codes = nullptr;  ///< [experts, rows, columns]
  float const* scales = nullptr;       ///< [experts, rows]
  std::int64_t rows = 0, columns = 0;

  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    std::int64_t const line = expert * rows + row;
    for (int i = 0; i < count; ++i) to[i] = scales[line] * static_cast<float>(codes[line * columns + column + i]);
  }
  SWITCHYARD_HD constexpr bytes_of_rows from(int expert) const {
    return {codes + expert * rows * columns, scales + expert * rows, rows, columns};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts, int all_rows, int all_columns) const {
    arrays.array("codes", codes, std::int64_t{experts} * all_rows * all_columns, "[experts, rows, columns] int8");
    arrays.array("scales", scales, std::int64_t{experts} * all_rows, "[experts, rows] float");
  }
};
struct small_expert : sy::expert::gated_mlp<tanh_of_product> {
  static constexpr std::string_view name = "small_expert";
  template <class Element, sy::projection>
  using operand = bytes_of_rows<Element>;
};

constexpr sy::shape dims{.hidden = 8, .intermediate = 16, .experts = 4, .top_k = 2};
using own_layer = sy::layer<dims, confident, power_of_two, sy::expert::gated_mlp<tanh_of_product>>;
using small_layer = sy::layer<dims, by_word<dims.experts>, sy::capacity::dropless, small_expert>;

int main() {
  constexpr int tokens = 12, matrix = dims.experts * dims.intermediate * dims.hidden;
  std::minstd_rand random(1);
  auto const number = [&] { return 2.0f * static_cast<float>(random()) / static_cast<float>(random.max()) - 1.0f; };
  std::vector<float> x(tokens * dims.hidden), router(dims.experts * dims.hidden), y(x.size());
  for (float& value : x) value = number();
  for (float& value : router) value = number();
  std::vector<std::int8_t> codes(matrix);
  for (std::int8_t& code : codes) code = static_cast<std::int8_t>(std::lround(127.0f * number()));
  std::vector<float> const scales(dims.experts * dims.intermediate, 1.0f / 127.0f);
  std::vector<float> wide;
  for (std::int8_t code : codes) wide.push_back(static_cast<float>(code) / 127.0f);
  std::vector<std::uint32_t> words(tokens);
  for (std::uint32_t& word : words) word = static_cast<std::uint32_t>(random() % 50000);
  std::vector<std::uint8_t> dropped(tokens * dims.top_k);
  std::vector<std::int64_t> load(dims.experts);
  std::vector<std::byte> scratch(own_layer::workspace_bytes(tokens) + small_layer::workspace_bytes(tokens));

  own_layer::args own{};
  own.tokens = own_layer::rows(static_cast<float const*>(x.data()), tokens);
  own.weights.router.weight = router.data();
  own.weights.gate_proj = own.weights.up_proj = own_layer::in_proj(wide.data());
  own.weights.down_proj = own_layer::out_proj(wide.data());
  own.output = own_layer::rows(y.data(), tokens);
  own.workspace = scratch;
  own.decisions.dropped = dropped.data();
  own_layer::forward(own);
  int lost = 0;
  for (std::uint8_t d : dropped) lost += d;
  std::printf("%s: %d of %d pairs were dropped\n", sy::describe<own_layer>().c_str(), lost, tokens * dims.top_k);
  bool right = lost < tokens * dims.top_k;

  small_layer::args small{};
  small.tokens = own.tokens;
  small.weights.gate_proj = small.weights.up_proj = {codes.data(), scales.data(), dims.intermediate, dims.hidden};
  small.weights.down_proj = {codes.data(), scales.data(), dims.hidden, dims.intermediate};
  small.output = small_layer::rows(y.data(), tokens);
  small.workspace = scratch;
  small.inputs.ids = words.data();
  small.decisions.load = load.data();
  small_layer::forward(small);
  std::printf("%s:", sy::describe<small_layer>().c_str());
  std::int64_t pairs = 0;
  for (int e = 0; e < dims.experts; ++e) {
    std::printf(" expert %d has %lld", e, static_cast<long long>(load[e]));
    pairs += load[e];
  }
  std::printf("\n");
  for (float value : y) right = right && std::isfinite(value);
  return right && pairs == tokens * dims.top_k ? 0 : 1;
}
