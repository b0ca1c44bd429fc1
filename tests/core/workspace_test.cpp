#include <switchyard/core/workspace.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "catch.hpp"

namespace sy = switchyard;

namespace {

/// A list of pieces as a backend has it.
struct pieces {
  float* numbers;
  std::uint8_t* flags;
  double* none;
  std::int64_t* counts;

  explicit pieces(sy::carver& from)
      : numbers(from.take<float>(17)),
        flags(from.take<std::uint8_t>(3)),
        none(from.take<double>(0)),
        counts(from.take<std::int64_t>(8)) {}
};

std::uintptr_t address(void const* p) { return reinterpret_cast<std::uintptr_t>(p); }

}  // namespace

TEST_CASE("a carver on no memory only measures", "[core]") {
  sy::carver measure;
  pieces const p(measure);
  CHECK(p.numbers == nullptr);
  CHECK(p.counts == nullptr);
  CHECK(measure.bytes() == 128 + 64 + 64 + 48);  // each on a cache line, and what alignment can cost
}

TEST_CASE("a carver that nobody asked needs no memory", "[core]") {
  CHECK(sy::carver().bytes() == 0);
  sy::carver nothing;
  nothing.take<float>(0);
  CHECK(nothing.bytes() == 0);
}

TEST_CASE("pieces are on cache lines, apart, and inside what was measured", "[core]") {
  sy::carver measure;
  pieces{measure};
  std::vector<std::byte> memory(measure.bytes() + 128);
  for (std::size_t start = 0; start < 64; start += sy::workspace_alignment) {
    std::byte* const first = memory.data() + (64 - address(memory.data()) % 64) + start;
    sy::carver split(first);
    pieces const p(split);
    CHECK(address(p.numbers) % 64 == 0);
    CHECK(address(p.flags) % 64 == 0);
    CHECK(address(p.counts) % 64 == 0);
    CHECK(address(p.numbers) >= address(first));
    CHECK(address(p.flags) >= address(p.numbers + 17));
    CHECK(address(p.counts) >= address(p.flags + 3));
    CHECK(address(p.counts + 8) <= address(first) + measure.bytes());
  }
}
