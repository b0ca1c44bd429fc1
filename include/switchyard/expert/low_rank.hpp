#pragma once

#include <switchyard/core/language_paths.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/expert/feed_forward.hpp>
#include <switchyard/expert/low_rank_terms.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// What a path of languages adds to a matrix that all paths share: A[source] F[target], of a low rank.
///
/// A product takes it apart, W x + A (F x), or restores W + A F while it reads its weights: see `low_rank_form`. A path that is known
/// beforehand costs nothing when it is merged (`merge`).
template <class Element>
struct low_rank_change {
  static constexpr int granule = 32;

  Element const* vertical = nullptr;  ///< A: [languages + 1, rows, rank]
  Element const* flat = nullptr;      ///< F: [languages + 1, rank, columns]
  int rows = 0, columns = 0;          ///< of a matrix
  int rank = 0;
  int entries = 0;         ///< languages + 1
  bool pair_wise = false;  ///< expert e is the pair (e / entries, e % entries); false: the language e
  int first = 0;           ///< path of expert 0

  /// Of tables that stand back to back.
  template <class Paths>
  static constexpr low_rank_change packed(Element const* vertical, Element const* flat, int rows, int columns,
                                          int rank) {
    return {vertical, flat, rows, columns, rank, Paths::entries, Paths::pair_wise, 0};
  }

  SWITCHYARD_HD constexpr int source(int expert) const {
    return pair_wise ? (first + expert) / entries : first + expert;
  }
  SWITCHYARD_HD constexpr int target(int expert) const {
    return pair_wise ? (first + expert) % entries : first + expert;
  }
  /// Numbers 0 to rank - 1 of a row of A.
  SWITCHYARD_HD constexpr Element const* vertical_row(int language, int row) const {
    return vertical + (std::int64_t{language} * rows + row) * rank;
  }
  /// A row of F begins here, the next one `columns` further.
  SWITCHYARD_HD constexpr Element const* flat_rows(int language) const {
    return flat + std::int64_t{language} * rank * columns;
  }

  SWITCHYARD_HD void add(int expert, int row, int column, int count, float* to) const {
    Element const* const factors = vertical_row(source(expert), row);
    Element const* line = flat_rows(target(expert)) + column;
#if defined(__CUDA_ARCH__)
#pragma unroll 1  // several numbers of the rank at once take more registers than Hopper leaves to what restores weights
#endif
    for (int r = 0; r < rank; ++r, line += columns) {
      float const factor = static_cast<float>(factors[r]);
      for (int i = 0; i < count; ++i) to[i] += factor * static_cast<float>(line[i]);
    }
  }
  constexpr low_rank_factors<Element> factors() const { return {vertical, flat, rows, columns, rank}; }
  SWITCHYARD_HD constexpr low_rank_change from(int expert) const {
    return {vertical, flat, rows, columns, rank, entries, pair_wise, first + expert};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int, int all_rows, int all_columns) const {
    std::int64_t const columns_of_all = std::int64_t{entries} * rank;
    arrays.array("vertical", vertical, columns_of_all * all_rows, "[languages + 1, rows, rank]");
    arrays.array("flat", flat, columns_of_all * all_columns, "[languages + 1, rank, columns]");
  }
};

/// Writes W + A[source] F[target] of one path: the matrix of a dense layer that serves this path alone, at no cost beyond its own. Sums
/// are taken in double and rounded to float, then to the element. `path` is what `language_pairs::path` or `languages::path` says.
/// Throws where there is no such path. On the host.
template <operand Base>
void merge(base_plus<Base, low_rank_change<typename Base::element>> const& weights, int path,
           view<typename Base::element> to) {
  using element = typename Base::element;
  auto const& change = weights.change;
  int const paths = change.pair_wise ? change.entries * change.entries : change.entries;
  if (path < 0 || path >= paths) fail("merge, path", "0 to " + std::to_string(paths - 1), std::to_string(path));
  if (to.rows != change.rows || to.columns != change.columns) {
    fail("merge, to", std::to_string(change.rows) + " x " + std::to_string(change.columns) + " (rows x columns)",
         std::to_string(to.rows) + " x " + std::to_string(to.columns));
  }
  if (to.data == nullptr) fail("merge, to", "a matrix [rows, columns]", "a null pointer");
  element const* const flat = change.flat_rows(change.target(path));
  for (int row = 0; row < to.rows; ++row) {
    element const* const vertical = change.vertical_row(change.source(path), row);
    for (int column = 0; column < to.columns; ++column) {
      float shared = 0.0f;
      weights.base.read(0, row, column, 1, &shared);
      double sum = static_cast<double>(shared);
      for (int r = 0; r < change.rank; ++r) {
        sum += static_cast<double>(static_cast<float>(vertical[r])) *
               static_cast<double>(static_cast<float>(flat[std::int64_t{r} * change.columns + column]));
      }
      to.row(row)[column] = element(static_cast<float>(sum));
    }
  }
}

