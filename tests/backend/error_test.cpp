#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "support/set_arguments.hpp"

namespace sy = switchyard;

namespace {

constexpr std::int64_t tokens = 5;
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

/// A router, a capacity and an expert that ask for everything there is.
using full = sy::layer<
    sy::shape{.hidden = 6, .intermediate = 4, .experts = 4, .top_k = 2},
    sy::router::with_bias<
        sy::router::top_k<sy::router::scores::sigmoid, sy::router::selection::corrected, sy::router::weighting::sum>>,
    sy::capacity::queued<sy::capacity::factor<1>, sy::queue::priority>,
    sy::expert::with_shared<sy::expert::with_bias<sy::expert::gated_mlp<sy::silu>>, 3, sy::shared_gate::sigmoid>>;
using omni = sy::layer<full::dims, sy::router::shared<full::router>, full::capacity, full::expert>;
using given = sy::layer<full::dims, sy::router::precomputed, full::capacity, full::expert>;

using narrow = sy::layer<full::dims, full::router, full::capacity, full::expert, sy::backend::cpu, sy::bfloat16>;

/// What a user's router answers wrongly for its last choice.
enum class mistake { none, id_too_large, id_negative, weight_nan, weight_infinite, priority_nan };

template <mistake Mistake>
struct mistaken : sy::router::softmax_top_k {
  static constexpr std::string_view name = "mistaken";
  template <int TopK, int Experts, class Lanes>
  static sy::route<TopK> select(Lanes, sy::per_expert<Experts, Lanes> const&, sy::router_weights const&) {
    sy::route<TopK> result{};
    for (int k = 0; k < TopK; ++k) result.expert[k] = k;
    for (float& w : result.weight) w = 0.5f;
    result.priority = 0.25f;
    if (Mistake == mistake::id_too_large) result.expert[TopK - 1] = Experts;
    if (Mistake == mistake::id_negative) result.expert[TopK - 1] = -1;
    if (Mistake == mistake::weight_nan) result.weight[TopK - 1] = not_a_number;
    if (Mistake == mistake::weight_infinite) result.weight[TopK - 1] = -infinity;
    if (Mistake == mistake::priority_nan) result.priority = not_a_number;
    return result;
  }
};
template <mistake Mistake>
using with_router_of_a_user = sy::layer<full::dims, mistaken<Mistake>, full::capacity, full::expert>;

/// A right call of a layer, to be made wrong, and a check that a wrong one writes nothing.
template <class Layer>
struct attempt {
  static constexpr int pattern = 0xa5;
  static constexpr sy::shape dims = Layer::dims;
  static constexpr int wide = Layer::expert_traits.shared_intermediate;
  using element = typename Layer::element;

  std::vector<element> x = std::vector<element>(tokens * dims.hidden, element(0.5f));
  std::vector<float> router = std::vector<float>(dims.experts * dims.hidden, 0.25f);
  std::vector<float> vector = std::vector<float>(64, 0.125f);
  std::vector<element> matrix =
      std::vector<element>(dims.experts * dims.hidden * (dims.intermediate + wide), element(0.5f));
  std::vector<element> biases = std::vector<element>(dims.experts * dims.hidden, element(0.125f));
  std::vector<element> y = std::vector<element>(tokens * dims.hidden);
  std::vector<std::byte> scratch = std::vector<std::byte>(Layer::workspace_bytes(tokens));
  std::vector<std::int32_t> ids = std::vector<std::int32_t>(tokens * dims.top_k, 1);
  std::vector<float> id_weights = std::vector<float>(tokens * dims.top_k, 0.5f);
  std::vector<std::uint8_t> active = std::vector<std::uint8_t>(tokens, 1);

  struct written_values {
    std::int32_t experts[tokens * dims.top_k];
    float weights[tokens * dims.top_k];
    std::uint8_t dropped[tokens * dims.top_k];
    std::int64_t counts[dims.experts];
    std::int64_t load[dims.experts];
    float logits[tokens * dims.experts];
    sy::auxiliary_values auxiliary;
  } written;

  typename Layer::args args{};
  typename Layer::context context{.threads = 1};

  attempt() {
    std::memset(static_cast<void*>(y.data()), pattern, y.size() * sizeof(element));
    std::memset(static_cast<void*>(&written), pattern, sizeof written);
    args.tokens = Layer::rows(x.data(), tokens);
    args.output = Layer::rows(y.data(), tokens);
    args.workspace = scratch;
    args.weights.up_proj = Layer::in_proj(matrix.data());
    args.weights.down_proj = Layer::out_proj(matrix.data());
    args.active = active.data();
    args.decisions = {.experts = written.experts,
                      .weights = written.weights,
                      .dropped = written.dropped,
                      .counts = written.counts,
                      .load = written.load};
    if constexpr (sy::makes_logits<typename Layer::router>) args.report.logits = written.logits;
    auto const shared_in = Layer::shared_in_proj(matrix.data());
    support::set_arguments(
        args, {.router = {{router.data(), vector.data(), vector.data()}},
               .gate_proj = Layer::in_proj(matrix.data()),
               .bias = {Layer::in_bias(biases.data()), Layer::in_bias(biases.data()), Layer::out_bias(biases.data())},
               .shared = {shared_in, shared_in, Layer::shared_out_proj(matrix.data()), biases.data()},
               .routes = {ids.data(), id_weights.data()},
               .auxiliary = &written.auxiliary});
  }

