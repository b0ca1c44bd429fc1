#pragma once

#include <switchyard/core/language.hpp>

#include <switchyard/core/error.hpp>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard::offload {

/// One call of a layer: which experts computed, in ascending order, and how many rows each of them.
struct traced_call {
  int layer;
  std::span<std::int32_t const> experts;
  std::span<std::int32_t const> rows;
};

/// Which experts the calls of a model needed, one call after the other: what a policy, a prediction or a budget is judged by. All
/// layers have the same number of experts.
class trace {
 public:
  trace(int layers, int experts) : layers_(layers), experts_(experts) {
    if (layers < 1) fail("offload::trace, layers", "1 or more", std::to_string(layers));
    if (experts < 1) fail("offload::trace, experts", "1 or more", std::to_string(experts));
  }

  /// Adds a call: `counts` is what `decisions.counts` told, [experts] rows that each expert computed.
  void record(int layer, std::span<std::int64_t const> counts) {
    if (layer < 0 || layer >= layers_) {
      fail("offload::trace::record, layer", "0 to " + std::to_string(layers_ - 1), std::to_string(layer));
    }
    if (counts.size() != static_cast<std::size_t>(experts_)) {
      fail("offload::trace::record, counts", "one for each of " + std::to_string(experts_) + " experts",
           std::to_string(counts.size()));
    }
    for (std::int64_t const count : counts) {
      if (count < 0 || count > std::numeric_limits<std::int32_t>::max()) {
        fail("offload::trace::record, counts", "rows of one call, 0 to 2147483647", std::to_string(count));
      }
    }
    for (int e = 0; e < experts_; ++e) {
      std::int64_t const count = counts[static_cast<std::size_t>(e)];
      if (count > 0) add(e, static_cast<std::int32_t>(count));
    }
    close(layer);
  }

  int layers() const { return layers_; }
  int experts() const { return experts_; }  ///< of each layer
  std::int64_t calls() const { return static_cast<std::int64_t>(layer_of_.size()); }

  /// Call `index`, 0 to calls() - 1. Valid until the next `record`.
  traced_call operator[](std::int64_t index) const {
    std::size_t const i = static_cast<std::size_t>(index), first = begin_[i], count = begin_[i + 1] - first;
    return {layer_of_[i], {expert_.data() + first, count}, {rows_.data() + first, count}};
  }

  /// [layers, experts]: how many calls needed each expert.
  std::vector<std::int64_t> uses() const {
    std::vector<std::int64_t> result(static_cast<std::size_t>(layers_) * static_cast<std::size_t>(experts_));
    for (std::int64_t i = 0; i < calls(); ++i) {
      traced_call const call = (*this)[i];
      for (std::int32_t const e : call.experts) {
        ++result[static_cast<std::size_t>(call.layer) * static_cast<std::size_t>(experts_) +
                 static_cast<std::size_t>(e)];
      }
    }
    return result;
  }

  /// Writes a text: `switchyard trace 1`, then `layers 4 experts 8 calls 2`, then a line for each call, its layer and its experts, with
  /// `:rows` behind those that have more than one (`0 3 5:12`), then `end`. Throws `error` when the file cannot be written.
  void write(std::string const& path) const {
    std::string text = "switchyard trace 1\nlayers " + std::to_string(layers_) + " experts " +
                       std::to_string(experts_) + " calls " + std::to_string(calls()) + "\n";
    for (std::int64_t i = 0; i < calls(); ++i) {
      traced_call const call = (*this)[i];
      text += std::to_string(call.layer);
      for (std::size_t k = 0; k < call.experts.size(); ++k) {
        (text += ' ') += std::to_string(call.experts[k]);
        if (call.rows[k] > 1) (text += ':') += std::to_string(call.rows[k]);
      }
      text += "\n";
    }
    text += "end\n";
    std::FILE* const file = std::fopen(path.c_str(), "wb");
    bool written = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
    int const reason = errno;
    if (file != nullptr && std::fclose(file) != 0) written = false;
    if (!written)
      fail("offload::trace::write", "a file that can be written", "\"" + path + "\": " + std::strerror(reason));
  }

  /// Reads what `write` wrote. Throws `error`, with the number of the line, where the file is damaged or cut short.
  static trace read(std::string const& path) {
    std::FILE* const file = std::fopen(path.c_str(), "rb");
    if (file == nullptr) {
      fail("offload::trace::read", "a file that can be read", "\"" + path + "\": " + std::strerror(errno));
    }
    std::string text;
    char part[16384];
    std::size_t got;
    while ((got = std::fread(part, 1, sizeof part, file)) > 0) text.append(part, got);
    bool const failed = std::ferror(file) != 0;
    std::fclose(file);
    if (failed) fail("offload::trace::read", "a file that can be read", "\"" + path + "\", which cannot be");
    return reader{path, text}.whole();
  }

 private:
  void add(std::int32_t expert, std::int32_t rows) {
    expert_.push_back(expert);
    rows_.push_back(rows);
  }
  void close(int layer) {
    layer_of_.push_back(layer);
    begin_.push_back(expert_.size());
  }

  /// Takes the text apart.
  struct reader {
    std::string const& path;
    std::string_view rest;
    std::int64_t line = 1;

    trace whole() {
      want("switchyard trace 1\n", "the line 'switchyard trace 1'");
      want("layers ", "'layers'");
      int const layers = number(1, 1 << 24, "a number of layers");
      want(" experts ", "'experts'");
      int const experts = number(1, 1 << 24, "a number of experts");
      want(" calls ", "'calls'");
      int const calls = number(0, std::numeric_limits<int>::max(), "a number of calls");
      want("\n", "the end of the line");
      trace result(layers, experts);
      for (int i = 0; i < calls; ++i) {
        int const layer = number(0, layers - 1, "a layer");
        for (int last = -1; take(" ");) {
          last = number(last + 1, experts - 1, "an expert, in ascending order");
          result.add(last, take(":") ? number(1, std::numeric_limits<int>::max(), "a number of rows") : 1);
        }
        want("\n", "another expert or the end of the line");
        result.close(layer);
      }
      want("end\n", "'end' after so many calls");
      if (!rest.empty()) wrong("nothing after 'end'");
      return result;
    }

    bool take(std::string_view word) {
      if (!rest.starts_with(word)) return false;
      rest.remove_prefix(word.size());
      line += word.back() == '\n';
      return true;
    }
    void want(std::string_view word, char const* name) {
      if (!take(word)) wrong(name);
    }
    int number(int least, int most, char const* name) {
      std::int64_t value = 0;
      std::size_t digits = 0;
      while (digits < rest.size() && digits < 10 && rest[digits] >= '0' && rest[digits] <= '9') {
        value = 10 * value + (rest[digits++] - '0');
      }
      if (digits == 0 || value < least || value > most) {
        wrong(std::string(name) + " from " + std::to_string(least) + " to " + std::to_string(most));
      }
      rest.remove_prefix(digits);
      return static_cast<int>(value);
    }
    [[noreturn]] void wrong(std::string const& expected) {
      std::size_t const end = rest.find('\n');
      fail("offload::trace::read, \"" + path + "\", line " + std::to_string(line), expected,
           rest.empty() ? "the end of the file" : "'" + std::string(rest.substr(0, end < 40 ? end : 40)) + "'");
    }
  };

  int layers_, experts_;
  std::vector<int> layer_of_;
  std::vector<std::size_t> begin_{0};  ///< of each call, in the two below
  std::vector<std::int32_t> expert_, rows_;
};

}  // namespace switchyard::offload
