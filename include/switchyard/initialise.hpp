#pragma once

#include <switchyard/core/counter_random.hpp>
#include <switchyard/core/element.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

/// Weights before training. All are normal with mean 0; what publications choose is the standard deviation.
///
/// ```cpp
/// constexpr double base = initialise::base_deviation(16, initialise::layer_norm::before);
/// initialise::normal(up, 16 * 128 * 412, initialise::up_proj_deviation(base, 412), {.seed = 1, .stream = 0});
/// initialise::normal(down, 16 * 412 * 128, initialise::down_proj_deviation(base, 16, 128), {.seed = 1, .stream = 1});
/// initialise::normal(router, 16 * 412, initialise::router_weight_deviation(base, 412), {.seed = 1, .stream = 2});
/// initialise::equalise_rows({router, 16, 412});
/// ```
namespace switchyard::initialise {

namespace detail {

/// The square root within a unit of the last place, also while compiling: by Newton, from above.
constexpr double square_root(double value) {
  double root = value > 1.0 ? value : 1.0;
  for (double next = 0.5 * (root + value / root); next < root; next = 0.5 * (root + value / root)) root = next;
  return root;
}

[[noreturn]] inline void fail_size(char const* function, char const* name, std::int64_t size) {
  fail(std::string("initialise::") + function + ", " + name, "at least 1", std::to_string(size));
}
[[noreturn]] inline void fail_deviation(char const* function, char const* name, double value) {
  fail(std::string("initialise::") + function + ", " + name, "a finite number that is not negative",
       std::to_string(value));
}

constexpr bool is_deviation(double value) { return value >= 0.0 && value <= std::numeric_limits<double>::max(); }

struct named_size {
  char const* name;
  std::int64_t size;
};

/// base / sqrt(the product of the sizes)
constexpr double by_width(char const* function, double base, named_size a, named_size b = {"", 1}) {
  if (!is_deviation(base)) fail_deviation(function, "base", base);
  if (a.size < 1) fail_size(function, a.name, a.size);
  if (b.size < 1) fail_size(function, b.name, b.size);
  return base / square_root(static_cast<double>(a.size) * static_cast<double>(b.size));
}

}  // namespace detail

/// Where the blocks of a model have their layer norm.
enum class layer_norm {
  before,  ///< on a sublayer's input (pre-LN)
  after    ///< on the sum of a sublayer's input and output (post-LN)
};

/// The deviation that the others are multiples of, sigma0: sqrt(2 / layers) where the norm stands before a sublayer,
/// else 1.
///
/// `layers` counts the model's blocks. Throws `error` for less than one.
/// Source for all but the factors of languages: Csordas et al. 2023, Approximating Two-Layer Feedforward Networks for
/// Efficient Transformers, and its reference code.
constexpr double base_deviation(int layers, layer_norm norm) {
  if (layers < 1) detail::fail_size("base_deviation", "layers", layers);
  return norm == layer_norm::before ? detail::square_root(2.0 / layers) : 1.0;
}

/// Of `up_proj` of sigma-MoE: base / sqrt(hidden). Throws `error` for a width below 1, as do all below.
constexpr double up_proj_deviation(double base, int hidden) {
  return detail::by_width("up_proj_deviation", base, {"hidden", hidden});
}

/// Of `down_proj` of sigma-MoE: base / sqrt(experts * intermediate), by the inputs of the dense layer that has as many
/// units, not by those of one expert or of the experts chosen.
constexpr double down_proj_deviation(double base, int experts, int intermediate) {
  return detail::by_width("down_proj_deviation", base, {"experts", experts}, {"intermediate", intermediate});
}

/// Of the router weight of sigma-MoE: base / sqrt(hidden). `equalise_rows` comes after it.
constexpr double router_weight_deviation(double base, int hidden) {
  return detail::by_width("router_weight_deviation", base, {"hidden", hidden});
}

/// Of both tables of keys of a product-key memory: base / sqrt(hidden), where hidden is the width of the whole token.
/// Source: Lample et al. 2019, Large Memory Layers with Product Keys, as Csordas et al. 2023 initialise it.
constexpr double product_key_deviation(double base, int hidden) {
  return detail::by_width("product_key_deviation", base, {"hidden", hidden});
}

/// Of the values of a product-key memory, as they were chosen first: base / sqrt(hidden).
constexpr double product_value_deviation_by_width(double base, int hidden) {
  return detail::by_width("product_value_deviation_by_width", base, {"hidden", hidden});
}

/// Of the values of a product-key memory, as Csordas et al. 2023 propose: base / sqrt(keys * keys), by their number,
/// where `keys` is that of one table.
constexpr double product_value_deviation_by_count(double base, int keys) {
  return detail::by_width("product_value_deviation_by_count", base, {"keys", keys}, {"keys", keys});
}

/// Of the vertical factors of language-specific matrices, `[languages + 1, out, rank]`. Their flat factors,
/// `[languages + 1, rank, in]`, are zeros, so that all languages begin with the shared matrix.
/// Source: Xu et al. 2023, Condensing Multilingual Knowledge with Lightweight Language-Specific Modules, and its
/// reference code.
inline constexpr double vertical_factor_deviation = 0.01;
inline constexpr double flat_factor_deviation = 0.0;

/// Fills an array with normal numbers: element i becomes deviation * numbers.normal(first + i), rounded once more to
/// `T`; with a deviation of 0 it becomes 0.
///
/// An element depends on nothing else, so parts of an array can be filled apart, each with the index of its first
/// element as `first`. Throws `error` for a null pointer, a count below 1, and a deviation that is negative or not
/// finite.
template <element T>
void normal(T* data, std::int64_t count, double deviation, counter_random numbers, std::uint64_t first = 0) {
  if (count < 1) detail::fail_size("normal", "count", count);
  if (data == nullptr) fail("initialise::normal, data", std::to_string(count) + " elements", "a null pointer");
  if (!detail::is_deviation(deviation)) detail::fail_deviation("normal", "deviation", deviation);
  if (deviation == 0.0) {
    for (std::int64_t i = 0; i < count; ++i) data[i] = static_cast<T>(0.0f);
    return;
  }
  float four[4] = {};
  std::uint64_t drawn = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint64_t const index = first + static_cast<std::uint64_t>(i);
    if (i == 0 || index / 4 != drawn) numbers.normals(drawn = index / 4, four);
    data[i] = static_cast<T>(static_cast<float>(deviation * four[index % 4]));
  }
}

