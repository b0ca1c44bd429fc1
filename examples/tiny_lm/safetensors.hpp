#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "file.hpp"
#include "sha256.hpp"

namespace tiny_lm {

/// A safetensors file in memory: 8 bytes of header length, a JSON header, the tensors' little-endian bytes.
///
/// Everything that the header claims is checked before it is used. What does not hold is a std::runtime_error
/// of one sentence that begins with the file's name.
/// Source: the format's description, https://github.com/huggingface/safetensors#format.
class safetensors {
 public:
  using shape = std::vector<std::int64_t>;

  /// Reads a file from the disk.
  static safetensors load(std::string const& path) { return {path, read_file(path)}; }

  /// Takes the bytes of a file; `name` is what errors call it.
  safetensors(std::string name, std::vector<char> bytes) : name_(std::move(name)), bytes_(std::move(bytes)) {
    read_header(header_size());
    check_offsets();
  }

  /// An entry of the file's `__metadata__`.
  std::string const& metadata(std::string const& key) const {
    auto const found = metadata_.find(key);
    if (found == metadata_.end()) refuse("has no '" + key + "' in its metadata");
    return found->second;
  }

  /// Refuses data, which is all that follows the header, with another SHA-256 than the metadata's `data_sha256`.
  void check_data() const {
    std::string const& expected = metadata("data_sha256");
    auto const bytes = std::span(bytes_).subspan(data_begin_);
    std::string const got = sha256({reinterpret_cast<unsigned char const*>(bytes.data()), bytes.size()});
    if (got != expected) {
      refuse("is damaged and has to be fetched again: expected data with the SHA-256 " + expected + ", got " + got);
    }
  }

  bool has(std::string const& tensor_name) const { return tensors_.contains(tensor_name); }

  /// The elements of a tensor as float. F32 and BF16 are what weights are shipped in; anything else is refused, and
  /// so are another shape and values that are not finite.
  std::vector<float> floats(std::string const& tensor_name, shape const& expected) const {
    auto const found = tensors_.find(tensor_name);
    if (found == tensors_.end()) refuse("has no tensor '" + tensor_name + "'");
    tensor const& t = found->second;
    if (t.dims != expected) {
      refuse("has tensor '" + tensor_name + "' with shape " + text(t.dims) + ", expected " + text(expected));
    }
    if (t.type != "F32" && t.type != "BF16") {
      refuse("has tensor '" + tensor_name + "' of type " + t.type + ", expected F32 or BF16");
    }
    static_assert(std::endian::native == std::endian::little, "tensors are copied as they stand");
    std::vector<float> values(elements(t));
    char const* const from = bytes_.data() + data_begin_ + t.begin;
    if (t.type == "F32") {
      std::memcpy(values.data(), from, t.end - t.begin);
    } else {
      for (std::size_t i = 0; i < values.size(); ++i) {
        std::uint16_t upper_half;
        std::memcpy(&upper_half, from + 2 * i, 2);
        values[i] = std::bit_cast<float>(static_cast<std::uint32_t>(upper_half) << 16);
      }
    }
    for (float v : values) {
      if (!std::isfinite(v)) refuse("has tensor '" + tensor_name + "' with a value that is not finite");
    }
    return values;
  }

  /// How many tensors there are.
  std::size_t size() const { return tensors_.size(); }

  /// Throws: this file is not what was expected, because it `why`.
  [[noreturn]] void refuse(std::string const& why) const {
    throw std::runtime_error(name_ + ": the file " + why + ".");
  }

 private:
  struct tensor {
    std::string type;
    shape dims;
    std::uint64_t begin, end;  ///< bytes after the header
  };

  static std::string text(shape const& dims) {
    std::string result = "[";
    for (std::int64_t d : dims) result += (result.size() > 1 ? ", " : "") + std::to_string(d);
    return result + "]";
  }

