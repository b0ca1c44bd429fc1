#pragma once

namespace switchyard {

/// A copy of `traits` with one member changed: how a wrapper says what it changes about its base.
template <class Traits, class Value>
constexpr Traits with(Traits traits, Value Traits::*member, Value value) {
  traits.*member = value;
  return traits;
}

}  // namespace switchyard
