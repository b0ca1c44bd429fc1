#include <switchyard/expert/stored_as.hpp>
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "catch.hpp"

/// How the vectors of each instruction set widen quantised weights.
namespace sy = switchyard;
namespace q = sy::quantised;
using namespace sy::cpu;

namespace {

constexpr int experts = 2, rows = 24;

/// Arrays that are as long as they have to be, for sanitizers: random bits, and scales as they may come.
struct arrays {
  std::mt19937 random{1};
  std::vector<std::unique_ptr<std::uint8_t[]>> all;

  template <class T>
  T* bits(std::int64_t count) {
    auto const size = static_cast<std::size_t>(count) * sizeof(T);
    all.emplace_back(new std::uint8_t[size]);
    for (std::size_t i = 0; i < size; ++i) all.back()[i] = static_cast<std::uint8_t>(random());
    return reinterpret_cast<T*>(all.back().get());
  }
  /// Ordinary numbers, and, where `wild`, some others.
  float scale(bool wild) {
    float const others[] = {0.0f, -0.0f, 1e-40f, -1e30f, 0x1p121f, INFINITY, NAN, 6e-8f};
    if (wild && random() % 4 == 0) return others[random() % 8];
    return 0.01f + 0.001f * static_cast<float>(random() % 16);
  }
  template <class T>
  T* scales(std::int64_t count, bool wild) {
    T* const result = bits<T>(count);
    for (std::int64_t i = 0; i < count; ++i) result[i] = T(scale(wild));
    return result;
  }
};

void put_half(std::uint8_t* to, float value) {
  sy::half const bits(value);
  std::memcpy(to, &bits, sizeof bits);
}

template <class Format>
struct made;
template <class Block>
struct made<q::block_matrix<Block>> {
  static q::block_matrix<Block> of(arrays& a, int columns, bool wild) {
    std::int64_t const blocks = std::int64_t{experts} * rows * columns / Block::weights;
    auto* const data = a.bits<std::uint8_t>(blocks * Block::bytes);
    for (std::int64_t i = 0; i < blocks; ++i) {
      std::uint8_t* const block = data + i * Block::bytes;
      if constexpr (std::is_same_v<Block, q::mxfp4_halves>) {
        if (!wild) block[0] = static_cast<std::uint8_t>(120 + block[0] % 8);
      } else {
        constexpr bool is_last = std::is_same_v<Block, q::q6_K>;
        put_half(block + (is_last ? 208 : 0), a.scale(wild));
        if constexpr (std::is_same_v<Block, q::q4_K>) put_half(block + 2, a.scale(wild));
      }
    }
    return q::block_matrix<Block>::packed(data, rows, columns);
  }
};
/// Every other row of a tensor of twice as many.
template <>
struct made<q::mxfp4> {
  static q::mxfp4 of(arrays& a, int columns, bool wild) {
    std::int64_t const lines = (experts * rows - 1) * 2 + 1;
    auto* const scales = a.bits<std::uint8_t>(lines * columns / 32);
    for (std::int64_t i = 0; i < lines * columns / 32 && !wild; ++i) {
      scales[i] = static_cast<std::uint8_t>(120 + scales[i] % 8);
    }
    return {a.bits<std::uint8_t>(lines * columns / 2), scales, rows, columns, 2};
  }
};
template <class Scale>
struct made<q::int8_channel<Scale>> {
  static q::int8_channel<Scale> of(arrays& a, int columns, bool wild) {
    return {a.bits<std::int8_t>(experts * rows * columns), a.scales<Scale>(experts * rows, wild), rows, columns};
  }
};
std::uint8_t* e4m3_codes(arrays& a, std::int64_t count, bool wild) {
  auto* const codes = a.bits<std::uint8_t>(count);
  for (std::int64_t i = 0; i < count && !wild; ++i) {
    if (codes[i] % 128 == 127) codes[i] = 0;
  }
  return codes;
}
template <class Scale>
struct made<q::fp8_tensor<Scale>> {
  static q::fp8_tensor<Scale> of(arrays& a, int columns, bool wild) {
    return {e4m3_codes(a, experts * rows * columns, wild), a.scales<Scale>(experts, false), rows, columns};
  }
};
template <>
struct made<q::fp8_block> {
  static q::fp8_block of(arrays& a, int columns, bool wild) {
    return {e4m3_codes(a, experts * rows * columns, wild), a.scales<float>(experts * sy::divide_up(columns, 128), wild),
            rows, columns};
  }
};
template <q::global_scale Global>
struct made<q::nvfp4_of<Global>> {
  static q::nvfp4_of<Global> of(arrays& a, int columns, bool wild) {
    return {a.bits<std::uint8_t>(experts * rows * columns / 2), e4m3_codes(a, experts * rows * columns / 16, wild),
            a.scales<float>(experts, false), rows, columns};
  }
};
template <>
struct made<q::int4_packed> {
  static q::int4_packed of(arrays& a, int columns, bool wild) {
    return {a.bits<std::uint32_t>(experts * rows * columns / 8),
            a.scales<sy::bfloat16>(experts * rows * columns / 32, wild), rows, columns};
  }
};
template <>
struct made<q::gptq> {
  static q::gptq of(arrays& a, int columns, bool wild) {
    std::int64_t const groups = experts * sy::divide_up(columns, 128);
    return {a.bits<std::uint32_t>(experts * columns / 8 * rows), a.bits<std::uint32_t>(groups * rows / 8),
            a.scales<sy::half>(groups * rows, wild), rows, columns};
  }
};
template <>
struct made<q::awq> {
  static q::awq of(arrays& a, int columns, bool wild) {
    std::int64_t const groups = experts * sy::divide_up(columns, 128);
    return {a.bits<std::uint32_t>(experts * columns * rows / 8), a.bits<std::uint32_t>(groups * rows / 8),
            a.scales<sy::half>(groups * rows, wild), rows, columns};
  }
};
template <class... Formats>
struct made<q::any_of<Formats...>> {
  static q::any_of<Formats...> of(arrays& a, int columns, bool wild) {
    return made<std::tuple_element_t<sizeof...(Formats) - 1, std::tuple<Formats...>>>::of(a, columns, wild);
  }
};

using formats = std::tuple<q::block_matrix<q::q8_0>, q::block_matrix<q::q4_0>, q::block_matrix<q::mxfp4_halves>,
                           q::block_matrix<q::q4_K>, q::block_matrix<q::q6_K>, q::mxfp4, q::int8_channel<sy::bfloat16>,
                           q::fp8_tensor<float>, q::fp8_block, q::int4_packed, q::nvfp4, q::nvfp4_modelopt,
                           q::any_of<q::block_matrix<q::q8_0>, q::nvfp4>>;

/// More than one piece, and rows that end within one or, where the format can, within a vector.
constexpr int columns_of(int whole) {
  return whole == 256 ? 768 : whole == 32 ? 672 : whole == 16 ? 560 : whole == 8 ? 616 : 613;
}
template <class Format>
constexpr int columns = columns_of(Format::whole);
template <class... Formats>
constexpr int columns<q::any_of<Formats...>> = columns_of(16);

/// One for each way in which weights come: a block at a time, two, even and odd ones apart or, where a row is a multiple of 128, dealt to eight vectors
/// with a scale for 32 or for 16, put in order again, and features side by side.
using multiplied = std::tuple<q::block_matrix<q::q8_0>, q::block_matrix<q::q4_K>, q::mxfp4, q::fp8_block, q::nvfp4,
                              q::any_of<q::block_matrix<q::q8_0>, q::nvfp4>, q::gptq, q::awq>;
template <class Format>
constexpr int dealt_columns = Format::whole == 256 ? 512 : 640;
/// So many features: not the same number for each stream, or vectors and a half.
template <class Format>
constexpr int met = requires {
  Format::whole_rows;
}
? 24 : 9;
template <class... Formats>
constexpr int dealt_columns<q::any_of<Formats...>> = 640;

template <class Format>
std::vector<float> floats_of(Format const& matrix) {
  std::vector<float> result(static_cast<std::size_t>(experts * rows * matrix.columns));
  float* to = result.data();
  for (int e = 0; e < experts; ++e) {
    for (int row = 0; row < rows; ++row) {
      for (int k = 0; k < matrix.columns; k += Format::granule) {
        int const count = std::min(Format::granule, matrix.columns - k);
        matrix.read(e, row, k, count, to);
        to += count;
      }
    }
  }
  return result;
}

bool same(float got, float expected) {
  return std::memcmp(&got, &expected, sizeof got) == 0 || (std::isnan(got) && std::isnan(expected));
}

template <class Operand>
struct way {
  sy::instruction_set set;
  void (*read)(Operand const&, int, int, std::int64_t, int, float*);
  std::int64_t (*place)(std::int64_t, std::int64_t);
};
#define WAY(space)                                                       \
  {                                                                      \
    sy::instruction_set::space, &space::restored<Operand>::read,         \
        &space::depth_position<typename space::restored<Operand>::order> \
  }
template <class Operand>
std::vector<way<Operand>> ways() {
  std::vector<way<Operand>> result{WAY(portable)};
#if defined(__x86_64__)
  if (sy::best_instruction_set() >= sy::instruction_set::avx2) result.push_back(WAY(avx2));
  if (sy::best_instruction_set() >= sy::instruction_set::avx512) result.push_back(WAY(avx512));
#endif
  return result;
}
#undef WAY

}  // namespace