  bool nothing_written() const {
    auto const kept = [](void const* first, std::size_t bytes) {
      auto const* const p = static_cast<unsigned char const*>(first);
      for (std::size_t i = 0; i < bytes; ++i) {
        if (p[i] != pattern) return false;
      }
      return true;
    };
    return kept(y.data(), y.size() * sizeof(element)) && kept(&written, sizeof written);
  }

  /// The error of a call, or an empty string.
  std::string error() {
    try {
      Layer::forward(args, context);
    } catch (sy::error const& e) {
      return e.what();
    }
    return "";
  }
};

/// Makes a call wrong by `change(attempt)`, and checks what it throws and that it writes nothing.
template <class Layer, class Change>
void refuses(Change change, std::string const& expected) {
  attempt<Layer> call;
  change(call);
  CHECK(call.error() == "switchyard: " + expected);
  CHECK(call.nothing_written());
}

std::string const null_pointer = ", got a null pointer";

}  // namespace

TEST_CASE("a call without a mistake is accepted", "[errors]") {
  CHECK(attempt<full>().error() == "");
  CHECK(attempt<omni>().error() == "");
  CHECK(attempt<given>().error() == "");
  CHECK(attempt<narrow>().error() == "");
  CHECK(attempt<with_router_of_a_user<mistake::none>>().error() == "");
  attempt<full> call;
  call.error();
  CHECK_FALSE(call.nothing_written());
}

TEST_CASE("matrices of a wrong size are refused", "[errors]") {
  refuses<full>([](auto& c) { c.args.tokens.columns = 7; },
                "layer::forward, tokens: expected 5 x 6 (tokens x hidden), got 5 x 7");
  refuses<full>([](auto& c) { c.args.output.rows = 4; },
                "layer::forward, output: expected 5 x 6 (tokens x hidden), got 4 x 6");
  refuses<full>([](auto& c) { c.args.output.columns = 5; },
                "layer::forward, output: expected 5 x 6 (tokens x hidden), got 5 x 5");
  refuses<full>([](auto& c) { c.args.tokens.row_stride = 5; },
                "layer::forward, tokens, row stride: expected at least 6, got 5");
  refuses<full>([](auto& c) { c.args.output.row_stride = -6; },
                "layer::forward, output, row stride: expected at least 6, got -6");
  refuses<full>([](auto& c) { c.args.tokens_per_group = -1; },
                "layer::forward, tokens_per_group: expected 0 (one group) or more, got -1");
}

TEST_CASE("numbers of tokens that are negative or do not fit 32 bits are refused", "[errors]") {
  refuses<full>([](auto& c) { c.args.tokens.rows = c.args.output.rows = -1; },
                "layer::forward, tokens: expected 0 to 1073741823, got -1");
  refuses<full>([](auto& c) { c.args.tokens.rows = c.args.output.rows = 1073741824; },
                "layer::forward, tokens: expected 0 to 1073741823, got 1073741824");
  refuses<full>([](auto& c) { c.args.tokens.rows = c.args.output.rows = std::numeric_limits<std::int64_t>::max(); },
                "layer::forward, tokens: expected 0 to 1073741823, got 9223372036854775807");
  CHECK_THROWS_WITH(full::workspace_bytes(-1),
                    "switchyard: layer::workspace_bytes, tokens: expected 0 to 1073741823, got -1");
  CHECK_THROWS_WITH(full::workspace_bytes(1073741824),
                    "switchyard: layer::workspace_bytes, tokens: expected 0 to 1073741823, got 1073741824");
  CHECK(full::workspace_bytes(1073741823) > (std::size_t{1} << 32));
}

