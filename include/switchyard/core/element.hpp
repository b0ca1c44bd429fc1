#pragma once

#include <switchyard/core/bfloat16.hpp>
#include <switchyard/core/half.hpp>

#include <concepts>
#include <string_view>

namespace switchyard {

/// What tokens and expert weights are stored as. Sums are always taken in float.
template <class T>
concept element = std::same_as<T, float> || std::same_as<T, bfloat16> || std::same_as<T, half>;

template <element T>
inline constexpr std::string_view element_name = std::same_as<T, float>      ? "float"
                                                 : std::same_as<T, bfloat16> ? "bfloat16"
                                                                             : "half";

}  // namespace switchyard
