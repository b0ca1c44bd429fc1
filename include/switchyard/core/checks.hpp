#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/core/workspace.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

/// What `layer::check` looks at, without a layer: all layers of a program share the code. Sentences are put together only to
/// be thrown, so that a call that is right does not allocate.
namespace switchyard::checks {

/// Any array of a call: where it is, and what its address has to be a multiple of.
struct pointer {
  void const* address;
  std::size_t alignment;

  template <class T>
  pointer(T const* first) : address(first), alignment(alignof(T)) {}

  bool is_right() const { return address != nullptr && reinterpret_cast<std::uintptr_t>(address) % alignment == 0; }
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

inline void check_matrix(matrix const& m, char const* name, std::int64_t rows, std::int64_t hidden,
                         char const* shape = "tokens x hidden") {
  auto const what = [&] { return std::string("layer::forward, ") + name; };
  if (m.rows != rows || m.columns != hidden) {
    fail(what(), std::to_string(rows) + " x " + std::to_string(hidden) + " (" + shape + ")",
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

/// What an operand is called, and for a part of one the name of the whole.
struct array_name {
  char const* name;
  array_name const* whole = nullptr;

  std::string text() const { return whole == nullptr ? name : whole->text().append(".").append(name); }
};

/// Checks the arrays that an operand names: that they are there, aligned, and no stride was forgotten.
struct check_arrays {
  array_name name;
  char const* expected;  ///< the shape of the matrices

  /// A part of it, whose matrices may have another shape.
  check_arrays of(char const* part) const { return of(part, expected); }
  check_arrays of(char const* part, char const* shape) const { return {{part, &name}, shape}; }

  /// An array of `count` numbers that is called `part`.
  void array(char const* part, pointer first, std::int64_t, char const* shape) const {
    if (first.is_right()) return;
    array_name const all{part, &name};
    check_pointer(first, all.text().c_str(), shape);
  }
  /// Matrices by strides.
  void matrices(pointer first, int experts, std::int64_t expert_stride, int rows, std::int64_t row_stride, int columns,
                std::int64_t column_stride) const {
    bool const stands =
        (expert_stride != 0 || experts == 1) && (row_stride != 0 || rows == 1) && (column_stride != 0 || columns == 1);
    if (first.is_right() && stands) return;
    std::string const all = name.text();
    check_pointer(first, all.c_str(), expected);
    check_stride(expert_stride, experts, all.c_str(), ".expert_stride");
    check_stride(row_stride, rows, all.c_str(), ".row_stride");
    check_stride(column_stride, columns, all.c_str(), ".column_stride");
  }
};

struct biases {
  pointer data;
  std::int64_t expert_stride, stride;

  template <class T, projection Role>
  biases(bias_view<T, Role> const& b) : data(b.data), expert_stride(b.expert_stride), stride(b.stride) {}
};

inline void check_bias(biases const& b, char const* name, char const* expected, int experts, int size) {
  check_pointer(b.data, name, expected);
  check_stride(b.expert_stride, experts, name, ".expert_stride");
  check_stride(b.stride, size, name, ".stride");
}

/// One that all experts share.
inline void check_one_bias(biases const& b, char const* name, char const* expected, int size) {
  check_bias(b, name, expected, 1, size);
  if (b.expert_stride == 0) return;
  fail(std::string("layer::forward, ") + name + ".expert_stride",
       "0, for all experts share this bias (layer::in_bias and out_bias set it)", std::to_string(b.expert_stride));
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

/// Elements that stand at regular distances from each other, in up to three dimensions: where they are in memory, in bytes.
class strided {
 public:
  struct dimension {
    std::int64_t count, stride;
  };

  strided() = default;
  /// Strides in elements; those of nothing do not matter.
  template <std::size_t Count>
  [[gnu::noinline]] strided(void const* first, std::size_t element_bytes, dimension const (&dimensions)[Count])
      : begin_(reinterpret_cast<std::uintptr_t>(first)), bytes_(element_bytes) {
    static_assert(Count <= 3);
    for (dimension d : dimensions) {
      if (d.count == 1) continue;
      bool const backwards = d.stride < 0;
      auto const stride = static_cast<std::uintptr_t>(backwards ? -d.stride : d.stride) * element_bytes;
      if (backwards) begin_ -= static_cast<std::uintptr_t>(d.count - 1) * stride;
      int at = levels_++;  // the longest stride first
      for (; at > 0 && level_[at - 1].stride < stride; --at) level_[at] = level_[at - 1];
      level_[at] = {static_cast<std::uintptr_t>(d.count), stride};
    }
    while (levels_ > 0 && level_[levels_ - 1].stride <= bytes_) {  // no gaps
      bytes_ += (level_[levels_ - 1].count - 1) * level_[levels_ - 1].stride;
      --levels_;
    }
  }

  bool is_empty() const { return bytes_ == 0; }
  bool begins_at(void const* first) const { return begin_ == reinterpret_cast<std::uintptr_t>(first); }

  /// Whether they share a byte. Where both have gaps, only the outermost blocks of the other are looked at.
  bool meets(strided const& other) const {
    if (is_empty() || other.is_empty()) return false;
    if (other.levels_ == 0) return meets({other.begin_, other.begin_ + other.bytes_}, begin_, 0);
    if (levels_ == 0) return other.meets({begin_, begin_ + bytes_}, other.begin_, 0);
    std::uintptr_t const block = other.span(1), last = other.begin_ + other.span(0);
    return meets({other.begin_, other.begin_ + block}, begin_, 0) || meets({last - block, last}, begin_, 0);
  }

 private:
  struct repeated {
    std::uintptr_t count, stride;
  };

  /// Bytes from the first to the last element of the levels from one on.
  std::uintptr_t span(int from) const {
    std::uintptr_t bytes = bytes_;
    for (int i = from; i < levels_; ++i) bytes += (level_[i].count - 1) * level_[i].stride;
    return bytes;
  }
  bool meets(range other, std::uintptr_t begin, int level) const {
    if (!other.meets({begin, begin + span(level)})) return false;
    if (level == levels_) return true;
    auto const [count, stride] = level_[level];
    std::uintptr_t const block = span(level + 1);
    if (stride < block) return true;  // blocks that overlap each other
    // The blocks that reach into the range; one between two others lies in it whole.
    std::uintptr_t const first = other.begin < begin + block ? 0 : (other.begin - begin - block) / stride + 1;
    std::uintptr_t const reached = (other.end - 1 - begin) / stride, last = reached < count ? reached : count - 1;
    if (first > last) return false;
    return last - first >= 2 || meets(other, begin + first * stride, level + 1) ||
           meets(other, begin + last * stride, level + 1);
  }

  std::uintptr_t begin_ = 0, bytes_ = 0;
  repeated level_[3] = {};
  int levels_ = 0;
};

/// The memory that a call writes. Everything is named to it once, what is written before what is read, and what would
/// overlap something that is written is refused.
class written_memory {
 public:
  template <class T>
  void write(char const* name, T const* first, std::int64_t count) {
    if (first != nullptr && count > 0) add(name, array(first, count));
  }
  template <class T>
  void write(char const* name, view<T> const& v) {
    if (v.rows > 0) add(name, matrix_of(v));
  }

  /// `but`: what is written under this name may be these same numbers.
  template <class T>
  void read(char const* name, T const* first, std::int64_t count, std::string_view but = {}) const {
    if (first != nullptr && count > 0) check(name, array(first, count), first, but);
  }
  /// `but`: looked at elsewhere.
  template <class T>
  void read(char const* name, view<T> const& v, std::string_view but) const {
    check(name, matrix_of(v), nullptr, but);
  }
  template <class T>
  void read(char const* name, T const* first, strided::dimension const (&by)[3]) const {
    check(name, strided(first, sizeof(T), by));
  }
  template <class T, projection Role>
  void read(char const* name, bias_view<T, Role> const& b, std::int64_t experts, std::int64_t size) const {
    strided::dimension const d[2] = {{experts, b.expert_stride}, {size, b.stride}};
    check(name, strided(b.data, sizeof(T), d));
  }

 private:
  struct piece {
    char const* name;
    strided where;
  };

  template <class T>
  static strided array(T const* first, std::int64_t count) {
    strided::dimension const d[1] = {{count, 1}};
    return {first, sizeof(T), d};
  }
  template <class T>
  static strided matrix_of(view<T> const& v) {
    strided::dimension const d[2] = {{v.rows, v.row_stride}, {v.columns, 1}};
    return {v.data, sizeof(T), d};
  }
  // Layers have many arrays, and share one copy of this.
  [[gnu::noinline]] void add(char const* name, strided const& where) {
    check(name, where);
    written_[count_++] = {name, where};
  }
  [[gnu::noinline]] void check(char const* name, strided const& where, void const* same = nullptr,
                               std::string_view but = {}) const {
    for (int i = 0; i < count_; ++i) {
      piece const& w = written_[i];
      if (!w.where.meets(where)) continue;
      if (but == w.name && (same == nullptr || w.where.begins_at(same))) continue;
      fail(std::string("layer::forward, ").append(w.name), "memory apart from all else that the call reads and writes",
           std::string("memory that overlaps ").append(name));
    }
  }

  piece written_[12];
  int count_ = 0;
};

/// Names the arrays of an operand to those that a call reads.
struct list_arrays {
  char const* name;
  written_memory const& memory;

  list_arrays const& of(char const*, char const* = nullptr) const { return *this; }

  template <class T>
  void array(char const*, T const* first, std::int64_t count, char const*) const {
    memory.read(name, first, count);
  }
  template <class T>
  void matrices(T const* first, int experts, std::int64_t expert_stride, int rows, std::int64_t row_stride, int columns,
                std::int64_t column_stride) const {
    strided::dimension const by[3] = {{experts, expert_stride}, {rows, row_stride}, {columns, column_stride}};
    memory.read(name, first, by);
  }
};

/// A matrix in a format of quantised weights has rows of whole blocks, `whole` weights each, and where codes of neighbouring rows share a word,
/// `whole_rows` of them.
template <class Format>
void check_whole_blocks(Format const& matrix, int rows, int columns, char const* what) {
  auto const check = [&](int whole, int count, char const* expected, char const* of) {
    if (count % whole == 0) return;
    fail(what, expected + std::to_string(whole) + " weights each (store this projection in another format)",
         std::to_string(count) + of);
  };
  constexpr char const *rows_expected = "rows of whole blocks, ", *columns_expected = "columns of whole words, ";
  if constexpr (requires { matrix.whole(); }) {
    check(matrix.whole(), columns, rows_expected, " columns");
    check(matrix.whole_rows(), rows, columns_expected, " rows");
  } else {
    check(Format::whole, columns, rows_expected, " columns");
    if constexpr (requires { Format::whole_rows; }) check(Format::whole_rows, rows, columns_expected, " rows");
  }
}

/// A stride that a format counts in bytes or rows: at least what it steps over, unless there is nothing to step to.
inline void check_least_stride(std::int64_t stride, std::int64_t least, int count, char const* what, char const* name) {
  if (count <= 1 || stride >= least) return;
  fail(std::string(what).append(".").append(name), "at least " + std::to_string(least), std::to_string(stride));
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

/// A pointer that a call must leave alone.
inline void check_absent(bool present, char const* what, char const* expected, owner const& of = {}) {
  if (present) fail(std::string("layer::forward, ").append(of.text()).append(what), expected, "a pointer");
}

}  // namespace switchyard::checks