TEST_CASE("null pointers are refused by name", "[errors]") {
  refuses<full>([](auto& c) { c.args.tokens.data = nullptr; },
                "layer::forward, tokens: expected a matrix" + null_pointer);
  refuses<full>([](auto& c) { c.args.output.data = nullptr; },
                "layer::forward, output: expected a matrix" + null_pointer);
  refuses<full>([](auto& c) { c.args.weights.router.weight = nullptr; },
                "layer::forward, weights.router.weight: expected [experts, hidden] float" + null_pointer);
  refuses<full>([](auto& c) { c.args.weights.router.bias = nullptr; },
                "layer::forward, weights.router.bias: expected [experts] float" + null_pointer);
  refuses<full>([](auto& c) { c.args.weights.router.correction_bias = nullptr; },
                "layer::forward, weights.router.correction_bias: expected [experts] float" + null_pointer);
  refuses<omni>([](auto& c) { c.args.shared_router.weight = nullptr; },
                "layer::forward, shared_router.weight: expected [experts, hidden] float" + null_pointer);
  refuses<omni>([](auto& c) { c.args.shared_router.bias = nullptr; },
                "layer::forward, shared_router.bias: expected [experts] float" + null_pointer);
  refuses<given>([](auto& c) { c.args.inputs.experts = nullptr; },
                 "layer::forward, inputs.experts: expected [tokens, top_k] int32" + null_pointer);
  refuses<given>([](auto& c) { c.args.inputs.weights = nullptr; },
                 "layer::forward, inputs.weights: expected [tokens, top_k] float" + null_pointer);
  refuses<full>([](auto& c) { c.args.weights.gate_proj = {}; },
                "layer::forward, weights.gate_proj: expected [experts, intermediate, hidden]" + null_pointer);
  refuses<full>([](auto& c) { c.args.weights.up_proj = {}; },
                "layer::forward, weights.up_proj: expected [experts, intermediate, hidden]" + null_pointer);
  refuses<full>([](auto& c) { c.args.weights.down_proj = {}; },
                "layer::forward, weights.down_proj: expected [experts, hidden, intermediate]" + null_pointer);
  refuses<full>([](auto& c) { c.args.weights.bias.gate = {}; },
                "layer::forward, weights.bias.gate: expected [experts, intermediate]" + null_pointer);
  refuses<full>([](auto& c) { c.args.weights.bias.up = {}; },
                "layer::forward, weights.bias.up: expected [experts, intermediate]" + null_pointer);
  refuses<full>([](auto& c) { c.args.weights.bias.down = {}; },
                "layer::forward, weights.bias.down: expected [experts, hidden]" + null_pointer);
  refuses<full>([](auto& c) { c.args.weights.shared.gate_proj = {}; },
                "layer::forward, weights.shared.gate_proj: expected [shared intermediate, hidden]" + null_pointer);
  refuses<full>([](auto& c) { c.args.weights.shared.up_proj = {}; },
                "layer::forward, weights.shared.up_proj: expected [shared intermediate, hidden]" + null_pointer);
  refuses<full>([](auto& c) { c.args.weights.shared.down_proj = {}; },
                "layer::forward, weights.shared.down_proj: expected [hidden, shared intermediate]" + null_pointer);
  refuses<full>([](auto& c) { c.args.weights.shared.gate = nullptr; },
                "layer::forward, weights.shared.gate: expected [hidden]" + null_pointer);
}

TEST_CASE("strides that were forgotten are refused by name", "[errors]") {
  auto const of = [](std::string const& name, std::string const& stride) {
    return "layer::forward, " + name + "." + stride +
           ": expected a number of elements other than 0 (layer::in_proj and its like set it), got 0";
  };
  refuses<full>([](auto& c) { c.args.weights.gate_proj = {c.matrix.data()}; },
                of("weights.gate_proj", "expert_stride"));
  refuses<full>([](auto& c) { c.args.weights.up_proj.expert_stride = 0; }, of("weights.up_proj", "expert_stride"));
  refuses<full>([](auto& c) { c.args.weights.up_proj.row_stride = 0; }, of("weights.up_proj", "row_stride"));
  refuses<full>([](auto& c) { c.args.weights.up_proj.column_stride = 0; }, of("weights.up_proj", "column_stride"));
  refuses<full>([](auto& c) { c.args.weights.down_proj.expert_stride = 0; }, of("weights.down_proj", "expert_stride"));
  refuses<full>([](auto& c) { c.args.weights.down_proj.row_stride = 0; }, of("weights.down_proj", "row_stride"));
  refuses<full>([](auto& c) { c.args.weights.down_proj.column_stride = 0; }, of("weights.down_proj", "column_stride"));
  refuses<full>([](auto& c) { c.args.weights.bias.gate = {c.biases.data()}; },
                of("weights.bias.gate", "expert_stride"));
  refuses<full>([](auto& c) { c.args.weights.bias.up.expert_stride = 0; }, of("weights.bias.up", "expert_stride"));
  refuses<full>([](auto& c) { c.args.weights.bias.up.stride = 0; }, of("weights.bias.up", "stride"));
  refuses<full>([](auto& c) { c.args.weights.bias.down.expert_stride = 0; }, of("weights.bias.down", "expert_stride"));
  refuses<full>([](auto& c) { c.args.weights.bias.down.stride = 0; }, of("weights.bias.down", "stride"));
  refuses<full>([](auto& c) { c.args.weights.shared.gate_proj.row_stride = 0; },
                of("weights.shared.gate_proj", "row_stride"));
  refuses<full>([](auto& c) { c.args.weights.shared.up_proj.column_stride = 0; },
                of("weights.shared.up_proj", "column_stride"));
  refuses<full>([](auto& c) { c.args.weights.shared.down_proj.row_stride = 0; },
                of("weights.shared.down_proj", "row_stride"));
}

