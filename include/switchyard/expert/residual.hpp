#pragma once

#include <switchyard/core/checks.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/masked_change.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/expert/feed_forward.hpp>
#include <switchyard/expert/low_rank.hpp>
#include <switchyard/expert/low_rank_terms.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// What a residual of a low rank adds to one projection of every expert: U_e V_e, where all projections of an expert have U_e in common.
///
/// For gate and up a row is a hidden unit, and U_e [rows, rank] stands left; for down a column is one, and the change is the transpose of
/// U_e times that part of V_e.
template <class Element>
struct residual_factors {
  static constexpr int granule = 32;

  Element const* units = nullptr;     ///< U: [experts, intermediate, rank]
  Element const* features = nullptr;  ///< V: [experts, rank, columns] for gate and up, [experts, rows, rank] for down
  int rows = 0, columns = 0;          ///< of a matrix
  int rank = 0;
  bool of_down = false;

  /// The tables as terms beside products take them.
  SWITCHYARD_HD constexpr low_rank_factors<Element> factors() const {
    return {of_down ? features : units, of_down ? units : features, rows, columns, rank, of_down};
  }
  SWITCHYARD_HD void add(int expert, int row, int column, int count, float* to) const {
    std::int64_t const line_of_tall = (std::int64_t{expert} * rows + row) * rank;
    if (of_down) {  // rows of U are columns
      add_rows(features + line_of_tall, units + (std::int64_t{expert} * columns + column) * rank, 1, rank, count, to);
    } else {
      add_rows(units + line_of_tall, features + std::int64_t{expert} * rank * columns + column, columns, 1, count, to);
    }
  }
  SWITCHYARD_HD constexpr residual_factors from(int expert) const {
    std::int64_t const numbers = std::int64_t{expert} * rank;
    return {units + numbers * (of_down ? columns : rows),
            features + numbers * (of_down ? rows : columns),
            rows,
            columns,
            rank,
            of_down};
  }
  template <class Arrays>
  void name_arrays(Arrays const& arrays, int experts, int all_rows, int all_columns) const {
    std::int64_t const numbers = std::int64_t{experts} * rank;
    arrays.array("units", units, numbers * (of_down ? all_columns : all_rows), "U [experts, intermediate, rank]");
    arrays.array("features", features, numbers * (of_down ? all_rows : all_columns),
                 of_down ? "V [experts, hidden, rank]" : "V [experts, rank, hidden]");
  }

 private:
  SWITCHYARD_HD void add_rows(Element const* tall, Element const* wide, int row_stride, int column_stride, int count,
                              float* to) const {
#if defined(__CUDA_ARCH__)
    // One number at a time: Hopper leaves few registers to what restores weights.
    for (int i = 0; i < count; ++i, wide += column_stride) {
      Element const* at = wide;
#pragma unroll 1
      for (int r = 0; r < rank; ++r, at += row_stride) to[i] += static_cast<float>(tall[r]) * static_cast<float>(*at);
    }
#else
    for (int r = 0; r < rank; ++r, wide += row_stride) {
      float const factor = static_cast<float>(tall[r]);
      Element const* at = wide;
      for (int i = 0; i < count; ++i, at += column_stride) to[i] += factor * static_cast<float>(*at);
    }
#endif
  }
};

/// Residuals of which most entries were pruned, as masks and packed values: `masked_change`.
struct pruned_residuals {};

/// Residuals of a low rank, and how products meet them: see `low_rank_form`.
///
/// A row costs `rank * (columns + rows)` multiplications beside its `columns * rows` where products are factored; restoring costs
/// `rank * columns * rows` for each group of rows of an expert that meets the weights together. So restoring pays where groups have more
/// than columns * rows / (columns + rows) rows, 683 for OLMoE's experts, which is more than any group has (32 to 384 on the CPU, up to 128
/// on a GPU) unless matrices are less than 256 x 256: factored is the default.
template <int Rank, low_rank_form Form = low_rank_form::factored>
struct low_rank_residuals {};

