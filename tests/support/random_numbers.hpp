#pragma once

#include <random>

namespace support {

/// The same numbers with every standard library.
class random_numbers {
 public:
  explicit random_numbers(unsigned seed) : engine_(seed) {}
  double normal() {  // by the central limit: the same numbers with every standard library
    double sum = 0;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum - 6.0;
  }
  double uniform() { return static_cast<double>(engine_()) / 4294967296.0; }
  int below(int count) { return static_cast<int>(engine_() % static_cast<unsigned>(count)); }

 private:
  std::mt19937 engine_;
};

}  // namespace support