TEST_CASE("a stride that nothing steps along may be anything", "[errors]") {
  attempt<full> call;
  call.args.weights.shared.gate_proj.expert_stride = 0;
  call.args.weights.shared.up_proj.expert_stride = 0;
  call.args.weights.shared.down_proj.expert_stride = 0;
  CHECK(call.error() == "");

  using one = sy::layer<sy::shape{.hidden = 1, .intermediate = 1, .experts = 1, .top_k = 1}, sy::router::softmax_top_k,
                        sy::capacity::dropless, sy::expert::with_bias<sy::expert::mlp<sy::relu>>>;
  float const x = 3.0f, two = 2.0f;
  float y = 0.0f;
  std::vector<std::byte> scratch(one::workspace_bytes(1));
  one::forward({.tokens = {&x, 1, 1},
                .weights = {.router = {.weight = &two},
                            .up_proj = {&two, 0, 0, 0},
                            .down_proj = {&two, 0, 0, 0},
                            .bias = {.up = {&two, 0, 0}, .down = {&two, 0, 0}}},
                .output = {&y, 1, 1},
                .workspace = scratch});
  CHECK(y == 2.0f * (2.0f * 3.0f + 2.0f) + 2.0f);
}

namespace {

/// A pointer that stands so many bytes behind another.
template <class T>
T const* behind(T const* pointer, std::uintptr_t bytes) {
  return reinterpret_cast<T const*>(reinterpret_cast<std::uintptr_t>(pointer) + bytes);
}
template <class T>
T* behind(T* pointer, std::uintptr_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(pointer) + bytes);
}

}  // namespace

TEST_CASE("addresses at which no element can stand are refused by name", "[errors]") {
  auto const of = [](std::string const& name, int multiple) {
    return "layer::forward, " + name + ": expected an address that is a multiple of " + std::to_string(multiple) +
           ", got one that is not";
  };
  refuses<narrow>([](auto& c) { c.args.tokens.data = behind(c.args.tokens.data, 1); }, of("tokens", 2));
  refuses<narrow>([](auto& c) { c.args.output.data = behind(c.args.output.data, 1); }, of("output", 2));
  refuses<narrow>([](auto& c) { c.args.weights.gate_proj.data = behind(c.matrix.data(), 1); },
                  of("weights.gate_proj", 2));
  refuses<narrow>([](auto& c) { c.args.weights.up_proj.data = behind(c.matrix.data(), 3); }, of("weights.up_proj", 2));
  refuses<narrow>([](auto& c) { c.args.weights.bias.down.data = behind(c.biases.data(), 1); },
                  of("weights.bias.down", 2));
  refuses<narrow>([](auto& c) { c.args.weights.shared.down_proj.data = behind(c.matrix.data(), 1); },
                  of("weights.shared.down_proj", 2));
  refuses<narrow>([](auto& c) { c.args.weights.shared.gate = behind(c.biases.data(), 1); },
                  of("weights.shared.gate", 2));
  refuses<narrow>([](auto& c) { c.args.weights.router.weight = behind(c.router.data(), 2); },
                  of("weights.router.weight", 4));
  refuses<full>([](auto& c) { c.args.tokens.data = behind(c.args.tokens.data, 2); }, of("tokens", 4));
  refuses<full>([](auto& c) { c.args.output.data = behind(c.args.output.data, 2); }, of("output", 4));
  refuses<full>([](auto& c) { c.args.weights.down_proj.data = behind(c.matrix.data(), 2); },
                of("weights.down_proj", 4));
  refuses<full>([](auto& c) { c.args.weights.router.bias = behind(c.vector.data(), 1); }, of("weights.router.bias", 4));
  refuses<full>([](auto& c) { c.args.weights.router.correction_bias = behind(c.vector.data(), 2); },
                of("weights.router.correction_bias", 4));
  refuses<omni>([](auto& c) { c.args.shared_router.weight = behind(c.router.data(), 2); },
                of("shared_router.weight", 4));
  refuses<given>([](auto& c) { c.args.inputs.experts = behind(c.ids.data(), 2); }, of("inputs.experts", 4));
  refuses<given>([](auto& c) { c.args.inputs.weights = behind(c.id_weights.data(), 2); }, of("inputs.weights", 4));

  attempt<narrow> odd;  // an address that is a multiple of 2 and of nothing more
  odd.x.resize(odd.x.size() + 1, sy::bfloat16(0.5f));
  odd.args.tokens.data = odd.x.data() + 1;
  CHECK(odd.error() == "");
}

TEST_CASE("no tokens need no tokens, output or routes", "[errors]") {
  attempt<given> call;
  call.args.tokens = {nullptr, 0, full::dims.hidden};
  call.args.output = {nullptr, 0, full::dims.hidden};
  call.args.inputs = {};
  CHECK(call.error() == "");
}

TEST_CASE("a workspace that is too small, missing or misplaced is refused", "[errors]") {
  std::string const needed = std::to_string(full::workspace_bytes(tokens));
  std::string const less = std::to_string(full::workspace_bytes(tokens) - 1);
  refuses<full>([](auto& c) { c.args.workspace = c.args.workspace.first(c.args.workspace.size() - 1); },
                "layer::forward, workspace: expected " + needed + " bytes for 5 tokens, got " + less + " bytes");
  refuses<full>([](auto& c) { c.args.workspace = {}; },
                "layer::forward, workspace: expected " + needed + " bytes for 5 tokens, got 0 bytes");
  refuses<full>(
      [](auto& c) {
        c.scratch.resize(c.scratch.size() + 64);
        auto const past = reinterpret_cast<std::uintptr_t>(c.scratch.data()) % 16;
        c.args.workspace = std::span(c.scratch).subspan(16 - past + 8);
      },
      "layer::forward, workspace: expected an address that is a multiple of 16, got one that is 8 bytes past it");
}

