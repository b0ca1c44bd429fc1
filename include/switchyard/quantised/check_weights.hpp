#pragma once

#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/finite.hpp>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <string>

/// What a program asks once of quantised weights that come from a file: products trust them. Not part of switchyard.hpp.
namespace switchyard::quantised {

[[noreturn]] inline void fail_weight(char const* matrix, float weight, int expert, std::int64_t row,
                                     std::int64_t column) {
  fail(matrix, "finite weights",
       std::string(std::isnan(weight) ? "NaN" : "an infinite one") + " in expert " + std::to_string(expert) + ", row " +
           std::to_string(row) + ", column " + std::to_string(column));
}

/// Throws `error` unless every weight is finite, so that no scale is NaN or infinite where a code meets it, no code is NaN and no product of both
/// overflows. `name` is the matrix in the sentence, which has expert, row and column of the first one that is not.
///
/// Reads all weights once, as products do, with the context's threads.
template <class Format>
void check_weights(Format const& matrix, int experts, char const* name, cpu_context const& context = {}) {
  constexpr int granule = Format::granule;
  std::int64_t const lines = std::int64_t{experts} * matrix.rows;
  auto const first_wrong = [&](std::int64_t line, float& weight) {
    float weights[granule];
    for (int column = 0; column < matrix.columns; column += granule) {
      int const count = matrix.columns - column < granule ? matrix.columns - column : granule;
      matrix.read(static_cast<int>(line / matrix.rows), static_cast<int>(line % matrix.rows), column, count, weights);
      for (int i = 0; i < count; ++i) {
        if (is_finite(weights[i])) continue;
        weight = weights[i];
        return column + i;
      }
    }
    return -1;
  };
  std::atomic<std::int64_t> wrong{lines};
  cpu::parallel_for(cpu::resolved(context), lines, [&](std::int64_t line) {
    float weight;
    if (line > wrong.load(std::memory_order_relaxed) || first_wrong(line, weight) < 0) return;
    for (std::int64_t least = wrong.load(); line < least && !wrong.compare_exchange_weak(least, line);) {
    }
  });
  if (wrong == lines) return;
  float weight = 0;
  int const column = first_wrong(wrong, weight);
  fail_weight(name, weight, static_cast<int>(wrong / matrix.rows), wrong % matrix.rows, column);
}

}  // namespace switchyard::quantised
