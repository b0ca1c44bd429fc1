#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/core/workspace.hpp>

#include <cstddef>
#include <cstdint>
#include <string>

/// What `layer::check` looks at, without a layer: all layers of a program share the code. Sentences are put together only to
/// be thrown, so that a call that is right does not allocate.
namespace switchyard::checks {

/// Any array of a call: where it is, and what its address has to be a multiple of.
struct pointer {
  void const* address;
  std::size_t alignment;

  template <class T>
  pointer(T const* first) : address(first), alignment(alignof(T)) {}
};

/// What a member belongs to: `before`, or `before` with the number of one of several.
struct owner {
  char const* before = "";
  int number = -1;

  std::string text() const {
    std::string all(before);
    if (number >= 0) all.append("[").append(std::to_string(number)).append("].");
    return all;
  }
};

inline void check_pointer(pointer p, char const* name, char const* expected, owner const& of = {}) {
  auto const what = [&] { return std::string("layer::forward, ").append(of.text()).append(name); };
  if (p.address == nullptr) fail(what(), expected, "a null pointer");
  if (reinterpret_cast<std::uintptr_t>(p.address) % p.alignment != 0) {
    fail(what(), "an address that is a multiple of " + std::to_string(p.alignment), "one that is not");
  }
}

/// A `view`, its strides in bytes.
struct matrix {
  pointer data;
  std::int64_t rows, columns, row_stride, element_bytes;

  template <class T>
  matrix(view<T> const& v)
      : data(v.data), rows(v.rows), columns(v.columns), row_stride(v.row_stride), element_bytes(sizeof(T)) {}
};

inline void check_matrix(matrix const& m, char const* name, std::int64_t rows, std::int64_t hidden) {
  auto const what = [&] { return std::string("layer::forward, ") + name; };
  if (m.rows != rows || m.columns != hidden) {
    fail(what(), std::to_string(rows) + " x " + std::to_string(hidden) + " (tokens x hidden)",
         std::to_string(m.rows) + " x " + std::to_string(m.columns));
  }
  if (rows > 1 && m.row_stride < hidden) {
    fail(what() + ", row stride", "at least " + std::to_string(hidden), std::to_string(m.row_stride));
  }
  if (rows > 0) check_pointer(m.data, name, "a matrix");
}

/// A stride of 0 is one that was forgotten, unless there is nothing to step to.
inline void check_stride(std::int64_t stride, int count, char const* owner, char const* name) {
  if (stride != 0 || count == 1) return;
  fail(std::string("layer::forward, ") + owner + name,
       "a number of elements other than 0 (layer::in_proj and its like set it)", "0");
}

/// `experts` matrices of a `weight_view`.
struct weights {
  pointer data;
  std::int64_t expert_stride, row_stride, column_stride;

  template <class T>
  weights(weight_view<T> const& w)
      : data(w.data), expert_stride(w.expert_stride), row_stride(w.row_stride), column_stride(w.column_stride) {}
};

inline void check_weight(weights const& w, char const* name, char const* expected, int experts, int rows, int columns) {
  check_pointer(w.data, name, expected);
  check_stride(w.expert_stride, experts, name, ".expert_stride");
  check_stride(w.row_stride, rows, name, ".row_stride");
  check_stride(w.column_stride, columns, name, ".column_stride");
}

struct biases {
  pointer data;
  std::int64_t expert_stride, stride;

  template <class T>
  biases(bias_view<T> const& b) : data(b.data), expert_stride(b.expert_stride), stride(b.stride) {}
};

inline void check_bias(biases const& b, char const* name, char const* expected, int experts, int size) {
  check_pointer(b.data, name, expected);
  check_stride(b.expert_stride, experts, name, ".expert_stride");
  check_stride(b.stride, size, name, ".stride");
}

/// The bytes from a matrix's first element to behind its last.
struct range {
  std::uintptr_t begin, end;
  bool meets(range other) const { return begin < other.end && other.begin < end; }
};
inline range bytes_of(matrix const& m) {
  auto const first = reinterpret_cast<std::uintptr_t>(m.data.address);
  return {first, first + static_cast<std::uintptr_t>(((m.rows - 1) * m.row_stride + m.columns) * m.element_bytes)};
}

/// An output may be an input, or have rows that take turns with the input's, but overlap none of them otherwise.
inline void check_output(matrix const& output, matrix const& input, char const* name) {
  range const in = bytes_of(input), out = bytes_of(output);
  bool const alike = input.rows == 1 || input.row_stride == output.row_stride;
  // Rows of the same stride may take turns in memory without sharing an element.
  auto const stride = static_cast<std::uintptr_t>(input.row_stride * input.element_bytes);
  auto const row = static_cast<std::uintptr_t>(input.columns * input.element_bytes);
  std::uintptr_t const apart = in.begin > out.begin ? in.begin - out.begin : out.begin - in.begin;
  bool const take_turns = alike && input.rows > 1 && apart % stride >= row && stride - apart % stride >= row;
  if (in.meets(out) && !take_turns && !(alike && apart == 0)) {
    fail("layer::forward, output", std::string("memory apart from ") + name + ", or the same view",
         std::string("a matrix that overlaps ") + name);
  }
}

inline void check_workspace_apart(range workspace, matrix const& m, char const* name) {
  if (!workspace.meets(bytes_of(m))) return;
  fail("layer::forward, workspace", "memory apart from tokens and output", std::string("memory that overlaps ") + name);
}

inline void check_workspace(void const* memory, std::size_t bytes, std::size_t needed, std::int64_t tokens) {
  if (bytes < needed) {
    fail("layer::forward, workspace", std::to_string(needed) + " bytes for " + std::to_string(tokens) + " tokens",
         std::to_string(bytes) + " bytes");
  }
  if (needed == 0) return;
  if (memory == nullptr) fail("layer::forward, workspace", "memory", "a null pointer");
  auto const misplaced = reinterpret_cast<std::uintptr_t>(memory) % workspace_alignment;
  if (misplaced != 0) {
    fail("layer::forward, workspace", "an address that is a multiple of " + std::to_string(workspace_alignment),
         "one that is " + std::to_string(misplaced) + " bytes past it");
  }
}

[[noreturn]] inline void fail_tokens(char const* what, std::int64_t most, std::int64_t tokens) {
  fail(std::string(what) + ", tokens", "0 to " + std::to_string(most), std::to_string(tokens));
}

/// A value that a call must leave alone.
inline void check_absent(bool present, char const* what, char const* expected, char const* got = "a pointer") {
  if (present) fail(std::string("layer::forward, ") + what, expected, got);
}

}  // namespace switchyard::checks
