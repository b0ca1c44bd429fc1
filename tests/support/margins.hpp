#pragma once

#include <cstdint>
#include <vector>

#include "reference.hpp"

/// Whether rounding can change a decision.
namespace support {

/// Relative distance of two scores that a decision depends on. Float logits are accurate to 1e-6 or so, so their
/// order is that of the reference.
inline constexpr double least_margin = 1e-3;
/// The same for the places of two tokens in a queue: over a hundred of them have to differ.
inline constexpr double least_queue_margin = 1e-5;

/// Whether rounding cannot change what a token with these logits is sent to.
bool choice_is_clear(reference::config const& c, reference::numbers const& logits, reference::numbers const& correction,
                     double margin = least_margin, std::vector<std::uint8_t> const& masked = {});

/// Whether rounding cannot change which inner values of an expert are the `kept` largest. `margin` is a share of the largest
/// magnitude, since rounding of sums is one, too. Zeros that are equal are no matter.
bool units_are_clear(reference::numbers inner, int kept, double margin);

}  // namespace support