/// How products meet a change of low rank. Outputs differ by rounding alone.
enum class low_rank_form {
  /// W x + A (F x): one product of all tokens with the matrix that all paths share, and `rank * (columns + rows)` multiplications for each
  /// token beside its `columns * rows`, however tokens are spread over paths.
  factored,
  /// (W + A F) x: a product for each path, and `rank * columns * rows` multiplications for each group of rows of a path that meets the
  /// weights together, which is 32 to 384 rows on the CPU and up to 128 on a GPU.
  restored
};

namespace detail {

/// Which factors the tokens of a path have.
template <class Paths>
struct path_entries {
  SWITCHYARD_HD low_rank_entry of(int path, std::int64_t) const {
    if (Paths::pair_wise) return {path % Paths::entries, path / Paths::entries, 1.0f};
    return {path, path, 1.0f};
  }
};

template <low_rank_form Form>
constexpr auto low_rank_form_label() {
  if constexpr (Form == low_rank_form::restored) {
    return text(",restored>");
  } else {
    return text(">");
  }
}

}  // namespace detail

namespace expert {

/// What makes operands of a checkpoint's tensors: members of every layer of `low_rank` experts.
template <shape Dims, class Expert, class Element>
struct low_rank_views : feed_forward_views<Dims, Expert, Element> {
  /// Gate or up projection: `weight` [intermediate, hidden], `vertical` [languages + 1, intermediate, rank], `flat` [languages + 1, rank,
  /// hidden].
  static constexpr auto in_proj(Element const* weight, Element const* vertical, Element const* flat) {
    return made<projection::in>(weight, vertical, flat, Dims.intermediate, Dims.hidden);
  }
  /// Down projection: `weight` [hidden, intermediate], `vertical` [languages + 1, hidden, rank], `flat` [languages + 1, rank,
  /// intermediate].
  static constexpr auto out_proj(Element const* weight, Element const* vertical, Element const* flat) {
    return made<projection::out>(weight, vertical, flat, Dims.hidden, Dims.intermediate);
  }

 private:
  template <projection Role>
  static constexpr auto made(Element const* weight, Element const* vertical, Element const* flat, int rows,
                             int columns) {
    return base_plus<weight_view<Element, Role>, low_rank_change<Element>>{
        weight_view<Element, Role>::packed(weight, rows, columns),
        low_rank_change<Element>::template packed<typename Expert::paths>(vertical, flat, rows, columns, Expert::rank)};
  }
};

/// Language-specific matrix synthesis (LMS): every projection of `Base` is W + A[source] F[target], where all languages share W, and each
/// has a tall factor A as a source and a wide one F as a target, of rank `Rank`. `Paths` is `language_pairs<Languages>` or
/// `languages<Languages>`, and its number of paths that of the layer's experts. Biases, where `with_bias` asks for them, are shared, too:
/// `bias.up` [intermediate], `bias.down` [hidden].
///
///   layer<shape{.hidden = 512, .intermediate = 2048, .experts = language_pairs<15>::count, .top_k = 1},
///         router::by_language_pair<15>, capacity::dropless,
///         expert::low_rank<language_pairs<15>, 4, expert::with_bias<expert::mlp<relu>>>>
///
/// `Form` says how products meet the factors. By cost, restoring pays only where groups have more than hidden * intermediate / (hidden +
/// intermediate) rows of one path: with matrices of less than 256 x 256 and hundreds of tokens of every path. Else factored is the cheaper
/// one, and the default; with few tokens in each of many paths by far.
///
/// Source: Xu et al. 2023, Condensing Multilingual Knowledge with Lightweight Language-Specific Modules, with its published code. There
/// the last entry of each table is the path that all languages share (fuse distillation); it is no zero.
template <class Paths, int Rank, class Base, low_rank_form Form = low_rank_form::factored>
struct low_rank : Base {
  static_assert(
      std::is_same_v<typename Base::computation, two_products> || requires { typename Base::paths; },
      "switchyard: expert::low_rank changes the matrices of expert::mlp or expert::gated_mlp, plain, with biases, "
      "or with a shared expert. Take what stands between off.");
  static_assert(Base::traits.kept_units == 0 || Form == low_rank_form::restored,
                "switchyard: the factored form of expert::low_rank goes with no expert::top_k_units. Give "
                "low_rank_form::restored as the fourth argument of expert::low_rank.");
  static_assert(Rank >= 1, "switchyard: expert::low_rank needs the rank of its factors, at least 1.");
  static_assert(
      requires { Paths::pair_wise; },
      "switchyard: the first argument of expert::low_rank says which paths there are. Give "
      "language_pairs<Languages> or languages<Languages>.");
  static_assert(
      !requires { typename Base::paths; },
      "switchyard: expert::low_rank stands twice. Put the factors together: ranks add up.");
  static_assert(Base::traits.nulls.count() == 0,
                "switchyard: expert::low_rank has an expert for each path, and a token's languages are always one of "
                "them, so that nothing would choose expert::with_null_experts. Take one of the two.");
  static_assert(
      !requires { typename Base::form; },
      "switchyard: expert::low_rank has one matrix for all paths, and expert::residual one for each expert. Take one "
      "of "
      "the two.");
  using paths = Paths;
  static constexpr int rank = Rank;
  static constexpr auto label = "low_rank<" + name_of<Paths>() + "," + decimal<Rank>() + "," + name_of<Base>() +
                                switchyard::detail::low_rank_form_label<Form>();
  static constexpr std::string_view name = label;
  static constexpr expert_traits traits = with(Base::traits, &expert_traits::one_bias, true);

