#include <switchyard/core/view.hpp>

#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

#include "catch.hpp"

namespace sy = switchyard;

namespace {

constexpr std::int64_t experts = 3, intermediate = 4, hidden = 5;

/// Entry (expert, row, column) of a weight view, as it is documented.
float entry(sy::weight_view<float> const& w, std::int64_t e, std::int64_t r, std::int64_t c) {
  return w.data[e * w.expert_stride + r * w.row_stride + c * w.column_stride];
}

/// Numbers that name their place.
std::vector<float> counted(std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  std::iota(values.begin(), values.end(), 0.0f);
  return values;
}

/// Checks both views against a function that says where entry (expert, row, column) of gate (0) or up (1) stands.
template <class Place>
void check_split(sy::gate_up_order order, sy::storage stored, Place place) {
  std::vector<float> const tensor = counted(experts * 2 * intermediate * hidden);
  auto const [gate, up] = sy::split_gate_up(tensor.data(), intermediate, hidden, order, stored);
  for (std::int64_t e = 0; e < experts; ++e) {
    for (std::int64_t i = 0; i < intermediate; ++i) {
      for (std::int64_t h = 0; h < hidden; ++h) {
        CAPTURE(e, i, h);
        CHECK(entry(gate, e, i, h) == tensor[place(e, i, h, 0)]);
        CHECK(entry(up, e, i, h) == tensor[place(e, i, h, 1)]);
      }
    }
  }
}

}  // namespace

TEST_CASE("a view finds its rows by the stride", "[core]") {
  std::vector<float> numbers = counted(20);
  sy::view<float> const close(numbers.data(), 4, 5);
  CHECK(close.row_stride == 5);
  CHECK(*close.row(3) == 15.0f);
  sy::view<float> const apart(numbers.data(), 3, 5, 7);
  CHECK(*apart.row(2) == 14.0f);
  sy::view<float const> const reads = apart;
  CHECK(reads.row(2) == apart.row(2));
  CHECK(reads.columns == 5);
  static_assert(!std::is_convertible_v<sy::view<float const>, sy::view<float>>);
}

TEST_CASE("the offset of a row is computed in 64 bits", "[core]") {
  float* const base = nullptr;
  sy::view<float> const huge(base, 1 << 20, 1 << 14, 1 << 14);
  CHECK(huge.row_stride * (huge.rows - 1) == 17179852800);
}

TEST_CASE("packed and transposed weights name the same entries", "[core]") {
  std::vector<float> const tensor = counted(experts * intermediate * hidden);
  auto const packed = sy::weight_view<float>::packed(tensor.data(), intermediate, hidden);
  auto const transposed = sy::weight_view<float>::transposed(tensor.data(), intermediate, hidden);
  CHECK(entry(packed, 2, 3, 1) == tensor[2 * 20 + 3 * 5 + 1]);
  CHECK(entry(transposed, 2, 3, 1) == tensor[2 * 20 + 1 * 4 + 3]);
}

TEST_CASE("a concatenated tensor has all gate features before the up features", "[core]") {
  check_split(sy::gate_up_order::concatenated, sy::storage::output_major, [](auto e, auto i, auto h, int up) {
    return (e * 2 * intermediate + up * intermediate + i) * hidden + h;
  });
  check_split(sy::gate_up_order::concatenated, sy::storage::input_major, [](auto e, auto i, auto h, int up) {
    return (e * hidden + h) * 2 * intermediate + up * intermediate + i;
  });
}

TEST_CASE("in an interleaved tensor gate and up take turns, gate first", "[core]") {
  check_split(sy::gate_up_order::interleaved, sy::storage::output_major,
              [](auto e, auto i, auto h, int up) { return (e * 2 * intermediate + 2 * i + up) * hidden + h; });
  check_split(sy::gate_up_order::interleaved, sy::storage::input_major,
              [](auto e, auto i, auto h, int up) { return (e * hidden + h) * 2 * intermediate + 2 * i + up; });
}

TEST_CASE("biases of gate and up are split in the same two ways", "[core]") {
  std::vector<float> const tensor = counted(experts * 2 * intermediate);
  auto const at = [](sy::bias_view<float> const& b, std::int64_t e, std::int64_t i) {
    return b.data[e * b.expert_stride + i * b.stride];
  };
  auto const concatenated = sy::split_gate_up_bias(tensor.data(), intermediate);
  CHECK(at(concatenated.gate, 2, 3) == tensor[2 * 8 + 3]);
  CHECK(at(concatenated.up, 2, 3) == tensor[2 * 8 + 4 + 3]);
  auto const turns = sy::split_gate_up_bias(tensor.data(), intermediate, sy::gate_up_order::interleaved);
  CHECK(at(turns.gate, 2, 3) == tensor[2 * 8 + 6]);
  CHECK(at(turns.up, 2, 3) == tensor[2 * 8 + 7]);
  auto const packed = sy::bias_view<float>::packed(tensor.data(), intermediate);
  CHECK(at(packed, 2, 3) == tensor[2 * 4 + 3]);
}