TEST_CASE("an output that overlaps the tokens is refused unless it is the tokens", "[errors]") {
  std::string const sentence =
      "layer::forward, output: expected memory apart from tokens, or the same view, got a matrix that overlaps tokens";
  refuses<full>(
      [](auto& c) {
        c.x.resize(100);
        c.args.tokens.data = c.x.data();
        c.args.output.data = c.x.data() + 1;
      },
      sentence);
  refuses<full>(
      [](auto& c) {
        c.x.resize(100);
        c.args.tokens.data = c.x.data() + tokens * full::dims.hidden - 1;
        c.args.output.data = c.x.data();
      },
      sentence);
  refuses<full>(
      [](auto& c) {
        c.x.resize(100);
        c.args.tokens.data = c.args.output.data = c.x.data();
        c.args.output.row_stride = 7;
      },
      sentence);

  attempt<full> beside;
  beside.x.resize(2 * tokens * full::dims.hidden, 0.5f);
  beside.args.tokens.data = beside.x.data();
  beside.args.output.data = beside.x.data() + tokens * full::dims.hidden;
  CHECK(beside.error() == "");
}

TEST_CASE("rows of tokens and output may take turns in one buffer", "[errors]") {
  constexpr int hidden = full::dims.hidden;
  attempt<full> apart;
  for (std::size_t i = 0; i < apart.x.size(); ++i) apart.x[i] = 0.03125f * static_cast<float>(i % 13);
  REQUIRE(apart.error() == "");

  auto const error_of = [&](std::int64_t tokens_at, std::int64_t output_at, std::int64_t tokens_stride,
                            std::int64_t output_stride) {
    attempt<full> call;
    std::vector<float> buffer(200, not_a_number);
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::copy_n(apart.x.data() + t * hidden, hidden, buffer.data() + tokens_at + t * tokens_stride);
    }
    call.args.tokens = {buffer.data() + tokens_at, tokens, hidden, tokens_stride};
    call.args.output = {buffer.data() + output_at, tokens, hidden, output_stride};
    std::string const error = call.error();
    for (std::int64_t t = 0; error.empty() && t < tokens; ++t) {
      float const* const row = call.args.output.row(t);
      CHECK(std::equal(row, row + hidden, apart.y.data() + t * hidden));
    }
    return error;
  };
  CHECK(error_of(0, hidden, 2 * hidden, 2 * hidden) == "");
  CHECK(error_of(hidden, 0, 2 * hidden, 2 * hidden) == "");
  CHECK(error_of(0, hidden, 2 * hidden + 1, 2 * hidden + 1) == "");
  CHECK(error_of(0, hidden + 1, 2 * hidden + 1, 2 * hidden + 1) == "");
  CHECK(error_of(0, 5 * hidden, 2 * hidden, 2 * hidden) == "");  // two rows further on
  CHECK(error_of(7 * hidden, 0, 2 * hidden, 2 * hidden) == "");
  std::string const sentence =
      "switchyard: layer::forward, output: expected memory apart from tokens, or the same view, got a matrix that "
      "overlaps tokens";
  CHECK(error_of(0, hidden - 1, 2 * hidden, 2 * hidden) == sentence);
  CHECK(error_of(0, hidden + 1, 2 * hidden, 2 * hidden) == sentence);
  CHECK(error_of(0, 2 * hidden, 2 * hidden, 2 * hidden) == sentence);  // one row further on
  CHECK(error_of(hidden, 0, 2 * hidden - 1, 2 * hidden - 1) == sentence);
  CHECK(error_of(0, hidden, 2 * hidden, 2 * hidden + 1) == sentence);
  CHECK(error_of(0, hidden, hidden, hidden) == sentence);
}

