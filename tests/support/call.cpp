#include "support/call.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <map>
#include <utility>

#include "support/compare.hpp"
#include "support/memory.hpp"

namespace support {
namespace {

/// The matrices [matrices, rows, columns] of gate and up in one layout, and views of them.
struct stored_input {
  std::vector<std::byte> memory;
  any_matrix gate, up;
};

stored_input store_input(any_layer const& layer, reference::numbers const& gate, reference::numbers const& up,
                         std::int64_t rows, std::int64_t columns, layout l) {
  std::int64_t const matrices = static_cast<std::int64_t>(up.size()) / (rows * columns);
  bool const gated = !gate.empty(), by_input = l >= layout::transposed;
  int const order = static_cast<int>(l) % 3;
  bool const concatenated = gated && order == 1, interleaved = gated && order == 2;
  std::int64_t const features = concatenated || interleaved ? 2 * rows : rows;
  std::int64_t const matrix = features * columns;
  std::int64_t const row = by_input ? 1 : columns, column = by_input ? features : 1;
  std::int64_t const up_begin = concatenated ? rows * row : interleaved ? row : gated ? matrices * matrix : 0;

  reference::numbers values(gate.size() + up.size());
  for (std::int64_t m = 0; m < matrices; ++m) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < columns; ++c) {
        std::int64_t const at = m * matrix + (interleaved ? 2 * r : r) * row + c * column;
        std::int64_t const from = (m * rows + r) * columns + c;
        if (gated) values[at] = gate[from];
        values[up_begin + at] = up[from];
      }
    }
  }
  stored_input out;
  out.memory.resize(values.size() * layer.element_bytes);
  layer.store(values.data(), values.size(), out.memory.data());
  auto const view_of = [&](sy::weight_view<double> const& v) {
    std::int64_t const bytes = (v.data - values.data()) * static_cast<std::int64_t>(layer.element_bytes);
    return any_matrix{out.memory.data() + bytes, v.expert_stride, v.row_stride, v.column_stride};
  };
  using matrices_of = sy::weight_view<double>;
  auto const apart = [&](double const* first) {
    return by_input ? matrices_of::transposed(first, rows, columns) : matrices_of::packed(first, rows, columns);
  };
  if (concatenated || interleaved) {
    auto const views = sy::split_gate_up<double>(
        values.data(), rows, columns, concatenated ? sy::gate_up_order::concatenated : sy::gate_up_order::interleaved,
        by_input ? sy::storage::input_major : sy::storage::output_major);
    out.gate = view_of(views.gate);
    out.up = view_of(views.up);
  } else {
    if (gated) out.gate = view_of(apart(values.data()));
    out.up = view_of(apart(values.data() + up_begin));
  }
  return out;
}

/// The biases [experts, features] of gate and up in the order that their matrices have in a layout.
struct stored_biases {
  std::vector<std::byte> memory;
  any_vector gate, up;
};

stored_biases store_biases(any_layer const& layer, reference::numbers const& gate, reference::numbers const& up,
                           std::int64_t features, layout l) {
  if (up.empty()) return {};
  stored_input as_columns = store_input(layer, gate, up, features, 1, static_cast<layout>(static_cast<int>(l) % 3));
  auto const vector = [](any_matrix const& m) { return any_vector{m.data, m.expert_stride, m.row_stride}; };
  return {std::move(as_columns.memory), vector(as_columns.gate), vector(as_columns.up)};
}

}  // namespace

