#include <switchyard/switchyard.hpp>

#include "catch.hpp"

namespace sy = switchyard;

namespace {

using layer = sy::layer<sy::shape{.hidden = 5, .intermediate = 3, .experts = 2, .top_k = 1}, sy::router::switch_top1,
                        sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

using with_all = sy::layer<sy::shape{.hidden = 5, .intermediate = 3, .experts = 2, .top_k = 1}, sy::router::switch_top1,
                           sy::capacity::dropless,
                           sy::expert::with_shared<sy::expert::with_bias<sy::expert::gated_mlp<sy::silu>>, 7>,
                           sy::backend::cpu, sy::half>;

template <class T, sy::projection Role>
bool same(sy::weight_view<T, Role> const& a, std::type_identity_t<sy::weight_view<T, Role>> const& b) {
  return a.data == b.data && a.expert_stride == b.expert_stride && a.row_stride == b.row_stride &&
         a.column_stride == b.column_stride;
}

}  // namespace

TEST_CASE("a layer makes views of its own widths", "[layer]") {
  float memory[64] = {};
  float const* const read = memory;
  sy::view<float> const output = layer::rows(memory, 4);
  CHECK(output.rows == 4);
  CHECK(output.columns == 5);
  CHECK(output.row(2) == memory + 10);
  CHECK(layer::rows(read, 4).row(3) == memory + 15);

  sy::weight_view<float> const in = layer::in_proj(memory);
  CHECK(in.data == memory);
  CHECK(in.expert_stride == 15);
  CHECK(in.row_stride == 5);
  CHECK(in.column_stride == 1);
  sy::weight_view<float> const out = layer::out_proj(memory);
  CHECK(out.expert_stride == 15);
  CHECK(out.row_stride == 3);
  CHECK(out.column_stride == 1);
}

TEST_CASE("a layer makes views of biases and of the shared expert", "[layer]") {
  sy::half memory[64] = {};
  sy::bias_view<sy::half> const in = with_all::in_bias(memory);
  CHECK(in.data == memory);
  CHECK(in.expert_stride == 3);
  CHECK(in.stride == 1);
  sy::bias_view<sy::half> const out = with_all::out_bias(memory);
  CHECK(out.data == memory);
  CHECK(out.expert_stride == 5);
  CHECK(out.stride == 1);

  sy::weight_view<sy::half> const shared_in = with_all::shared_in_proj(memory);
  CHECK(shared_in.data == memory);
  CHECK(shared_in.row_stride == 5);
  CHECK(shared_in.column_stride == 1);
  sy::weight_view<sy::half> const shared_out = with_all::shared_out_proj(memory);
  CHECK(shared_out.data == memory);
  CHECK(shared_out.row_stride == 7);
  CHECK(shared_out.column_stride == 1);
}

TEST_CASE("a layer splits a tensor of gate and up by its own sizes", "[layer]") {
  sy::half memory[64] = {};
  auto const usual = with_all::split_gate_up(memory);
  CHECK(same(usual.gate, {memory, 30, 5, 1}));
  CHECK(same(usual.up, {memory + 15, 30, 5, 1}));
  auto const interleaved = with_all::split_gate_up(memory, sy::gate_up_order::interleaved);
  CHECK(same(interleaved.gate, {memory, 30, 10, 1}));
  CHECK(same(interleaved.up, {memory + 5, 30, 10, 1}));
  auto const by_input = with_all::split_gate_up(memory, sy::gate_up_order::concatenated, sy::storage::input_major);
  CHECK(same(by_input.gate, {memory, 30, 1, 6}));
  CHECK(same(by_input.up, {memory + 3, 30, 1, 6}));
  auto const both = with_all::split_gate_up(memory, sy::gate_up_order::interleaved, sy::storage::input_major);
  CHECK(same(both.gate, {memory, 30, 2, 6}));
  CHECK(same(both.up, {memory + 1, 30, 2, 6}));
}

TEST_CASE("the workspace of a number of tokens is known at compile time and grows with them", "[layer]") {
  constexpr std::size_t bytes = layer::workspace_bytes(10);
  static_assert(bytes > 0);
  std::size_t last = 0;
  for (int tokens = 0; tokens < 200; ++tokens) {
    CHECK(layer::workspace_bytes(tokens) >= last);
    last = layer::workspace_bytes(tokens);
  }
}