TEMPLATE_LIST_TEST_CASE("vectors widen quantised weights to the bits that their format says", "[quantised]", formats) {
  arrays of;
  TestType const matrix = made<TestType>::of(of, columns<TestType>, true);
  using operand = sy::quantised_matrix<float, TestType>;
  std::vector<float> const expected = floats_of(matrix);
  for (auto const& by : ways<operand>()) {
    CAPTURE(TestType::name, sy::name_of(by.set));
    int wrong = 0;
    for (int line = 0; line < experts * rows; ++line) {
      for (int first : {0, 256, 512}) {
        for (int count : {1, 16, 31, 32, 80, 160, 288, 512}) {
          count = std::min(count, matrix.columns - first);
          std::vector<float> to(static_cast<std::size_t>(count));
          by.read(matrix, line / rows, line % rows, first, count, to.data());
          for (int k = 0; k < count; ++k) {
            float const right = expected[static_cast<std::size_t>(line * matrix.columns + first + k)];
            wrong += same(to[static_cast<std::size_t>(by.place(k, count))], right) ? 0 : 1;
          }
        }
      }
    }
    CHECK(wrong == 0);
  }
}

TEMPLATE_LIST_TEST_CASE("few rows meet the weights that their format says, whatever stands beside them", "[quantised]",
                        multiplied) {
  arrays of;
  int const depth = GENERATE(columns<TestType>, dealt_columns<TestType>);
  TestType const matrix = made<TestType>::of(of, depth, false);
  using operand = sy::quantised_matrix<sy::bfloat16, TestType>;
  operand const weights(matrix);
  std::vector<float> const expected = floats_of(matrix);
  std::normal_distribution<float> normal;
  std::vector<std::vector<sy::bfloat16>> x(32);
  for (auto& row : x) {
    for (int k = 0; k < depth; ++k) row.emplace_back(normal(of.random));
  }
  for (auto const& by : ways<operand>()) {
    CAPTURE(TestType::name, sy::name_of(by.set));
    row_kernels<operand> const kernels = row_kernels_of<operand>(by.set);
    constexpr int features = met<TestType>;
    std::vector<float> alone(features);
    for (int count : {1, 2, 3, 4, 5, 6, 7, 8, 13, 32}) {
      CAPTURE(count);
      std::vector<float> grouped(static_cast<std::size_t>(count * row_floats(depth)));
      std::vector<float> to(static_cast<std::size_t>(count) * features);
      std::vector<sy::bfloat16 const*> from;
      for (int r = 0; r < count; ++r) from.push_back(x[static_cast<std::size_t>(r)].data());
      kernels.group(from.data(), count, depth, grouped.data());
      auto const tile = features_of(weights, 1, 0, features);
      multiply_rows(kernels, {grouped.data(), count}, tile, depth, features_of(weights, 0, 1, features - 1), to.data(),
                    features);
      if (count == 1) alone = to;
      double error = 0;
      for (int r = 0; r < count; ++r) {
        for (int f = 0; f < features; ++f) {
          double sum = 0, size = 0;
          for (int k = 0; k < depth; ++k) {
            double const term =
                double{static_cast<float>(x[static_cast<std::size_t>(r)][static_cast<std::size_t>(k)])} *
                double{expected[static_cast<std::size_t>((rows + f) * depth + k)]};
            sum += term;
            size += std::abs(term);
          }
          error = std::max(error, std::abs(double{to[static_cast<std::size_t>(r * features + f)]} - sum) / size);
        }
      }
      CHECK(error < 1e-6);
      CHECK(std::equal(alone.begin(), alone.end(), to.begin()));
    }
  }
}