TEST_CASE("a workspace that overlaps tokens or output is refused", "[errors]") {
  std::string const sentence =
      "layer::forward, workspace: expected memory apart from all else that the call reads and writes, got memory that "
      "overlaps ";
  static constexpr std::size_t needed = full::workspace_bytes(tokens), row_bytes = full::dims.hidden * sizeof(float);
  static_assert(needed % sizeof(float) == 0);
  /// The workspace with room before it and behind it, and a place `offset` bytes from its first.
  auto const beside = [](auto& c, std::ptrdiff_t offset) {
    constexpr std::size_t room = 64 * row_bytes;
    static_assert(room % sy::workspace_alignment == 0);
    c.scratch.assign(room + needed + room, std::byte{});
    c.args.workspace = std::span(c.scratch).subspan(room);  // more than it needs
    return reinterpret_cast<float*>(c.scratch.data() + room + offset);
  };
  constexpr std::ptrdiff_t matrix = tokens * row_bytes;
  for (std::ptrdiff_t offset : {std::ptrdiff_t{0}, std::ptrdiff_t{4}, 4 - matrix, std::ptrdiff_t{needed} - 4}) {
    CAPTURE(offset);
    refuses<full>([&](auto& c) { c.args.tokens.data = beside(c, offset); }, sentence + "tokens");
    refuses<full>([&](auto& c) { c.args.output.data = beside(c, offset); }, sentence + "output");
    refuses<full>([&](auto& c) { c.args.tokens.data = c.args.output.data = beside(c, offset); }, sentence + "output");
  }
  for (std::ptrdiff_t offset : {-matrix, std::ptrdiff_t{needed}}) {
    CAPTURE(offset);
    attempt<full> call;
    call.args.tokens.data = call.args.output.data = beside(call, offset);
    CHECK(call.error() == "");
  }
}

TEST_CASE("what a call writes is refused where it overlaps what else it reads or writes", "[errors]") {
  auto const sentence = [](std::string const& written, std::string const& other) {
    return "layer::forward, " + written +
           ": expected memory apart from all else that the call reads and writes, got memory that overlaps " + other;
  };
  auto const into = [](auto& c, auto*& pointer) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(c.scratch.data() + 64);
  };
  // In the workspace.
  refuses<full>([&](auto& c) { into(c, c.args.decisions.experts); }, sentence("workspace", "decisions.experts"));
  refuses<full>([&](auto& c) { into(c, c.args.decisions.weights); }, sentence("workspace", "decisions.weights"));
  refuses<full>([&](auto& c) { into(c, c.args.decisions.dropped); }, sentence("workspace", "decisions.dropped"));
  refuses<full>([&](auto& c) { into(c, c.args.decisions.counts); }, sentence("workspace", "decisions.counts"));
  refuses<full>([&](auto& c) { into(c, c.args.decisions.load); }, sentence("workspace", "decisions.load"));
  refuses<full>([&](auto& c) { into(c, c.args.report.logits); }, sentence("workspace", "report.logits"));
  refuses<full>([&](auto& c) { into(c, c.args.auxiliary); }, sentence("workspace", "auxiliary"));
  refuses<full>([&](auto& c) { into(c, c.args.active); }, sentence("workspace", "active"));
  refuses<full>([&](auto& c) { into(c, c.args.weights.router.weight); }, sentence("workspace", "the router's weight"));
  refuses<full>([&](auto& c) { into(c, c.args.weights.router.bias); }, sentence("workspace", "the router's bias"));
  refuses<full>([&](auto& c) { into(c, c.args.weights.router.correction_bias); },
                sentence("workspace", "the router's correction_bias"));
  refuses<full>([&](auto& c) { into(c, c.args.weights.gate_proj.data); }, sentence("workspace", "weights.gate_proj"));
  refuses<full>([&](auto& c) { into(c, c.args.weights.up_proj.data); }, sentence("workspace", "weights.up_proj"));
  refuses<full>([&](auto& c) { into(c, c.args.weights.down_proj.data); }, sentence("workspace", "weights.down_proj"));
  refuses<full>([&](auto& c) { into(c, c.args.weights.bias.gate.data); }, sentence("workspace", "weights.bias.gate"));
  refuses<full>([&](auto& c) { into(c, c.args.weights.bias.up.data); }, sentence("workspace", "weights.bias.up"));
  refuses<full>([&](auto& c) { into(c, c.args.weights.bias.down.data); }, sentence("workspace", "weights.bias.down"));
  refuses<full>([&](auto& c) { into(c, c.args.weights.shared.gate_proj.data); },
                sentence("workspace", "weights.shared.gate_proj"));
  refuses<full>([&](auto& c) { into(c, c.args.weights.shared.up_proj.data); },
                sentence("workspace", "weights.shared.up_proj"));
  refuses<full>([&](auto& c) { into(c, c.args.weights.shared.down_proj.data); },
                sentence("workspace", "weights.shared.down_proj"));
  refuses<full>([&](auto& c) { into(c, c.args.weights.shared.gate); }, sentence("workspace", "weights.shared.gate"));
  refuses<given>([&](auto& c) { into(c, c.args.inputs.experts); }, sentence("workspace", "inputs.experts"));
  refuses<given>([&](auto& c) { into(c, c.args.inputs.weights); }, sentence("workspace", "inputs.weights"));
  // On weights, which a call would destroy, however they are stored.
  refuses<full>([&](auto& c) { c.args.output.data = c.matrix.data() + 7; }, sentence("output", "weights.gate_proj"));
  refuses<full>(
      [&](auto& c) {
        c.router.resize(64, 0.25f);
        c.args.weights.router.weight = c.router.data();
        c.args.output.data = c.router.data() + 1;
      },
      sentence("output", "the router's weight"));
  refuses<full>(
      [&](auto& c) {
        c.matrix.resize(600, 0.5f);
        float* const first = c.matrix.data();
        c.args.report.logits = first + 3 * 24 + 4;  // of expert 0, for the experts stand the other way round
        c.args.weights.gate_proj = {first + 3 * 24, -24, 6, 1};
        for (auto** data :
             {&c.args.weights.up_proj.data, &c.args.weights.down_proj.data, &c.args.weights.shared.gate_proj.data,
              &c.args.weights.shared.up_proj.data, &c.args.weights.shared.down_proj.data}) {
          *data = first + 200;
        }
      },
      sentence("report.logits", "weights.gate_proj"));
  // On each other.
  refuses<full>([&](auto& c) { c.args.decisions.load = c.args.decisions.counts + 1; },
                sentence("decisions.counts", "decisions.load"));
  // What makes room for what is written in its place.
  attempt<given> routes;
  routes.args.decisions.experts = routes.ids.data();
  routes.args.decisions.weights = routes.id_weights.data();
  CHECK(routes.error() == "");
}

