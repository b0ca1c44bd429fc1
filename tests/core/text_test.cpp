#include <switchyard/core/text.hpp>

#include <string_view>

#include "catch.hpp"

namespace sy = switchyard;

namespace {

struct named {
  static constexpr std::string_view name = "cat";
};

}  // namespace

TEST_CASE("text joins literals and texts at compile time", "[core]") {
  static constexpr auto joined = "one " + sy::text("two") + sy::text(" ") + "three";
  static_assert(std::string_view(joined) == "one two three");
  static_assert(joined.size() == 13);
  static_assert(std::string_view(sy::text("")).empty());
  SUCCEED();
}

TEST_CASE("the name of a policy becomes text", "[core]") {
  static constexpr auto wrapped = "big<" + sy::name_of<named>() + ">";
  CHECK(std::string_view(wrapped) == "big<cat>");
}

TEST_CASE("integers become decimal text", "[core]") {
  CHECK(std::string_view(sy::decimal<0>()) == "0");
  CHECK(std::string_view(sy::decimal<7>()) == "7");
  CHECK(std::string_view(sy::decimal<10>()) == "10");
  CHECK(std::string_view(sy::decimal<-305>()) == "-305");
  CHECK(std::string_view(sy::decimal<9223372036854775807>()) == "9223372036854775807");
}

TEST_CASE("a fraction becomes text, and a whole number has no denominator", "[core]") {
  CHECK(std::string_view(sy::ratio_text<5, 4>()) == "5:4");
  CHECK(std::string_view(sy::ratio_text<16, 1>()) == "16");
}