/// Gives the rows of a router weight `[experts, hidden]` one length, and the matrix the standard deviation that it had
/// before, the unbiased one over all elements: no expert is then preferred because its row is long. In place, in
/// double, on the calling thread.
///
/// Throws `error`, with nothing changed, for sizes below 1, a null pointer, rows that overlap, a row that is 0 or not
/// finite, and a matrix whose rows become all the same number, which has no deviation to restore.
/// Source: Csordas et al. 2023, the reference code.
inline void equalise_rows(view<float> weight) {
  std::string const what = "initialise::equalise_rows, weight";
  if (weight.rows < 1 || weight.columns < 1) {
    fail(what, "at least 1 x 1 (experts x hidden)",
         std::to_string(weight.rows) + " x " + std::to_string(weight.columns));
  }
  if (weight.data == nullptr) fail(what, "a matrix", "a null pointer");
  if (weight.rows > 1 && weight.row_stride < weight.columns) {
    fail(what + ", row stride", "at least " + std::to_string(weight.columns), std::to_string(weight.row_stride));
  }
  auto const length = [&](std::int64_t expert) {
    double square = 0.0;
    for (std::int64_t i = 0; i < weight.columns; ++i) {
      double const w = weight.row(expert)[i];
      square += w * w;
    }
    return std::sqrt(square);
  };
  double const count = static_cast<double>(weight.rows) * static_cast<double>(weight.columns);
  double mean_before = 0.0, mean_after = 0.0;
  for (std::int64_t expert = 0; expert < weight.rows; ++expert) {
    double const norm = length(expert);
    if (!(norm > 0.0 && norm <= std::numeric_limits<double>::max())) {
      fail(what, "rows of finite numbers that are not all 0",
           "one of length " + std::to_string(norm) + " for expert " + std::to_string(expert));
    }
    double sum = 0.0;
    for (std::int64_t i = 0; i < weight.columns; ++i) sum += weight.row(expert)[i];
    mean_before += sum / count;
    mean_after += sum / norm / count;
  }
  double square_before = 0.0, square_after = 0.0;
  for (std::int64_t expert = 0; expert < weight.rows; ++expert) {
    double const norm = length(expert);
    for (std::int64_t i = 0; i < weight.columns; ++i) {
      double const w = weight.row(expert)[i], before = w - mean_before, after = w / norm - mean_after;
      square_before += before * before;
      square_after += after * after;
    }
  }
  // Below it is rounding: floats that differ at all differ by more.
  if (!(square_after > 1e-26 * mean_after * mean_after)) {
    fail(what, "rows of one length that differ somewhere", "the same number everywhere");
  }
  double const scale = std::sqrt(square_before / square_after);
  for (std::int64_t expert = 0; expert < weight.rows; ++expert) {
    double const factor = scale / length(expert);
    float* const row = weight.row(expert);
    for (std::int64_t i = 0; i < weight.columns; ++i) row[i] = static_cast<float>(row[i] * factor);
  }
}

}  // namespace switchyard::initialise