outcome run(problem const& p, call const& how) {
  any_layer const& layer = *p.layer;
  reference::config const& c = p.config;
  reference::weights const& w = p.weights;
  auto const tokens = static_cast<std::int64_t>(p.tokens.size()) / c.hidden;
  auto const elements = [&](reference::numbers const& values) {
    std::vector<std::byte> memory(values.size() * layer.element_bytes);
    layer.store(values.data(), values.size(), memory.data());
    return memory;
  };
  auto const floats = [](reference::numbers const& values) { return std::vector<float>(values.begin(), values.end()); };

  stored_input const in = store_input(layer, w.gate_proj, w.up_proj, c.intermediate, c.hidden, how.stored);
  stored_input const down = store_input(layer, {}, w.down_proj, c.hidden, c.intermediate, how.stored);
  stored_biases const in_bias = store_biases(layer, w.gate_bias, w.up_bias, c.intermediate, how.stored);
  std::vector<std::byte> const down_bias = elements(w.down_bias), shared_gate = elements(w.shared_gate);
  std::vector<std::byte> const output_bias = elements(w.output_bias);
  std::vector<float> const unit_norms = c.norm_compensated ? floats(reference::unit_norms(c, w)) : std::vector<float>{};
  std::vector<std::byte> const constant_vectors = elements(w.constant_vectors), mixing = elements(w.constant_mixing);
  std::vector<std::byte> router(w.router.size() * layer.router.weight_bytes);
  layer.store_router(w.router.data(), w.router.size(), router.data());
  std::vector<float> const bias = floats(w.router_bias);
  std::vector<float> const correction = floats(w.correction_bias);

  placement placed(layer.memory);
  std::map<void const*, std::byte const*> tensors;  // gate and up may be in one, and then are so for the layer, too
  auto const placed_at = [&](std::vector<std::byte> const& memory, void const* data) {
    auto const [tensor, is_new] = tensors.try_emplace(memory.data());
    if (is_new) tensor->second = placed.place(memory);
    return tensor->second + (static_cast<std::byte const*>(data) - memory.data());
  };
  auto const matrix_of = [&](stored_input const& stored, any_matrix view) {
    view.data = placed_at(stored.memory, view.data);
    return view;
  };
  auto const vector_of = [&](stored_biases const& stored, any_vector view) {
    view.data = placed_at(stored.memory, view.data);
    return view;
  };
  any_args args;
  args.rows = tokens;
  std::vector<float> const norm_weight = floats(w.norm_weight), norm_bias = floats(w.norm_bias);
  {
    std::byte const* const weight = placed.place(router);
    std::int64_t const row_bytes = c.hidden * static_cast<std::int64_t>(layer.router.weight_bytes);
    float const *const b = placed.place(bias), *const cb = placed.place(correction);
    float const *const norms = placed.place(norm_weight), *const norm_biases = placed.place(norm_bias);
    int row = 0, closed = 0;
    for (std::size_t i = 0; i < std::max<std::size_t>(c.strata.size(), 1); ++i) {
      args.router[i] = {weight == nullptr ? nullptr : reinterpret_cast<float const*>(weight + row * row_bytes),
                        b == nullptr ? nullptr : b + row, cb == nullptr ? nullptr : cb + row};
      if (c.strata.empty()) break;
      if (!norm_weight.empty())
        args.norm[i] = {norms + i * c.hidden, norm_biases + i * c.hidden, static_cast<float>(c.norm_epsilon)};
      row += c.experts - closed;
      closed += c.strata[i];
    }
  }
  if (!w.gate_proj.empty()) args.gate_proj = matrix_of(in, in.gate);
  args.up_proj = matrix_of(in, in.up);
  args.down_proj = matrix_of(down, down.up);
  if (!w.gate_bias.empty()) args.gate_bias = vector_of(in_bias, in_bias.gate);
  if (!w.up_bias.empty()) args.up_bias = vector_of(in_bias, in_bias.up);
  args.down_bias = {placed.place(down_bias), c.hidden, 1};
  stored_input shared_in, shared_down;
  if (c.shared_intermediate > 0) {
    shared_in = store_input(layer, w.shared_gate_proj, w.shared_up_proj, c.shared_intermediate, c.hidden, how.stored);
    shared_down = store_input(layer, {}, w.shared_down_proj, c.hidden, c.shared_intermediate, how.stored);
    if (!w.shared_gate_proj.empty()) args.shared_gate_proj = matrix_of(shared_in, shared_in.gate);
    args.shared_up_proj = matrix_of(shared_in, shared_in.up);
    args.shared_down_proj = matrix_of(shared_down, shared_down.up);
    args.shared_gate = placed.place(shared_gate);
  }

  args.output_bias = placed.place(output_bias);
  args.unit_norms = placed.place(unit_norms);
  args.constant_vectors = placed.place(constant_vectors);
  args.constant_mixing = placed.place(mixing);

  // The pattern between rows is a NaN, so that it is seen in the output if it is read.
  std::int64_t const stride = c.hidden + how.padding;
  std::size_t const row_bytes = static_cast<std::size_t>(c.hidden) * layer.element_bytes;
  std::size_t const stride_bytes = static_cast<std::size_t>(stride) * layer.element_bytes;
  std::size_t const all_bytes = tokens == 0 ? 0 : static_cast<std::size_t>(tokens - 1) * stride_bytes + row_bytes;
  guarded x(all_bytes), y(all_bytes), residual(c.strata.empty() ? 0 : all_bytes);
  for (std::int64_t t = 0; t < tokens; ++t) {
    layer.store(p.tokens.data() + t * c.hidden, c.hidden, x.data() + t * stride_bytes);
    if (c.strata.empty()) continue;
    layer.store(p.inputs.residual.data() + t * c.hidden, c.hidden, residual.data() + t * stride_bytes);
  }
  std::byte* const tokens_at = placed.place(x);
  args.tokens = tokens_at;
  args.token_stride = args.output_stride = stride;
  std::byte* const residual_at = placed.place(residual);
  args.residual = residual_at;
  args.residual_stride = stride;
  args.output = how.in_place ? tokens_at : how.onto_residual ? residual_at : placed.place(y);

  std::size_t const router_row = static_cast<std::size_t>(c.router_width) * layer.element_bytes;
  args.router_width = c.router_width;
  args.router_token_stride = c.router_width + how.padding;
  std::size_t const router_stride = static_cast<std::size_t>(args.router_token_stride) * layer.element_bytes;
  guarded router_tokens(
      tokens == 0 || c.router_width == 0 ? 0 : static_cast<std::size_t>(tokens - 1) * router_stride + router_row);
  for (std::int64_t t = 0; c.router_width > 0 && t < tokens; ++t) {
    layer.store(p.inputs.router_tokens.data() + t * c.router_width, c.router_width,
                router_tokens.data() + t * router_stride);
  }
  args.router_tokens = placed.place(router_tokens);

  // The workspace is exactly as large as asked for, at an address that is a multiple of 16 and of nothing more.
  guarded workspace(layer.workspace_bytes(tokens), sy::workspace_alignment);
  args.workspace = {placed.place(workspace, false), workspace.size()};

  std::vector<std::int32_t> const ids(p.inputs.ids.begin(), p.inputs.ids.end());
  std::vector<float> const id_weights = floats(p.inputs.id_weights), feature_scale = floats(p.inputs.feature_scale);
  std::vector<std::int32_t> const labels(p.inputs.labels.begin(), p.inputs.labels.end());
  // The words of the tokens are those of the vocabulary backwards, with experts in that order.
  std::vector<std::int32_t> words, word_experts = ids;
  for (std::int64_t t = 0; layer.router.by_words && t < tokens; ++t) {
    words.push_back(static_cast<std::int32_t>(tokens - 1 - t));
    std::copy(ids.begin() + t * c.top_k, ids.begin() + (t + 1) * c.top_k,
              word_experts.begin() + words.back() * c.top_k);
  }
  args.words = placed.place(words);
  args.routes = {placed.place(word_experts), placed.place(id_weights)};
  args.clusters = {placed.place(labels), p.inputs.label_choices,
                   feature_scale.empty() ? nullptr : placed.place(feature_scale)};
  args.dropout = p.dropout;
  std::vector<std::uint8_t> allowed;  // of every token the same
  for (int e = 0; layer.router.restricted && !p.inputs.masked.empty() && e < c.experts; ++e) {
    allowed.push_back(p.inputs.masked[static_cast<std::size_t>(e)] != 0 ? 0 : 1);
  }
  args.restriction.allowed = placed.place(allowed);
  args.tokens_per_group = c.tokens_per_group;
  if (!p.inputs.active.empty()) args.active = placed.place(p.inputs.active);

  std::size_t const passes = std::max<std::size_t>(c.strata.size(), 1);
  std::size_t const pairs = passes * static_cast<std::size_t>(tokens * c.top_k), experts = c.experts;
  bool const has_logits = !layer.router.precomputed && c.strata.empty();
  guarded expert_ids(pairs * sizeof(std::int32_t)), weights(pairs * sizeof(float)), dropped(pairs);
  guarded counts(experts * sizeof(std::int64_t)), load(experts * sizeof(std::int64_t));
  guarded logits(has_logits ? static_cast<std::size_t>(tokens) * experts * sizeof(float) : 0);
  guarded auxiliary(sizeof(sy::auxiliary_values)), made(c.strata.empty() ? 0 : static_cast<std::size_t>(tokens));
  std::size_t const table = c.clusters.scales ? experts * static_cast<std::size_t>(c.hidden) * sizeof(float) : 0;
  guarded scale_used(table), dispersion(feature_scale.empty() ? table : 0);
  outcome out;
  if (how.decisions) {
    auto const at = [&]<class T>(guarded& buffer, T*& pointer) {
      pointer = reinterpret_cast<T*>(placed.place(buffer));
    };
    at(expert_ids, args.decisions.experts);
    at(weights, args.decisions.weights);
    at(dropped, args.decisions.dropped);
    at(counts, args.decisions.counts);
    at(load, args.decisions.load);
    if (has_logits) at(logits, args.report.logits);
    if (!layer.router.precomputed) at(auxiliary, args.auxiliary);
    if (!c.strata.empty()) at(made, args.report.passes);
    if (scale_used.size() > 0) at(scale_used, args.report.feature_scale);
    if (dispersion.size() > 0) at(dispersion, args.report.dispersion);
  }

  layer.forward(args, how.context);
  placed.fetch();
  if (how.decisions && !layer.router.precomputed) out.auxiliary = *auxiliary.as<sy::auxiliary_values>();

  guarded& written = how.in_place ? x : how.onto_residual ? residual : y;
  out.output.resize(p.tokens.size());
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::byte const* const row = written.data() + t * stride_bytes;
    layer.load(row, c.hidden, out.output.data() + t * c.hidden);
    for (std::size_t i = row_bytes; t + 1 < tokens && i < stride_bytes; ++i) {
      out.guards_intact = out.guards_intact && row[i] == std::byte{guarded::pattern};
    }
  }
  for (guarded* g : {&x, &y, &residual, &workspace, &expert_ids, &weights, &dropped, &counts, &load, &logits,
                     &auxiliary, &scale_used, &dispersion, &made}) {
    out.guards_intact = out.guards_intact && g->guards_intact();
  }
  auto const copy = [](auto& to, guarded& from) {
    to.resize(from.size() / sizeof(to[0]));
    if (!to.empty()) std::memcpy(to.data(), from.data(), from.size());
  };
  copy(out.experts, expert_ids);
  copy(out.weights, weights);
  copy(out.dropped, dropped);
  copy(out.counts, counts);
  copy(out.load, load);
  copy(out.logits, logits);
  copy(out.feature_scale, scale_used);
  copy(out.dispersion, dispersion);
  copy(out.passes, made);
  return out;
}

bool same_bits(outcome const& a, outcome const& b) {
  return same_bits(a.output, b.output) && same_bits(a.experts, b.experts) && same_bits(a.weights, b.weights) &&
         same_bits(a.dropped, b.dropped) && same_bits(a.counts, b.counts) && same_bits(a.load, b.load) &&
         same_bits(a.logits, b.logits) && same_bits(a.feature_scale, b.feature_scale) &&
         same_bits(a.dispersion, b.dispersion) && same_bits(a.passes, b.passes) &&
         std::memcmp(&a.auxiliary, &b.auxiliary, sizeof a.auxiliary) == 0;
}

}  // namespace support