TEST_CASE("a context that cannot be met is refused", "[errors]") {
  refuses<full>([](auto& c) { c.context.threads = -1; },
                "layer::forward, context.threads: expected 0 (all) or more, got -1");
  refuses<full>([](auto& c) { c.context.least_panel_rows = -1; },
                "layer::forward, context.least_panel_rows: expected 0 (usual), or 16 or more, got -1");
  refuses<full>([](auto& c) { c.context.least_panel_rows = 15; },
                "layer::forward, context.least_panel_rows: expected 0 (usual), or 16 or more, got 15");
  refuses<full>(
      [](auto& c) {
        c.context.floats = sy::float_products::three_of_bfloat16;
        c.context.instructions = sy::instruction_set::portable;
      },
      "layer::forward, context.floats: expected float_products::exact, or instruction_set::amx, got three_of_bfloat16 "
      "with "
      "portable");
  auto const best = sy::best_instruction_set();
  if (best < sy::instruction_set::amx) {
    refuses<full>([](auto& c) { c.context.instructions = sy::instruction_set::amx; },
                  "layer::forward, context.instructions: expected " + std::string(sy::name_of(best)) +
                      " or less on this machine, got amx");
  }
  if (best < sy::instruction_set::avx512) {
    refuses<full>([](auto& c) { c.context.instructions = sy::instruction_set::avx512; },
                  "layer::forward, context.instructions: expected " + std::string(sy::name_of(best)) +
                      " or less on this machine, got avx512");
  }
  sy::thread_pool const no_function{nullptr, 4, nullptr};
  refuses<full>([&](auto& c) { c.context.pool = &no_function; },
                "layer::forward, context.pool: expected a run function and at least 1 worker, got a null function");
  sy::thread_pool const no_workers{nullptr, 0, [](void*, int, void (*)(void*, int), void*) {}};
  refuses<full>([&](auto& c) { c.context.pool = &no_workers; },
                "layer::forward, context.pool: expected a run function and at least 1 worker, got 0 workers");
}

TEST_CASE("logits that are not finite are refused, whoever made them so", "[errors]") {
  std::string const before =
      "layer::forward, router logits: expected finite numbers (are tokens and router weights free of NaN and "
      "infinity?), got ";
  for (int threads : {1, 4}) {
    for (float bad : {not_a_number, infinity, -infinity}) {
      std::string const name = std::isnan(bad) ? "nan" : bad > 0 ? "inf" : "-inf";
      CAPTURE(threads, name);
      refuses<full>(
          [&](auto& c) {
            c.context.threads = threads;
            c.x[2 * full::dims.hidden + 1] = bad;
          },
          before + name + " for token 2, expert 0");
      refuses<omni>(
          [&](auto& c) {
            c.context.threads = threads;
            c.router[3 * full::dims.hidden + 5] = bad;
          },
          before + name + " for token 0, expert 3");
      if (bad < 0) continue;  // minus infinity in a bias closes an expert
      refuses<full>(
          [&](auto& c) {
            c.context.threads = threads;
            c.vector[1] = bad;  // read as router bias first
            c.args.weights.router.correction_bias = c.router.data();
          },
          before + name + " for token 0, expert 1");
    }
  }
}

TEST_CASE("numbers whose products are too large for a float are refused", "[errors]") {
  attempt<full> call;
  for (float& v : call.x) v = 3e38f;
  for (float& v : call.router) v = 3e38f;
  CHECK_THAT(call.error(), Catch::Matchers::ContainsSubstring("router logits: expected finite numbers"));
  CHECK(call.nothing_written());
}

TEST_CASE("a correction bias that is no number is refused", "[errors]") {
  for (float bad : {not_a_number, infinity}) {
    attempt<full> call;
    std::vector<float> const correction{0.0f, 0.0f, bad, 0.0f};
    call.args.weights.router.correction_bias = correction.data();
    CHECK_THAT(call.error(), Catch::Matchers::ContainsSubstring("correction_bias: expected finite numbers"));
    CHECK(call.nothing_written());
  }
}

