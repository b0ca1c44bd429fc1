#include <switchyard/switchyard.hpp>

#include <cstdint>
#include <limits>
#include <vector>

#include "catch.hpp"

namespace {

using switchyard::backend::detail::block_rows;
using switchyard::backend::detail::row_blocks;

}  // namespace

TEST_CASE("row blocks cover every row of every expert once, in each column block", "[experts]") {
  std::vector<std::int32_t> const offsets{0, 0, 1, 65, 65, 193, 200};
  int const experts = 6, column_blocks = 3;
  std::vector<std::int32_t> first_block(offsets.size());
  row_blocks const blocks{offsets.data(), first_block.data(), experts};
  REQUIRE(blocks.count() == 0 + 1 + 1 + 0 + 2 + 1);
  std::vector<int> visits(static_cast<std::size_t>(offsets.back()) * column_blocks);
  for (std::int64_t i = 0; i < blocks.count() * column_blocks; ++i) {
    CAPTURE(i);
    row_blocks::item const item = blocks.at(i, column_blocks);
    REQUIRE((item.rows >= 1 && item.rows <= block_rows));
    REQUIRE((item.column_block >= 0 && item.column_block < column_blocks));
    CHECK((item.first_row >= offsets[item.expert] && item.first_row + item.rows <= offsets[item.expert + 1]));
    for (int r = 0; r < item.rows; ++r) {
      ++visits[static_cast<std::size_t>((item.first_row + r) * column_blocks + item.column_block)];
    }
  }
  CHECK(visits == std::vector<int>(visits.size(), 1));
}

TEST_CASE("as many rows as there can be are counted without overflow", "[experts]") {
  std::int32_t const most = std::numeric_limits<std::int32_t>::max();
  std::int32_t const one[] = {0, most}, second[] = {0, 1, most};
  std::int32_t first_block[3];
  row_blocks const all{one, first_block, 1};
  CHECK(all.count() == 33'554'432);
  row_blocks::item const last = all.at(33'554'432LL * 46 - 1, 46);
  CHECK(last.expert == 0);
  CHECK(last.first_row == most - 63);
  CHECK(last.rows == 63);
  CHECK(last.column_block == 45);

  row_blocks const beside{second, first_block, 2};
  CHECK(beside.count() == 33'554'433);
  row_blocks::item const behind = beside.at(33'554'432, 1);
  CHECK(behind.expert == 1);
  CHECK(behind.first_row + behind.rows == most);
  CHECK(behind.rows == 62);
}
