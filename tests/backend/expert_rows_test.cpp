#include <switchyard/switchyard.hpp>

#include <cstdint>
#include <limits>
#include <vector>

#include "catch.hpp"

namespace {

using switchyard::divide_up;
using switchyard::cpu::expert_rows;
using switchyard::cpu::most_padded_rows;
using switchyard::cpu::row_ranges;

}  // namespace

TEST_CASE("items cover every row of every expert once, in each block of features", "[experts]") {
  std::vector<std::int32_t> const offsets{0, 0, 1, 65, 65, 193, 200};
  int const experts = 6, feature_blocks = 3, one_by_one = 64, in_panels = 100;
  std::vector<std::int64_t> first_padded_row(offsets.size()), first_item(offsets.size());
  expert_rows const all{row_ranges::of(offsets.data(), experts), first_padded_row.data(), first_item.data(), 65, 16};
  all.set_padded_rows();
  CHECK(first_padded_row == std::vector<std::int64_t>{0, 0, 1, 65, 65, 193, 200});
  std::int64_t const items = all.count(
      [&](int e) { return divide_up(all.rows(e), all.by_panels(e) ? in_panels : one_by_one) * feature_blocks; });
  REQUIRE(items == (0 + 1 + 1 + 0 + 2 + 1) * feature_blocks);
  std::vector<int> visits(static_cast<std::size_t>(offsets.back()) * feature_blocks);
  for (std::int64_t i = 0; i < items; ++i) {
    CAPTURE(i);
    expert_rows::item const item = all.at(i, one_by_one, in_panels);
    REQUIRE((item.rows >= 1 && item.rows <= (all.by_panels(item.expert) ? in_panels : one_by_one)));
    REQUIRE((item.feature_item >= 0 && item.feature_item < feature_blocks));
    REQUIRE((item.first_row >= 0 && item.first_row + item.rows <= all.rows(item.expert)));
    for (int r = 0; r < item.rows; ++r) {
      std::int64_t const row = offsets[item.expert] + item.first_row + r;
      ++visits[static_cast<std::size_t>(row * feature_blocks + item.feature_item)];
    }
  }
  CHECK(visits == std::vector<int>(visits.size(), 1));
}

TEST_CASE("experts with many rows have places up to whole vectors, and no more than there is room for", "[experts]") {
  std::vector<std::int32_t> offsets{0};
  for (int rows : {17, 3, 16, 33, 15, 20}) offsets.push_back(offsets.back() + rows);
  std::vector<std::int64_t> first_padded_row(offsets.size()), first_item(offsets.size());
  expert_rows const all{row_ranges::of(offsets.data(), 6), first_padded_row.data(), first_item.data(), 16, 16};
  all.set_padded_rows();
  CHECK(first_padded_row == std::vector<std::int64_t>{0, 32, 35, 51, 99, 114, 146});
  CHECK(most_padded_rows(offsets.back(), 6) >= first_padded_row.back());

  for (int experts : {1, 2, 7}) {  // the worst case: each expert one row beyond a vector
    std::vector<std::int32_t> worst{0};
    for (int e = 0; e < experts; ++e) worst.push_back(worst.back() + 17);
    first_padded_row.assign(worst.size(), 0);
    first_item.assign(worst.size(), 0);
    expert_rows const of_them{row_ranges::of(worst.data(), experts), first_padded_row.data(), first_item.data(), 16,
                              16};
    of_them.set_padded_rows();
    CHECK(most_padded_rows(worst.back(), experts) >= first_padded_row.back());
  }
  CHECK(most_padded_rows(0, 8) == 0);
  CHECK(most_padded_rows(15, 8) == 15);
}

TEST_CASE("as many rows as there can be are counted without overflow", "[experts]") {
  std::int32_t const most = std::numeric_limits<std::int32_t>::max();
  std::int32_t const offsets[] = {0, 1, most};
  std::int64_t first_padded_row[3], first_item[3];
  expert_rows const all{row_ranges::of(offsets, 2), first_padded_row, first_item, most, 16};
  all.set_padded_rows();
  std::int64_t const items = all.count([&](int e) { return divide_up(all.rows(e), 64) * 46; });
  CHECK(items == 33'554'433LL * 46);
  expert_rows::item const last = all.at(items - 1, 64, 256);
  CHECK(last.expert == 1);
  CHECK(last.first_row + last.rows == most - 1);
  CHECK(last.rows == 62);
  CHECK(last.feature_item == 45);
  CHECK(most_padded_rows(most, 2) == std::int64_t{most} + 30);
}