namespace detail {

/// What `expert::residual` has to know of a form.
template <class Form>
struct residual_form {
  static constexpr bool exists = false, factored = false;
  static constexpr int rank = 1;
  template <class Element>
  using change = masked_change<Element>;
  static constexpr auto label() { return text(">"); }
};
template <>
struct residual_form<pruned_residuals> {
  static constexpr bool exists = true, factored = false;
  static constexpr int rank = 1;
  template <class Element>
  using change = masked_change<Element>;
  static constexpr auto label() { return text(",pruned>"); }
};
template <int Rank, low_rank_form Form>
struct residual_form<low_rank_residuals<Rank, Form>> {
  static_assert(Rank >= 1, "switchyard: low_rank_residuals needs the rank of its factors, at least 1.");
  static constexpr bool exists = true, factored = Form == low_rank_form::factored;
  static constexpr int rank = Rank;
  template <class Element>
  using change = residual_factors<Element>;
  static constexpr auto label() { return ",rank:" + decimal<Rank>() + low_rank_form_label<Form>(); }
};

/// Each expert has the factors of its own number.
struct expert_entries {
  SWITCHYARD_HD low_rank_entry of(int expert, std::int64_t) const { return {expert, expert, 1.0f}; }
};

}  // namespace detail

namespace expert {

/// What makes operands of a centre and of residuals: members of every layer of `residual` experts.
template <shape Dims, class Expert, class Element>
struct residual_views : feed_forward_views<Dims, Expert, Element> {
  using change = typename Expert::template change<Element>;

  /// Such a centre: a view of elements, or what `expert::stored_as` stores.
  template <projection Role>
  using matrix = typename Expert::template centre<Element, Role>;

  /// Gate or up projection: `centre` [intermediate, hidden] or a view of it, and its residuals.
  static constexpr auto in_proj(matrix<projection::in> const& centre, change const& residuals) {
    return made(centre, residuals);
  }
  static constexpr auto in_proj(Element const* centre, change const& residuals) {
    return in_proj(weight_view<Element, projection::in>::packed(centre, Dims.intermediate, Dims.hidden), residuals);
  }
  /// Down projection: `centre` [hidden, intermediate] or a view of it, and its residuals.
  static constexpr auto out_proj(matrix<projection::out> const& centre, change const& residuals) {
    return made(centre, residuals);
  }
  static constexpr auto out_proj(Element const* centre, change const& residuals) {
    return out_proj(weight_view<Element, projection::out>::packed(centre, Dims.hidden, Dims.intermediate), residuals);
  }
  /// The same of low-rank residuals: `units` is U [experts, intermediate, rank], which all projections of an expert share, `features` its
  /// part of V, [experts, rank, hidden].
  template <class Centre>
  static constexpr auto in_proj(Centre const& centre, Element const* units, Element const* features) {
    return in_proj(centre, change{units, features, Dims.intermediate, Dims.hidden, Expert::rank, false});
  }
  /// `features` is the part of V for down, its transpose: [experts, hidden, rank].
  template <class Centre>
  static constexpr auto out_proj(Centre const& centre, Element const* units, Element const* features) {
    return out_proj(centre, change{units, features, Dims.hidden, Dims.intermediate, Expert::rank, true});
  }

 private:
  template <class Matrix>
  static constexpr base_plus<Matrix, change> made(Matrix centre, change const& residuals) {
    if constexpr (Matrix::in_place) centre.expert_stride = 0;
    return {centre, residuals};
  }
};

/// Compressed experts of a trained model (ResMoE): every projection of expert e is X + D_e, where all experts share the centre X, and D_e
/// is what compression has left of the expert's difference to it. The sum is made in weight space while products read their weights,
/// before any activation; it is never a sum of outputs. `Form` is `pruned_residuals`, or `low_rank_residuals<Rank>`.
///
///   layer<shape, router::softmax_top_k, capacity::dropless, expert::residual<expert::gated_mlp<silu>>>
///
/// Views are made by `layer::in_proj(centre, residuals)` and `out_proj`, for low rank `in_proj(centre, U, V)`. Biases, where `with_bias`
/// asks for them, are those of each expert, whole; a shared expert is not compressed. Hidden units stand in the order of the centre.
///
/// Source: Ai et al. 2025, ResMoE: Space-efficient Compression of Mixture of Experts LLMs via Residual Restoration. Its published
/// inference module adds outputs of the centre and of residuals instead, which is another function; we restore weights, as the paper
/// describes. The centre may be quantised, which leaves its bytes too: `residual<stored_as<gated_mlp<silu>, Format>>`.
template <class Base, class Form = pruned_residuals>
struct residual : Base {
  using form = switchyard::detail::residual_form<Form>;
  static_assert(form::exists,
                "switchyard: the second argument of expert::residual says what residuals are stored as. Give "
                "pruned_residuals or low_rank_residuals<Rank>.");
  static_assert(
      std::is_same_v<typename Base::computation, two_products>,
      "switchyard: expert::residual restores the matrices of expert::mlp or expert::gated_mlp, plain, with biases, or "
      "with a shared expert. Take what stands between off.");
  static_assert(
      !requires { typename Base::form; },
      "switchyard: expert::residual stands twice. Add the residuals up, and store them once.");
  static_assert(
      !requires { typename Base::paths; },
      "switchyard: expert::residual has a residual for each expert, and the experts of expert::low_rank are paths of "
      "languages that share their matrices. Take one of the two.");
  static_assert(!form::factored || (Base::traits.kept_units == 0 && Base::traits.nulls.count() == 0),
                "switchyard: factored residuals of expert::residual go with no expert::top_k_units and no "
                "expert::with_null_experts. Give low_rank_residuals the form low_rank_form::restored.");
  static constexpr int rank = form::rank;
  static constexpr auto label = "residual<" + name_of<Base>() + form::label();
  static constexpr std::string_view name = label;

