#include <switchyard/transport/notice_board.hpp>

#include <cstddef>
#include <string>
#include <thread>
#include <vector>

#include "catch.hpp"

namespace {

using switchyard::transport::notice_board;

TEST_CASE("a failure on a notice board is heard by all other ranks, the first one of a rank, the lowest rank's",
          "[transport]") {
  constexpr int ranks = 3;
  struct alignas(notice_board::alignment) line {
    std::byte bytes[notice_board::alignment];
  };
  std::vector<line> memory(notice_board::bytes(ranks) / sizeof(line));
  notice_board first(memory.data(), 0, ranks), second(memory.data(), 1, ranks), third(memory.data(), 2, ranks);
  CHECK(first.failure().rank == -1);

  std::thread([&] { third.tell_failure(std::string(1000, 'x')); }).join();
  third.tell_failure("what came of it");
  CHECK(third.failure().rank == -1);
  CHECK(first.failure().rank == 2);
  CHECK(first.failure().text == std::string(switchyard::transport::most_failure_bytes, 'x'));

  second.tell_failure("");
  CHECK(first.failure().rank == 1);
  CHECK(first.failure().text.empty());
  CHECK(second.failure().rank == 2);
}

TEST_CASE("a notice board refuses memory that is not aligned, and a rank that does not exist", "[transport]") {
  alignas(notice_board::alignment) std::byte memory[notice_board::bytes(2)] = {};
  CHECK_THROWS_WITH(notice_board(memory + 8, 0, 1), Catch::Matchers::ContainsSubstring("a multiple of 64"));
  CHECK_THROWS_WITH(notice_board(memory, 2, 2), Catch::Matchers::ContainsSubstring("below that of ranks, 2, got 2"));
}

}  // namespace
