#include "support/compile.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace support {
namespace {

std::vector<any_layer>& all_layers() {
  static std::vector<any_layer> all;
  return all;
}

}  // namespace

std::vector<any_layer> const& compiled_layers() { return all_layers(); }

any_layer const& compiled(std::string const& name) {
  for (any_layer const& l : all_layers()) {
    if (l.name == name) return l;
  }
  throw std::logic_error("no file compiles the layer " + name);
}

void add(any_layer layer) { all_layers().push_back(std::move(layer)); }

template <class Element>
typed_args<Element>::typed_args(any_args const& from, int hidden) {
  auto const data = [](void const* p) { return static_cast<Element const*>(p); };
  auto const matrix = [&](any_matrix const& m) {
    return sy::weight_view<Element>{data(m.data), m.expert_stride, m.row_stride, m.column_stride};
  };
  auto const vector = [&](any_vector const& v) {
    return sy::bias_view<Element>{data(v.data), v.expert_stride, v.stride};
  };
  tokens = {data(from.tokens), from.rows, hidden, from.token_stride};
  output = {static_cast<Element*>(from.output), from.rows, hidden, from.output_stride};
  up_proj = matrix(from.up_proj);
  down_proj = matrix(from.down_proj);
  optional.residual = {data(from.residual), from.rows, hidden, from.residual_stride};
  std::copy(from.router, from.router + most_strata, optional.router);
  std::copy(from.norm, from.norm + most_strata, optional.norm);
  optional.gate_proj = matrix(from.gate_proj);
  optional.bias = {vector(from.gate_bias), vector(from.up_bias), vector(from.down_bias)};
  optional.shared = {matrix(from.shared_gate_proj), matrix(from.shared_up_proj), matrix(from.shared_down_proj),
                     data(from.shared_gate)};
  optional.output_bias = data(from.output_bias);
  optional.unit_norms = from.unit_norms;
  optional.constant_experts = {data(from.constant_vectors), data(from.constant_mixing)};
  optional.routes = from.routes;
  optional.words = from.words;
  optional.vocabulary = static_cast<std::int32_t>(from.rows);
  optional.router_tokens = {data(from.router_tokens), from.rows, from.router_width, from.router_token_stride};
  optional.clusters = from.clusters;
  optional.dropout = from.dropout;
  optional.restriction = from.restriction;
  optional.auxiliary = from.auxiliary;
  optional.report = from.report;
}

template <class Element>
void store_elements(double const* from, std::size_t count, void* to) {
  for (std::size_t i = 0; i < count; ++i) static_cast<Element*>(to)[i] = Element(static_cast<float>(from[i]));
}

template <class Element>
void load_elements(void const* from, std::size_t count, float* to) {
  for (std::size_t i = 0; i < count; ++i) to[i] = static_cast<float>(static_cast<Element const*>(from)[i]);
}

template struct typed_args<float>;
template struct typed_args<sy::bfloat16>;
template struct typed_args<sy::half>;
template void store_elements<float>(double const*, std::size_t, void*);
template void store_elements<sy::bfloat16>(double const*, std::size_t, void*);
template void store_elements<sy::half>(double const*, std::size_t, void*);
template void load_elements<float>(void const*, std::size_t, float*);
template void load_elements<sy::bfloat16>(void const*, std::size_t, float*);
template void load_elements<sy::half>(void const*, std::size_t, float*);

}  // namespace support
