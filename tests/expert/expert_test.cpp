#include <switchyard/expert/gated_mlp.hpp>
#include <switchyard/expert/mlp.hpp>
#include <switchyard/expert/wrappers.hpp>

#include "catch.hpp"

namespace sy = switchyard;
using namespace switchyard::expert;

namespace {

struct no_activation {
  static constexpr std::string_view name = "none";
  static constexpr sy::expert_traits traits{};
};

struct mismatched {
  static constexpr std::string_view name = "mismatched";
  static constexpr sy::expert_traits traits{.gated = false};
  using activation = sy::clamped_swiglu<>;
};

}  // namespace

TEST_CASE("an expert's wrappers change one trait each, in any order", "[expert]") {
  using inside = with_shared<with_bias<scaled<gated_mlp<sy::silu>, 4, 5>>, 7, sy::shared_gate::sigmoid>;
  using outside = scaled<with_bias<with_shared<gated_mlp<sy::silu>, 7, sy::shared_gate::sigmoid>>, 4, 5>;
  for (sy::expert_traits const& t : {inside::traits, outside::traits}) {
    CHECK(t.gated);
    CHECK(t.bias);
    CHECK(t.scale_numerator == 4);
    CHECK(t.scale_denominator == 5);
    CHECK(t.shared_intermediate == 7);
    CHECK(t.gate == sy::shared_gate::sigmoid);
    CHECK(t.input_projections() == 2);
  }
  CHECK(mlp<sy::relu>::traits.input_projections() == 1);
  CHECK_FALSE(mlp<sy::relu>::traits.bias);
  CHECK(mlp<sy::relu>::traits.shared_intermediate == 0);
}

TEST_CASE("nested scales multiply", "[expert]") {
  using twice = scaled<scaled<mlp<sy::relu>, 4, 5>, 3>;
  CHECK(twice::traits.scale_numerator == 12);
  CHECK(twice::traits.scale_denominator == 5);
}

TEST_CASE("names of experts tell how they are put together", "[expert]") {
  CHECK(mlp<sy::gelu_tanh>::name == "mlp<gelu_tanh>");
  CHECK(gated_mlp<sy::clamped_swiglu<>>::name == "gated_mlp<clamped_swiglu<7,851:500>>");
  CHECK(with_bias<mlp<sy::relu>>::name == "with_bias<mlp<relu>>");
  CHECK(scaled<mlp<sy::relu>, 4, 5>::name == "scaled<mlp<relu>,4:5>");
  CHECK(with_shared<gated_mlp<sy::silu>, 5632>::name == "with_shared<gated_mlp<silu>,5632>");
  CHECK(with_shared<gated_mlp<sy::silu>, 3, sy::shared_gate::sigmoid>::name ==
        "with_shared<gated_mlp<silu>,3,sigmoid>");
}

TEST_CASE("what is no expert does not model the concept", "[expert]") {
  static_assert(!sy::expert_policy<int>);
  static_assert(!sy::expert_policy<no_activation>);
  static_assert(!sy::expert_policy<mismatched>);
  static_assert(sy::expert_policy<with_bias<gated_mlp<sy::clamped_swiglu<>>>>);
  SUCCEED();
}
