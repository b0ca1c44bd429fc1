#pragma once

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

/// Operands that are none of the library's, each against the same weights widened to dense ones. Their values have few enough bits to be
/// elements of any type, so that both layers compute with the same numbers.
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

/// A bit for every weight, and the weights that have one.
template <class Element>
struct sparse_change {
  static constexpr int granule = 32;

  std::uint32_t const* masks = nullptr;  ///< [experts, rows, words]
  std::int32_t const* firsts = nullptr;  ///< the same: where the values of each word begin
  Element const* values = nullptr;
  std::int64_t rows = 0, words = 0;  ///< of a matrix, of a row

  SWITCHYARD_HD void add(int expert, int row, int column, int count, float* to) const {
    std::int64_t const at = (expert * rows + row) * words + column / 32;
    std::uint32_t const mask = masks[at];
    std::int64_t next = firsts[at];
    for (int i = 0; i < column % 32; ++i) next += mask >> i & 1u;
    for (int i = 0; i < count; ++i) {
      if ((mask >> (column % 32 + i) & 1u) != 0) to[i] += static_cast<float>(values[next++]);
    }
  }
  SWITCHYARD_HD constexpr sparse_change from(int expert) const {
    return {masks + expert * rows * words, firsts + expert * rows * words, values, rows, words};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts, int all_rows, int) const {
    arrays.array("masks", masks, std::int64_t{experts} * all_rows * words, "[experts, rows, columns / 32] bits");
    arrays.array("firsts", firsts, std::int64_t{experts} * all_rows * words, "[experts, rows, columns / 32] int32");
    arrays.array("values", values, 1, "the values of all bits");
  }
};
template <class Element>
using with_sparse_change = switchyard::base_plus<switchyard::weight_view<Element>, sparse_change<Element>>;

/// Columns of one matrix times rows of another, for each expert.
template <class Element>
struct low_rank_change {
  static constexpr int granule = 32, rank = 2;

  Element const* left = nullptr;   ///< [experts, rows, rank]
  Element const* right = nullptr;  ///< [experts, rank, columns]
  std::int64_t rows = 0, columns = 0;

  SWITCHYARD_HD void add(int expert, int row, int column, int count, float* to) const {
    for (int r = 0; r < rank; ++r) {
      float const factor = static_cast<float>(left[(expert * rows + row) * rank + r]);
      Element const* const line = right + (std::int64_t{expert} * rank + r) * columns + column;
      for (int i = 0; i < count; ++i) to[i] += factor * static_cast<float>(line[i]);
    }
  }
  SWITCHYARD_HD constexpr low_rank_change from(int expert) const {
    return {left + expert * rows * rank, right + std::int64_t{expert} * rank * columns, rows, columns};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts, int all_rows, int all_columns) const {
    arrays.array("left", left, std::int64_t{experts} * all_rows * rank, "[experts, rows, rank]");
    arrays.array("right", right, std::int64_t{experts} * rank * all_columns, "[experts, rank, columns]");
  }
};
template <class Element>
using with_low_rank_change = switchyard::base_plus<switchyard::weight_view<Element>, low_rank_change<Element>>;

/// An expert whose weights are stored so.
template <class Base, template <class> class Format>
struct stored_as : Base {
  static constexpr std::string_view name = Base::name;
  using dense = Base;
  template <class Element, switchyard::projection>
  using operand = Format<Element>;
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
template <class Element>
void make(with_sparse_change<Element>& to, placed_arrays& memory, random_numbers& random, int experts, int rows,
          int columns) {
  to.base = switchyard::weight_view<Element>::packed(
      memory.put(few_bits<Element>(random, std::int64_t{rows} * columns, 7, 0.03125f)), rows, columns);
  int const words = (columns + 31) / 32;
  std::vector<std::uint32_t> masks;
  std::vector<std::int32_t> firsts;
  std::int32_t count = 0;
  for (std::int64_t line = 0; line < std::int64_t{experts} * rows; ++line) {
    for (int w = 0; w < words; ++w) {
      std::uint32_t mask = 0;
      for (int i = 0; i < 32 && w * 32 + i < columns; ++i) mask |= random.below(4) == 0 ? 1u << i : 0u;
      masks.push_back(mask);
      firsts.push_back(count);
      for (; mask != 0; mask &= mask - 1) ++count;
    }
  }
  to.change = {memory.put(masks), memory.put(firsts), memory.put(few_bits<Element>(random, count + 1, 7, 0.03125f)),
               rows, words};
}
template <class Element>
void make(with_low_rank_change<Element>& to, placed_arrays& memory, random_numbers& random, int experts, int rows,
          int columns) {
  to.base = switchyard::weight_view<Element>::packed(
      memory.put(few_bits<Element>(random, std::int64_t{rows} * columns, 7, 0.03125f)), rows, columns);
  constexpr int rank = low_rank_change<Element>::rank;
  to.change = {memory.put(few_bits<Element>(random, std::int64_t{experts} * rows * rank, 2, 0.25f)),
               memory.put(few_bits<Element>(random, std::int64_t{experts} * rank * columns, 2, 0.125f)), rows, columns};
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
  using operand = typename Layer::weights::in_operand;
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
    operand on_host;
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
  using sparse = stored_as<Expert, with_sparse_change>;
  template <class Expert>
  using low_rank = stored_as<Expert, with_low_rank_change>;
  using gated = sy::expert::gated_mlp<sy::silu>;
  using plain = sy::expert::mlp<sy::relu>;

  using type = std::tuple<
      layer<4, 2, sy::router::softmax_top_k, sy::capacity::dropless, bits<sy::expert::with_bias<gated>>>,
      layer<3, 2, sy::router::on_input<sy::router::sigmoid_top_k>, sy::capacity::dropless,
            sparse<sy::expert::with_shared<gated, 24, sy::shared_gate::sigmoid>>>,
      layer<4, 2, sy::router::stratified<sy::router::softmax_top_k, 2, 2>, sy::capacity::dropless, low_rank<plain>>,
      layer<4, 2, sy::router::precomputed,
            sy::capacity::on_drop<sy::capacity::factor<1, 2>, sy::dropped::weighted_input>, sparse<gated>>>;
};

template <class List, class Same>
void check_operands(int tokens, sy::cpu_context const& context, Same const& same) {
  [&]<class... Layers>(std::tuple<Layers...> const*) {
    (check_operand<Layers>(tokens, context, same), ...);
  }(static_cast<List const*>(nullptr));
}

}  // namespace support
