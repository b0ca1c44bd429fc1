#pragma once

#include <switchyard/core/pack_masked.hpp>
#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "layers.hpp"
#include "support/any_layer.hpp"
#include "support/compare.hpp"
#include "support/compile.hpp"
#include "support/random_numbers.hpp"
#include "support/set_arguments.hpp"

/// Weights that are restored, by an operand that is none of the library's and by experts of residuals, each against the same weights
/// widened to dense ones. Their values have few enough bits to be elements of any type, so that both layers compute with the same numbers.
namespace support {

/// 4-bit codes, eight in a word, and a scale for each word.
template <class Element>
struct four_bits {
  using element = Element;
  static constexpr bool in_place = false;
  static constexpr int granule = 8;

  std::uint32_t const* codes = nullptr;  ///< [experts, rows, columns / 8]
  float const* scales = nullptr;         ///< the same
  std::int64_t rows = 0, words = 0;      ///< of a matrix, of a row

  SWITCHYARD_HD void read(int expert, int row, int column, int count, float* to) const {
    std::int64_t const at = (expert * rows + row) * words + column / 8;
    std::uint32_t const word = codes[at] >> (4 * (column % 8));
    float const scale = scales[at];
    for (int i = 0; i < count; ++i) to[i] = static_cast<float>(static_cast<int>(word >> (4 * i) & 15u) - 8) * scale;
  }
  SWITCHYARD_HD constexpr four_bits from(int expert) const {
    return {codes + expert * rows * words, scales + expert * rows * words, rows, words};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts, int all_rows, int columns) const {
    std::int64_t const count = std::int64_t{experts} * all_rows * (columns / 8);
    arrays.array("codes", codes, count, "[experts, rows, columns / 8] words of eight weights");
    arrays.array("scales", scales, count, "[experts, rows, columns / 8] float");
  }
};

/// Formats that are experts of the library: a centre and residuals, pruned or of low rank, restored.
template <class>
struct pruned_residual {};
template <class>
struct low_rank_residual {};
inline constexpr int residual_rank = 2;

/// An expert whose weights are stored so.
template <class Base, template <class> class Format>
struct stored_as : Base {
  static constexpr std::string_view name = Base::name;
  using dense = Base;
  template <class Element, switchyard::projection>
  using operand = Format<Element>;
};

template <class Base>
struct stored_as<Base, pruned_residual> : switchyard::expert::residual<Base> {
  using dense = Base;
};
template <class Base>
struct stored_as<Base, low_rank_residual>
    : switchyard::expert::residual<Base,
                                   switchyard::low_rank_residuals<residual_rank, switchyard::low_rank_form::restored>> {
  using dense = Base;
};

/// Arrays where a backend reads and writes them.
class placed_arrays {
 public:
  explicit placed_arrays(memory_space space) : space_(space) {}
  placed_arrays(placed_arrays const&) = delete;
  ~placed_arrays() {
    for (void* memory : all_) space_.release != nullptr ? space_.release(memory) : ::operator delete(memory, align);
  }

  template <class T>
  T* room(std::size_t count) {
    std::size_t const bytes = (count * sizeof(T) + 255) / 256 * 256;
    all_.push_back(space_.allocate != nullptr ? space_.allocate(bytes) : ::operator new(bytes, align));
    return static_cast<T*>(all_.back());
  }
  template <class T>
  T* put(std::vector<T> const& values) {
    T* const to = room<T>(values.size());
    if (values.empty()) return to;
    if (space_.copy_in != nullptr) {
      space_.copy_in(to, values.data(), values.size() * sizeof(T));
    } else {
      std::memcpy(to, values.data(), values.size() * sizeof(T));
    }
    return to;
  }
  template <class T>
  std::vector<T> get(T const* from, std::size_t count) const {
    std::vector<T> values(count);
    if (count == 0) return values;
    if (space_.copy_out != nullptr) {
      space_.copy_out(values.data(), from, count * sizeof(T));
    } else {
      std::memcpy(values.data(), from, count * sizeof(T));
    }
    return values;
  }

 private:
  static constexpr std::align_val_t align{256};
  memory_space space_;
  std::vector<void*> all_;
};

/// Small numbers with few bits.
template <class T>
std::vector<T> few_bits(random_numbers& random, std::int64_t count, int most, float unit) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& v : values) v = T(static_cast<float>(random.below(2 * most + 1) - most) * unit);
  return values;
}

