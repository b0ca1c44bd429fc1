#pragma once

#include <switchyard/core/error.hpp>

#include <string>

namespace support {

/// What a call throws; empty when it does not.
template <class Call>
std::string said(Call call) {
  try {
    call();
  } catch (switchyard::error const& wrong) {
    return wrong.what();
  }
  return {};
}

}  // namespace support
