#include <switchyard/core/masked_change.hpp>
#include <switchyard/core/pack_masked.hpp>
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "catch.hpp"
#include "support/random_numbers.hpp"

/// Changes of which most entries were pruned, against the dense ones.
using namespace switchyard;

namespace {

/// Changes of few bits, so that they are elements of any type, and which of them are kept: kept ones may be 0.
struct pruned {
  int experts, rows, columns;
  std::vector<float> changes;
  std::vector<std::uint8_t> kept;

  pruned(int expert_count, int row_count, int column_count, int one_of, unsigned seed)
      : experts(expert_count), rows(row_count), columns(column_count) {
    support::random_numbers random(seed);
    for (int i = 0; i < experts * rows * columns; ++i) {
      changes.push_back(static_cast<float>(random.below(15) - 7) / 32.0f);
      kept.push_back(random.below(one_of) == 0 ? 1 : 0);
    }
  }
  float at(int e, int r, int c) const {
    std::size_t const i = (static_cast<std::size_t>(e) * rows + r) * columns + c;
    return kept[i] != 0 ? changes[i] : 0.0f;
  }
};

template <class Element>
int wrong_entries(pruned const& from, masked_change<Element> const& change, int first_expert = 0) {
  int wrong = 0;
  for (int e = first_expert; e < from.experts; ++e) {
    for (int r = 0; r < from.rows; ++r) {
      for (int c = 0; c < from.columns; ++c) {  // from every column of a word to its end
        float to[32];
        int const count = std::min(32 - c % 32, from.columns - c);
        for (float& v : to) v = 1.0f;
        change.add(e - first_expert, r, c, count, to);
        for (int i = 0; i < count; ++i) wrong += to[i] == 1.0f + from.at(e, r, c + i) ? 0 : 1;
      }
    }
  }
  return wrong;
}

std::string error_of(masked_change<float> const& change, int experts) {
  try {
    check_masked(change, experts);
  } catch (error const& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEMPLATE_TEST_CASE("a masked change adds what was kept and nothing else", "[masked]", float, bfloat16, half) {
  for (int columns : {1, 31, 32, 33, 512, 513, 1100}) {
    pruned const from(3, 4, columns, 4, 5);
    auto const packed = pack_masked<TestType>(from.changes.data(), from.kept.data(), 3, 4, columns);
    CHECK(packed.experts() == 3);
    check_masked(packed.view(), 3);
    CHECK(wrong_entries(from, packed.view()) == 0);
    CHECK(wrong_entries(from, packed.view().from(2), 2) == 0);
  }
}

TEST_CASE("a masked change stands as it is described", "[masked]") {
  // Two experts, two rows of three columns: what is kept of them is one value, none, three, and a zero.
  std::vector<float> const changes{1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 11, 12};
  std::vector<std::uint8_t> const kept{0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0};
  auto const packed = pack_masked<float>(changes.data(), kept.data(), 2, 2, 3);
  CHECK(packed.masks == std::vector<std::uint32_t>{2, 0, 7, 1});
  CHECK(packed.first_values == std::vector<std::int64_t>{0, 1, 5});
  CHECK(packed.block_starts == std::vector<std::uint32_t>{0, 1, 0, 3});
  CHECK(packed.value_count() == 5);
  CHECK(packed.values.size() == 5 + 32);
  CHECK(std::vector<float>(packed.values.begin(), packed.values.begin() + 5) == std::vector<float>{2, 7, 8, 9, 0});
  CHECK(packed.bytes() == 4 * 4 + 37 * 4 + 3 * 8 + 4 * 4);
}

TEST_CASE("without a mask all that is not zero is kept, and matrices may be transposed", "[masked]") {
  std::vector<float> const rows{1, 0, 2, 0, 3, 0}, columns{1, 0, 0, 3, 2, 0};
  auto const packed = pack_masked<bfloat16>(rows.data(), nullptr, 1, 2, 3);
  masked_arrays<bfloat16> turned(2, 3);
  turned.append(columns.data(), nullptr, 1, 2);
  CHECK(packed.masks == std::vector<std::uint32_t>{5, 2});
  CHECK(turned.masks == packed.masks);
  CHECK(turned.values == packed.values);
  CHECK(turned.first_values == packed.first_values);
}

TEST_CASE("all or nothing may be kept", "[masked]") {
  for (int one_of : {1, 1000}) {
    pruned from(2, 3, 70, one_of, 9);
    if (one_of > 1) from.kept.assign(from.kept.size(), 0);
    auto const packed = pack_masked<half>(from.changes.data(), from.kept.data(), 2, 3, 70);
    CHECK(packed.value_count() == (one_of == 1 ? 2 * 3 * 70 : 0));
    CHECK(wrong_entries(from, packed.view()) == 0);
  }
}

TEST_CASE("a quarter of two-byte values takes 5 bits an entry and a sixteenth", "[masked]") {
  std::vector<float> const changes(64 * 1024, 1.0f);
  std::vector<std::uint8_t> kept(changes.size());
  for (std::size_t i = 0; i < kept.size(); ++i) kept[i] = i % 4 == 1 ? 1 : 0;
  auto const packed = pack_masked<bfloat16>(changes.data(), kept.data(), 1, 64, 1024);
  CHECK(packed.bytes() == 64 * 1024 * 5 / 8 + 64 * 1024 / 128 + 32 * 2 + 2 * 8);
}

TEST_CASE("arrays of a masked change that do not fit each other are refused", "[masked][errors]") {
  pruned const from(2, 3, 600, 4, 3);
  auto const right = pack_masked<float>(from.changes.data(), from.kept.data(), 2, 3, 600);
  CHECK(error_of(right.view(), 2) == "");
  auto changed = right;
  changed.masks[19] ^= 1;
  CHECK(error_of(changed.view(), 2).find("switchyard: masked change, a block start of row 1: expected ") == 0);
  changed = right;
  changed.masks[18] |= 1u << 31;
  CHECK(error_of(changed.view(), 2) ==
        "switchyard: masked change, bits behind the last column of row 0: expected 0, got 2147483648");
  changed = right;
  changed.block_starts[5] += 1;
  CHECK(error_of(changed.view(), 2).find("switchyard: masked change, a block start of row 2: expected ") == 0);
  changed = right;
  changed.first_values[1] = -1;
  CHECK(error_of(changed.view(), 2).find("switchyard: masked change, first value of expert 1: expected ") == 0);
  auto less = right.view();
  less.value_count -= 1;
  CHECK(error_of(less, 2).find("switchyard: masked change, number of values: expected ") == 0);
  CHECK_THROWS_WITH(masked_arrays<float>(0, 3),
                    "switchyard: masked_arrays, rows x columns: expected at least 1 x 1, got 0 x 3");
}