TEST_CASE("biases that leave fewer experts open than top_k are refused", "[errors]") {
  std::string const sentence =
      "layer::forward, router biases: expected minus infinity for few enough experts to leave 2 to choose from, as "
      "many as "
      "top_k, got 3 of 4 closed, and too few left for token 0";
  std::vector<float> const closed{-infinity, 0.0f, -infinity, -infinity}, zeros(4);
  refuses<full>(
      [&](auto& c) {
        c.args.weights.router.bias = closed.data();
        c.args.weights.router.correction_bias = zeros.data();
      },
      sentence);
  refuses<full>(
      [&](auto& c) {
        c.args.weights.router.bias = zeros.data();
        c.args.weights.router.correction_bias = closed.data();
      },
      sentence);
}

TEST_CASE("a bias that the router would not read is refused", "[errors]") {
  std::vector<float> const other(4);
  using biased = sy::layer<full::dims, sy::router::with_bias<sy::router::softmax_top_k>, full::capacity, full::expert>;
  using corrected = sy::layer<
      full::dims,
      sy::router::top_k<sy::router::scores::sigmoid, sy::router::selection::corrected, sy::router::weighting::sum>,
      full::capacity, full::expert>;
  refuses<biased>(
      [&](auto& c) { c.args.weights.router.correction_bias = other.data(); },
      "layer::forward, weights.router.correction_bias: expected a null pointer, for the router's selection adds "
      "none (selection::corrected does), got a pointer");
  refuses<corrected>(
      [&](auto& c) { c.args.weights.router.bias = other.data(); },
      "layer::forward, weights.router.bias: expected a null pointer, for the router adds none to the logits "
      "(router::with_bias does), got a pointer");
}

TEST_CASE("precomputed routes out of range are refused", "[errors]") {
  refuses<given>(
      [](auto& c) { c.ids[3] = 4; },
      "layer::forward, inputs.experts: expected ids from 0 to 3, or -1 for none, got 4 for token 1, choice 1");
  refuses<given>(
      [](auto& c) { c.ids[8] = -2; },
      "layer::forward, inputs.experts: expected ids from 0 to 3, or -1 for none, got -2 for token 4, choice 0");
  for (float bad : {not_a_number, infinity, -infinity}) {
    std::string const name = std::isnan(bad) ? "nan" : bad > 0 ? "inf" : "-inf";
    refuses<given>([&](auto& c) { c.id_weights[5] = bad; },
                   "layer::forward, inputs.weights: expected finite numbers, got " + name + " for token 2, choice 1");
  }
}

TEST_CASE("the halves of a tensor that has gate and up side by side are no two tensors", "[errors]") {
  refuses<full>(
      [](auto& c) {
        std::int64_t const matrix = std::int64_t{full::dims.intermediate} * full::dims.hidden;
        c.matrix.resize(static_cast<std::size_t>(2 * matrix * full::dims.experts), 0.5f);
        c.args.weights.gate_proj = full::in_proj(c.matrix.data());
        c.args.weights.up_proj = full::in_proj(c.matrix.data() + matrix);
      },
      "layer::forward, weights.up_proj: expected a tensor apart from gate_proj (layer::split_gate_up makes both views "
      "of one "
      "that has them side by side), got the matrix of gate_proj's second expert");
}

TEST_CASE("a router that answers with no expert or with numbers that are not finite is refused by name", "[errors]") {
  std::string const sentence =
      "layer::forward, answer of router mistaken: expected ids from 0 to 3, finite weights and priority, got ";
  auto const unchanged = [](auto&) {};
  refuses<with_router_of_a_user<mistake::id_too_large>>(
      unchanged, sentence + "id 4, weight 0.500000, priority 0.250000 for token 0, choice 1");
  refuses<with_router_of_a_user<mistake::id_negative>>(
      unchanged, sentence + "id -1, weight nan, priority 0.000000 for token 0, choice 0");
  refuses<with_router_of_a_user<mistake::weight_nan>>(
      unchanged, sentence + "id 1, weight nan, priority 0.250000 for token 0, choice 1");
  refuses<with_router_of_a_user<mistake::weight_infinite>>(
      unchanged, sentence + "id 1, weight -inf, priority 0.250000 for token 0, choice 1");
  refuses<with_router_of_a_user<mistake::priority_nan>>(
      unchanged, sentence + "id 0, weight 0.500000, priority nan for token 0, choice 0");
}

TEST_CASE("a router is not asked about padding rows, so it cannot answer them wrongly", "[errors]") {
  using layer = with_router_of_a_user<mistake::weight_nan>;
  refuses<layer>(
      [](auto& c) {
        c.active = {0, 0, 1, 0, 1};
      },
      "layer::forward, answer of router mistaken: expected ids from 0 to 3, finite weights and priority, "
      "got id 1, weight nan, priority 0.250000 for token 2, choice 1");
  attempt<layer> call;
  call.active.assign(tokens, 0);
  CHECK(call.error() == "");
}

TEST_CASE("an error has the line that fail was given", "[errors]") {
  CHECK_THROWS_WITH(sy::fail("a thing", "this", "that"), "switchyard: a thing: expected this, got that");
  CHECK_THROWS_AS(sy::fail("", "", ""), std::exception);
}
