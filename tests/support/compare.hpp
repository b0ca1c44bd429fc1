#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <vector>

/// How arrays are compared.
namespace support {

template <class T>
bool same_bits(std::vector<T> const& a, std::vector<T> const& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// |a - b| / |b| in the Frobenius norm; infinite where a value is not finite.
template <class A, class B>
double relative_error(std::vector<A> const& a, std::vector<B> const& b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    double const d = double(a[i]) - double(b[i]);
    difference += d * d;
    size += double(b[i]) * double(b[i]);
  }
  if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
  return difference == 0 ? 0 : std::sqrt(difference / size);
}

}  // namespace support