  using computation = std::conditional_t<form::factored, low_rank_products, two_products>;
  template <class Element>
  using change = typename form::template change<Element>;

  template <class Element, projection Role>
  using centre = typename Base::template operand<Element, Role>;
  template <class Element, projection Role>
  using operand = base_plus<centre<Element, Role>, change<Element>>;
  template <shape Dims, class Expert, class Element>
  using views = residual_views<Dims, Expert, Element>;

  template <class Layer>
  static void check(feed_forward_weights<Layer> const& w) {
    Base::template check<Layer>(w);
    constexpr int hidden = Layer::dims.hidden, inner = Layer::dims.intermediate;
    if constexpr (Layer::expert_traits.gated) check_operand(w.gate_proj, "weights.gate_proj", inner, hidden, false);
    check_operand(w.up_proj, "weights.up_proj", inner, hidden, false);
    check_operand(w.down_proj, "weights.down_proj", hidden, inner, true);
  }

  // What `low_rank_products` asks.
  static constexpr bool one_matrix = true;
  template <class Layer>
  static constexpr std::int64_t entries = Layer::dims.experts;
  template <class Layer>
  static auto entries_of(forward_args<Layer> const&) {
    return switchyard::detail::expert_entries{};
  }

  /// The centre once, and low-rank factors. How many values pruning has left, only arrays know (`masked_arrays::bytes`): none are counted.
  template <class Layer>
  static constexpr expert_costs costs() {
    constexpr std::int64_t in = Base::traits.input_projections();
    constexpr std::int64_t hidden = Layer::dims.hidden, inner = Layer::dims.intermediate;
    expert_costs result = Base::template costs<Layer>();
    result.common = result.matrices;
    if constexpr (!std::is_same_v<Form, pruned_residuals>) {
      result.matrices += (in + 1) * rank * (hidden + inner);
      result.repeated = in * rank * inner;
    }
    return result;
  }

 private:
  /// What a view says that was put together by hand.
  template <class Operand>
  static void check_operand(Operand const& w, char const* matrix, int rows, int columns, bool of_down) {
    auto const what = [&](char const* part) { return std::string("layer::forward, ").append(matrix).append(part); };
    constexpr char const* set = " (layer::in_proj and out_proj set it)";
    if constexpr (requires { w.base.expert_stride; }) {
      if (w.base.expert_stride != 0) {
        fail(what(".base.expert_stride"), std::string("0, for all experts share this matrix") + set,
             std::to_string(w.base.expert_stride));
      }
    }
    auto const size = [](int all_rows, int all_columns) {
      return std::to_string(all_rows) + " x " + std::to_string(all_columns);
    };
    auto const& c = w.change;
    if (c.rows != rows || c.columns != columns) {
      fail(what(".change, rows x columns"), size(rows, columns), size(c.rows, c.columns));
    }
    if constexpr (requires { c.rank; }) {
      if (c.rank != rank) fail(what(".change.rank"), std::to_string(rank) + set, std::to_string(c.rank));
      if (c.of_down != of_down) {
        fail(what(".change.of_down"), std::string(of_down ? "true" : "false") + set, c.of_down ? "true" : "false");
      }
    } else {
      (void)of_down;
    }
  }
};

}  // namespace expert
}  // namespace switchyard