  /// Bytes of one element, 0 for a type that the format does not have.
  static std::uint64_t width(std::string_view type) {
    constexpr std::pair<std::string_view, std::uint64_t> widths[] = {
        {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
        {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8}};
    for (auto const& [name, bytes] : widths) {
      if (name == type) return bytes;
    }
    return 0;
  }

  static std::size_t elements(tensor const& t) { return (t.end - t.begin) / width(t.type); }

  std::uint64_t header_size() const {
    if (bytes_.size() < 8) refuse("has " + std::to_string(bytes_.size()) + " bytes, too few for a safetensors file");
    std::uint64_t size;
    std::memcpy(&size, bytes_.data(), 8);
    if (size > bytes_.size() - 8) {
      refuse("is truncated, damaged or no safetensors file: it announces a header of " + std::to_string(size) +
             " bytes, and " + std::to_string(bytes_.size() - 8) + " follow");
    }
    return size;
  }

  void read_header(std::uint64_t size) {
    data_begin_ = 8 + size;
    auto const header = nlohmann::json::parse(bytes_.data() + 8, bytes_.data() + data_begin_, nullptr, false);
    if (!header.is_object()) refuse("is damaged or no safetensors file: its header is not a JSON object");
    for (auto const& [name, entry] : header.items()) {
      try {
        if (name == "__metadata__") {
          metadata_ = entry.get<std::map<std::string, std::string>>();
        } else {
          tensors_.emplace(name, read_entry(name, entry));
        }
      } catch (nlohmann::json::exception const&) {
        refuse("has a damaged header: its entry '" + name + "' is not of the expected form");
      }
    }
  }

  tensor read_entry(std::string const& name, nlohmann::json const& entry) const {
    // A negative number or a fraction would be converted silently.
    for (char const* list : {"shape", "data_offsets"}) {
      for (auto const& number : entry.at(list)) {
        if (!number.is_number_unsigned()) refuse("has a damaged header: a number of tensor '" + name + "' is no size");
      }
    }
    tensor t{entry.at("dtype"), entry.at("shape"), entry.at("data_offsets").at(0), entry.at("data_offsets").at(1)};
    std::uint64_t bytes = width(t.type);
    if (bytes == 0) refuse("has tensor '" + name + "' of unknown type '" + t.type + "'");
    for (std::int64_t d : t.dims) {
      auto const extent = static_cast<std::uint64_t>(d);
      if (extent != 0 && bytes > std::numeric_limits<std::uint64_t>::max() / extent) {
        refuse("has tensor '" + name + "' with shape " + text(t.dims) + ", more than memory can hold");
      }
      bytes *= extent;
    }
    if (t.begin > t.end || t.end - t.begin != bytes) {
      refuse("has tensor '" + name + "' at bytes " + std::to_string(t.begin) + " to " + std::to_string(t.end) +
             ", but its shape " + text(t.dims) + " of " + t.type + " takes " + std::to_string(bytes));
    }
    return t;
  }

  /// The format wants the tensors back to back: no overlap, no gap, nothing after the last.
  void check_offsets() const {
    std::vector<std::pair<tensor, std::string>> in_order;
    for (auto const& [name, t] : tensors_) in_order.emplace_back(t, name);
    std::sort(in_order.begin(), in_order.end(), [](auto const& a, auto const& b) {
      return std::pair(a.first.begin, a.first.end) < std::pair(b.first.begin, b.first.end);
    });
    std::uint64_t const data_size = bytes_.size() - data_begin_;
    std::uint64_t end = 0;
    for (auto const& [t, name] : in_order) {
      if (t.end > data_size) {
        refuse("is truncated or damaged: tensor '" + name + "' ends at byte " + std::to_string(t.end) + " of " +
               std::to_string(data_size));
      }
      if (t.begin != end) {
        refuse("is damaged: tensor '" + name + "' begins at byte " + std::to_string(t.begin) +
               ", and the one before it ends at " + std::to_string(end));
      }
      end = t.end;
    }
    if (end != data_size) {
      refuse("is damaged: its last tensor ends at byte " + std::to_string(end) + " of " + std::to_string(data_size));
    }
  }

  std::string name_;
  std::vector<char> bytes_;
  std::uint64_t data_begin_ = 0;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, tensor> tensors_;
};

}  // namespace tiny_lm