// Random weights of each kind: an overload for each, by the type that is to be set.
template <class Element>
void make(four_bits<Element>& to, placed_arrays& memory, random_numbers& random, int experts, int rows, int columns) {
  std::int64_t const words = std::int64_t{experts} * rows * (columns / 8);
  std::vector<std::uint32_t> codes(static_cast<std::size_t>(words));
  for (std::uint32_t& word : codes) {
    for (int i = 0; i < 8; ++i) word = word << 4 | static_cast<std::uint32_t>(random.below(16));
  }
  std::vector<float> scales(codes.size());
  for (float& scale : scales) scale = random.below(2) == 0 ? 0.03125f : 0.015625f;
  to = {memory.put(codes), memory.put(scales), rows, columns / 8};
}
/// A centre that all experts share.
template <class Element, switchyard::projection Role>
void make_centre(switchyard::weight_view<Element, Role>& to, placed_arrays& memory, random_numbers& random, int rows,
                 int columns) {
  std::vector<Element> const centre = few_bits<Element>(random, std::int64_t{rows} * columns, 7, 0.03125f);
  to = {memory.put(centre), 0, columns, 1};
}
template <class Element, switchyard::projection Role>
void make(switchyard::base_plus<switchyard::weight_view<Element, Role>, switchyard::masked_change<Element>>& to,
          placed_arrays& memory, random_numbers& random, int experts, int rows, int columns) {
  make_centre(to.base, memory, random, rows, columns);
  std::int64_t const count = std::int64_t{experts} * rows * columns;
  std::vector<float> const changes = few_bits<float>(random, count, 7, 0.03125f);
  std::vector<std::uint8_t> kept;
  for (std::int64_t i = 0; i < count; ++i) kept.push_back(random.below(4) == 0 ? 1 : 0);
  auto const packed = switchyard::pack_masked<Element>(changes.data(), kept.data(), experts, rows, columns);
  to.change = packed.view();
  to.change.masks = memory.put(packed.masks);
  to.change.values = memory.put(packed.values);
  to.change.first_values = memory.put(packed.first_values);
  to.change.block_starts = memory.put(packed.block_starts);
}
template <class Element, switchyard::projection Role>
void make(switchyard::base_plus<switchyard::weight_view<Element, Role>, switchyard::residual_factors<Element>>& to,
          placed_arrays& memory, random_numbers& random, int experts, int rows, int columns) {
  make_centre(to.base, memory, random, rows, columns);
  std::int64_t const numbers = std::int64_t{experts} * residual_rank;
  constexpr bool of_down = Role == switchyard::projection::out;
  std::vector<Element> const of_rows = few_bits<Element>(random, numbers * rows, 2, 0.25f),
                             of_columns = few_bits<Element>(random, numbers * columns, 2, 0.125f);
  Element const *const left = memory.put(of_rows), *const right = memory.put(of_columns);
  to.change = {of_down ? right : left, of_down ? left : right, rows, columns, residual_rank, of_down};
}

/// A layer with stored weights, and the same with dense ones.
template <class Layer>
struct dense_twin;
template <switchyard::shape Dims, class Router, class Capacity, class Expert, class Backend, class Element>
struct dense_twin<switchyard::layer<Dims, Router, Capacity, Expert, Backend, Element>> {
  using type = switchyard::layer<Dims, Router, Capacity, typename Expert::dense, Backend, Element>;
};