  using computation = std::conditional_t<Form == low_rank_form::factored, low_rank_products, two_products>;

  template <class Element, projection Role>
  using operand = base_plus<typename Base::template operand<Element, Role>, low_rank_change<Element>>;
  template <shape Dims, class Expert, class Element>
  using views = low_rank_views<Dims, Expert, Element>;

  template <class Layer>
  static void check(feed_forward_weights<Layer> const& w) {
    static_assert(Layer::dims.experts == Paths::count,
                  "switchyard: a layer of expert::low_rank has an expert for each path. Set shape.experts to "
                  "language_pairs<Languages>::count or languages<Languages>::count.");
    Base::template check<Layer>(w);
    constexpr int hidden = Layer::dims.hidden, inner = Layer::dims.intermediate;
    if constexpr (Layer::expert_traits.gated) check_change(w.gate_proj.change, "weights.gate_proj", inner, hidden);
    check_change(w.up_proj.change, "weights.up_proj", inner, hidden);
    check_change(w.down_proj.change, "weights.down_proj", hidden, inner);
  }

  // What `low_rank_products` asks.
  static constexpr bool one_matrix = true;
  template <class Layer>
  static constexpr std::int64_t entries = Paths::entries;
  template <class Layer>
  static auto entries_of(forward_args<Layer> const&) {
    return switchyard::detail::path_entries<Paths>{};
  }

  /// The shared matrices once and the factors; multiplications and additions are those of y = W x + A (F x), the least there are.
  template <class Layer>
  static constexpr expert_costs costs() {
    constexpr std::int64_t in = Base::traits.input_projections();
    expert_costs result = Base::template costs<Layer>();
    result.common = result.matrices + result.vectors;
    result.matrices += (in + 1) * Rank * (std::int64_t{Layer::dims.hidden} + Layer::dims.intermediate);
    result.copies = Paths::entries;
    return result;
  }

 private:
  /// What a view says that was put together by hand.
  template <class Change>
  static void check_change(Change const& change, char const* matrix, int rows, int columns) {
    Change const right = Change::template packed<Paths>(nullptr, nullptr, rows, columns, Rank);
    auto const text = [](Change const& c) {
      return std::to_string(c.rows) + " x " + std::to_string(c.columns) + ", rank " + std::to_string(c.rank) + ", " +
             std::to_string(c.entries) + " entries of " + (c.pair_wise ? "language pairs" : "languages");
    };
    bool const same = change.rows == rows && change.columns == columns && change.rank == Rank &&
                      change.entries == Paths::entries && change.pair_wise == Paths::pair_wise;
    if (same && change.first == 0) return;
    fail(std::string("layer::forward, ").append(matrix).append(".change"),
         text(right) + " (layer::in_proj and out_proj set them)",
         same ? "those from path " + std::to_string(change.first) + " on" : text(change));
  }
};

}  // namespace expert
}  // namespace switchyard
