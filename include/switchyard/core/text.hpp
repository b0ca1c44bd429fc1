#pragma once

#include <cstddef>
#include <string_view>

namespace switchyard {

/// A string that is put together at compile time: the names of composed policies.
template <std::size_t Size>
struct text {
  char characters[Size + 1]{};

  constexpr text() = default;
  constexpr text(char const (&literal)[Size + 1]) {
    for (std::size_t i = 0; i < Size; ++i) characters[i] = literal[i];
  }
  static constexpr std::size_t size() { return Size; }
  constexpr operator std::string_view() const { return {characters, Size}; }
};

template <std::size_t SizeWithNull>
text(char const (&)[SizeWithNull]) -> text<SizeWithNull - 1>;

template <std::size_t Left, std::size_t Right>
constexpr text<Left + Right> operator+(text<Left> const& left, text<Right> const& right) {
  text<Left + Right> joined;
  for (std::size_t i = 0; i != Left; ++i) joined.characters[i] = left.characters[i];
  for (std::size_t i = 0; i != Right; ++i) joined.characters[Left + i] = right.characters[i];
  return joined;
}

template <std::size_t Left, std::size_t Right>
constexpr auto operator+(text<Left> const& left, char const (&right)[Right]) {
  return left + text<Right - 1>(right);
}

template <std::size_t Left, std::size_t Right>
constexpr auto operator+(char const (&left)[Left], text<Right> const& right) {
  return text<Left - 1>(left) + right;
}

/// The name of a policy as `text`, so that a wrapper can put its own name around it.
template <class Policy>
constexpr auto name_of() {
  text<Policy::name.size()> copy;
  for (std::size_t i = 0; i < Policy::name.size(); ++i) copy.characters[i] = Policy::name[i];
  return copy;
}

/// A view whose characters are known to the compiler, as `text`.
template <std::string_view const& View>
constexpr auto text_of() {
  text<View.size()> copy;
  for (std::size_t i = 0; i < View.size(); ++i) copy.characters[i] = View[i];
  return copy;
}

namespace detail {

constexpr std::size_t decimal_digits(long long value) {
  std::size_t digits = value < 0 ? 2 : 1;
  while (value /= 10) ++digits;
  return digits;
}

}  // namespace detail

/// An integer as decimal `text`.
template <long long Value>
constexpr auto decimal() {
  text<detail::decimal_digits(Value)> digits;
  long long rest = Value < 0 ? -Value : Value;
  std::size_t at = digits.size();
  do {
    digits.characters[--at] = static_cast<char>('0' + rest % 10);
    rest /= 10;
  } while (rest != 0);
  if (Value < 0) digits.characters[0] = '-';
  return digits;
}

/// A fraction as `text`: `5:4`, or `5` when the denominator is 1.
template <long long Numerator, long long Denominator>
constexpr auto ratio_text() {
  if constexpr (Denominator == 1) {
    return decimal<Numerator>();
  } else {
    return decimal<Numerator>() + ":" + decimal<Denominator>();
  }
}

}  // namespace switchyard
