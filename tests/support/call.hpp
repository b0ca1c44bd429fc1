#pragma once

#include <switchyard/switchyard.hpp>

#include <cstdint>
#include <vector>

#include "support/random_problem.hpp"

/// One call of forward.
namespace support {

namespace sy = switchyard;

/// How the experts' matrices are stored.
enum class layout {
  separate,                 ///< gate and up apart
  concatenated,             ///< one tensor, first all gate features
  interleaved,              ///< one tensor, features take turns
  transposed,               ///< gate and up apart, input features first
  transposed_concatenated,  ///< one tensor, input features first
  transposed_interleaved
};

inline constexpr layout all_layouts[] = {layout::separate,
                                         layout::concatenated,
                                         layout::interleaved,
                                         layout::transposed,
                                         layout::transposed_concatenated,
                                         layout::transposed_interleaved};

inline constexpr char const* name_of(layout l) {
  constexpr char const* names[] = {
      "separate", "concatenated", "interleaved", "transposed", "transposed_concatenated", "transposed_interleaved"};
  return names[static_cast<int>(l)];
}

/// How `run` calls a layer.
struct call {
  sy::cpu_context context{.threads = 1};
  layout stored = layout::separate;
  bool in_place = false;
  bool onto_residual = false;  ///< the output is the residual of a stratified layer
  std::int64_t padding = 0;    ///< elements between the rows of tokens and output
  bool decisions = true;
};

/// What a call decided and computed.
struct outcome {
  std::vector<float> output;
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::vector<std::uint8_t> dropped;
  std::vector<std::int64_t> counts, load;
  std::vector<float> logits;
  std::vector<float> feature_scale, dispersion;
  std::vector<std::uint8_t> passes;
  sy::auxiliary_values auxiliary;
  bool guards_intact = true;  ///< nothing was written beside what was asked for, nor to gaps between rows
};

/// Runs a layer once, on memory of exactly the sizes that it asks for, each between guards.
outcome run(problem const& p, call const& how = {});

bool same_bits(outcome const& a, outcome const& b);

}  // namespace support