/// Runs both on the same tokens; `same` compares their outputs, and sees the call with stored weights.
template <class Layer, class Same>
void check_operand(int tokens, sy::cpu_context const& context, Same const& same) {
  using element = typename Layer::element;
  using dense = typename dense_twin<Layer>::type;
  static constexpr sy::shape dims = Layer::dims;
  static constexpr int shared = Layer::expert_traits.shared_intermediate;
  INFO(sy::describe<Layer>() << ", " << tokens << " tokens");
  placed_arrays memory(reached<typename Layer::backend>::memory()), host({});
  random_numbers random(7);
  typename Layer::args args{};
  typename dense::args dense_args{};

  auto const set_weights = [&](auto& stored, auto& twin, int rows, int columns, unsigned seed) {
    random_numbers same_numbers(seed), again(seed);
    make(stored, memory, same_numbers, dims.experts, rows, columns);
    std::remove_reference_t<decltype(stored)> on_host;
    make(on_host, host, again, dims.experts, rows, columns);
    std::vector<element> wide;
    bool exact = true;
    for (int e = 0; e < dims.experts; ++e) {
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < columns; ++c) {
          float value = 0.0f;
          on_host.read(e, r, c, 1, &value);
          wide.push_back(element(value));
          exact = exact && static_cast<float>(wide.back()) == value;
        }
      }
    }
    REQUIRE(exact);
    twin = sy::weight_view<element>::packed(memory.put(wide), rows, columns);
  };
  if constexpr (Layer::expert_traits.gated) {
    set_weights(args.weights.gate_proj, dense_args.weights.gate_proj, dims.intermediate, dims.hidden, 11);
  }
  set_weights(args.weights.up_proj, dense_args.weights.up_proj, dims.intermediate, dims.hidden, 12);
  set_weights(args.weights.down_proj, dense_args.weights.down_proj, dims.hidden, dims.intermediate, 13);

  auto const numbers = [&]<class T>(T, std::int64_t count) {
    return memory.put(few_bits<T>(random, count, 500, 0.002f));
  };
  optional_arguments<element> optional;
  element const* const x = numbers(element{}, std::int64_t{tokens} * dims.hidden);
  optional.residual = dense::rows(x, tokens);
  float const* const ones = memory.put(std::vector<float>(dims.hidden, 1.0f));
  for (int i = 0; i < most_strata; ++i) {
    optional.router[i].weight = numbers(0.0f, std::int64_t{dims.experts} * dims.hidden);
    optional.router[i].bias = optional.router[i].correction_bias = numbers(0.0f, dims.experts);
    optional.norm[i] = {ones, ones};
  }
  if constexpr (Layer::expert_traits.bias) {
    element const* const of_in = numbers(element{}, std::int64_t{dims.experts} * dims.intermediate);
    element const* const of_out = numbers(element{}, std::int64_t{dims.experts} * dims.hidden);
    optional.bias = {dense::in_bias(of_in), dense::in_bias(of_in), dense::out_bias(of_out)};
  }
  if constexpr (shared > 0) {
    element const* const w = numbers(element{}, std::int64_t{shared} * dims.hidden);
    optional.shared = {dense::shared_in_proj(w), dense::shared_in_proj(w), dense::shared_out_proj(w), x};
  }
  std::vector<std::int32_t> ids;
  constexpr bool everywhere = sy::is_given_experts<typename Layer::router>;
  for (int i = 0; i < tokens * dims.top_k; ++i) {
    ids.push_back(i % dims.top_k == 0 || everywhere ? random.below(dims.experts) : -1);
  }
  std::vector<float> const ones_of_pairs(ids.size(), 0.5f);
  std::int32_t const* const placed_ids = memory.put(ids);
  optional.routes = {placed_ids, memory.put(ones_of_pairs)};
  optional.clusters = {placed_ids, dims.top_k, nullptr};
  std::vector<std::int32_t> words;
  for (int t = 0; t < tokens; ++t) words.push_back(t);
  optional.words = memory.put(words);
  optional.vocabulary = tokens;
  if constexpr (requires { Layer::router::features::width; }) {
    constexpr int width = Layer::router::features::width;
    optional.router[0].weight = numbers(0.0f, std::int64_t{dims.experts} * width);
    optional.router_tokens = {numbers(element{}, std::int64_t{tokens} * width), tokens, width};
  }

  std::vector<float> outputs[2];
  std::vector<std::int32_t> chosen[2];
  auto const run = [&]<class L>(typename L::args& to, int which) {
    std::size_t const pairs = static_cast<std::size_t>(L::router::schedule::passes * tokens * dims.top_k);
    std::size_t const bytes = L::workspace_bytes(tokens);
    element* const y = memory.room<element>(static_cast<std::size_t>(tokens) * dims.hidden);
    to.tokens = L::rows(x, tokens);
    to.output = L::rows(y, tokens);
    to.workspace = {memory.room<std::byte>(bytes), bytes};
    to.decisions.experts = memory.room<std::int32_t>(pairs);
    reached<typename L::backend>::template forward<L>(to, context);
    for (element value : memory.get<element>(y, static_cast<std::size_t>(tokens) * dims.hidden)) {
      outputs[which].push_back(static_cast<float>(value));
    }
    chosen[which] = memory.get<std::int32_t>(to.decisions.experts, pairs);
  };
  set_all_but_weights(dense_args, optional);
  set_all_but_weights(args, optional);
  run.template operator()<Layer>(args, 0);
  run.template operator()<dense>(dense_args, 1);
  CHECK(chosen[0] == chosen[1]);
  same(outputs[0], outputs[1], args);
}

/// Of every element the three formats, with what of a layer meets the weights: gates, biases, the shared expert, weights of the input,
/// tokens that a router has scaled, experts from another one on, capacities that drop.
template <class Backend, class Element, int Hidden, int Intermediate>
struct operand_layers {
  template <int Experts, int TopK, class Router, class Capacity, class Expert>
  using layer = sy::layer<sy::shape{Hidden, Intermediate, Experts, TopK}, Router, Capacity, Expert, Backend, Element>;
  template <class Expert>
  using bits = stored_as<Expert, four_bits>;
  template <class Expert>
  using pruned = stored_as<Expert, pruned_residual>;
  template <class Expert>
  using low_rank = stored_as<Expert, low_rank_residual>;
  using gated = sy::expert::gated_mlp<sy::silu>;
  using plain = sy::expert::mlp<sy::relu>;

  using type = std::tuple<
      layer<4, 2, sy::router::softmax_top_k, sy::capacity::dropless, bits<sy::expert::with_bias<gated>>>,
      layer<3, 2, sy::router::on_input<sy::router::sigmoid_top_k>, sy::capacity::dropless,
            pruned<sy::expert::with_shared<gated, 24, sy::shared_gate::sigmoid>>>,
      layer<4, 2, sy::router::stratified<sy::router::softmax_top_k, 2, 2>, sy::capacity::dropless, low_rank<plain>>,
      layer<4, 2, sy::router::precomputed,
            sy::capacity::on_drop<sy::capacity::factor<1, 2>, sy::dropped::weighted_input>, pruned<gated>>>;
};

template <class List, class Same>
void check_operands(int tokens, sy::cpu_context const& context, Same const& same) {
  [&]<class... Layers>(std::tuple<Layers...> const*) {
    (check_operand<Layers>(tokens, context, same), ...);
  }(static_cast<List const*>(nullptr));
}

}  // namespace support
