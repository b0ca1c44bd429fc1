#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "catch.hpp"

/// A router of a user's own that knows its experts without logits.
namespace sy = switchyard;

namespace {

struct by_word : sy::router::by_inputs {
  static constexpr std::string_view name = "by_word";
  struct words {
    std::int32_t const* ids = nullptr;  ///< [tokens]
  };
  template <class Layer>
  using inputs = words;
  SWITCHYARD_HD static sy::routed_pair pair(words const& of, std::int64_t token, int top_k, int choice) {
    return {of.ids[token] < 0 ? of.ids[token] : (of.ids[token] + choice) % 7,
            1.0f / static_cast<float>(top_k + choice)};
  }
};

/// Experts that multiply by their number plus one.
using layer = sy::layer<sy::shape{1, 1, 5, 2}, by_word, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

struct call {
  std::vector<std::int32_t> ids{0, 3, -1, 2};
  std::vector<float> x{1, 2, 3, 4}, y = std::vector<float>(4), up{1, 2, 3, 4, 5}, down = std::vector<float>(5, 1.0f);
  std::vector<std::int32_t> experts = std::vector<std::int32_t>(8);
  std::vector<std::int64_t> load = std::vector<std::int64_t>(5);
  std::vector<std::byte> scratch = std::vector<std::byte>(layer::workspace_bytes(4));

  void run(sy::cpu_context const& context = {}) {
    layer::args args{};
    args.tokens = layer::rows(static_cast<float const*>(x.data()), 4);
    args.weights.up_proj = layer::in_proj(up.data());
    args.weights.down_proj = layer::out_proj(down.data());
    args.output = layer::rows(y.data(), 4);
    args.workspace = scratch;
    args.inputs.ids = ids.data();
    args.decisions.experts = experts.data();
    args.decisions.load = load.data();
    layer::forward(args, context);
  }
};

}  // namespace

TEST_CASE("a router by inputs says where each pair goes, and -1 goes nowhere", "[router]") {
  call c;
  c.run();
  CHECK(c.experts == std::vector<std::int32_t>{0, 1, 3, 4, -1, -1, 2, 3});
  CHECK(c.load == std::vector<std::int64_t>{1, 1, 1, 2, 1});
  CHECK(c.y[0] == 1.0f * (1.0f / 2) + 2.0f * (1.0f / 3));
  CHECK(c.y[2] == 0.0f);
  CHECK(sy::describe<layer>() == "by_word:2of5/dropless/mlp<relu>/1x1/cpu/float");
  CHECK(sy::costs<layer>(1).parameters == 10);
}

TEST_CASE("an expert that a router by inputs makes up is refused by its name, or gives NaN", "[router][errors]") {
  call c;
  c.ids[1] = 4;  // and then 5, which does not exist
  CHECK_THROWS_WITH(
      c.run(),
      "switchyard: layer::forward, the router's experts: expected ids from 0 to 4, or -1 for none, got 5 for "
      "token 1, choice 1");
  c.run({.unroutable = sy::unroutable_tokens::give_nan});
  CHECK(c.y[1] != c.y[1]);
  CHECK(c.y[0] == 1.0f * (1.0f / 2) + 2.0f * (1.0f / 3));
}
