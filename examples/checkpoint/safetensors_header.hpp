#pragma once

#include <algorithm>
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

namespace checkpoint {

using shape = std::vector<std::int64_t>;

/// Where a tensor is in a file.
struct tensor {
  std::string type;  ///< as the format calls it: F32, BF16, ...
  shape dims;
  std::uint64_t begin, end;  ///< bytes after the header
};

inline std::string text(shape const& dims) {
  std::string result = "[";
  for (std::int64_t d : dims) result += (result.size() > 1 ? ", " : "") + std::to_string(d);
  return result + "]";
}

/// Bytes of one element, 0 for a type that the format does not have.
inline std::uint64_t width(std::string_view type) {
  constexpr std::pair<std::string_view, std::uint64_t> widths[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
      {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8}};
  for (auto const& [name, bytes] : widths) {
    if (name == type) return bytes;
  }
  return 0;
}

/// What stands before the tensors of a safetensors file: 8 bytes of header length, a JSON header.
///
/// Everything that the header claims is checked before it is used. What does not hold is a std::runtime_error of one sentence that
/// begins with the file's name.
/// Source: the format's description, https://github.com/huggingface/safetensors#format.
class safetensors_header {
 public:
  /// Bytes from the file's begin to the first tensor; `first` has its first bytes, 8 or all.
  static std::uint64_t size(std::string const& name, std::span<char const> first, std::uint64_t file_size) {
    if (file_size < 8 || first.size() < 8) {
      refuse(name, "has " + std::to_string(file_size) + " bytes, too few for a safetensors file");
    }
    std::uint64_t size;
    std::memcpy(&size, first.data(), 8);
    if (size > file_size - 8) {
      refuse(name, "is truncated, damaged or no safetensors file: it announces a header of " + std::to_string(size) +
                       " bytes, and " + std::to_string(file_size - 8) + " follow");
    }
    return 8 + size;
  }

  /// Takes the first bytes of a file, at least `size` of them; `name` is what errors call it.
  safetensors_header(std::string name, std::span<char const> first, std::uint64_t file_size) : name_(std::move(name)) {
    data_begin_ = size(name_, first, file_size);
    read(first);
    check_offsets(file_size - data_begin_);
  }

  std::string const& name() const { return name_; }
  /// Bytes from the file's begin to the first tensor.
  std::uint64_t data_begin() const { return data_begin_; }
  std::map<std::string, tensor> const& tensors() const { return tensors_; }
  std::map<std::string, std::string> const& metadata() const { return metadata_; }

  tensor const& at(std::string const& tensor_name) const {
    auto const found = tensors_.find(tensor_name);
    if (found == tensors_.end()) refuse("has no tensor '" + tensor_name + "'");
    return found->second;
  }

  /// Throws: this file is not what was expected, because it `why`.
  [[noreturn]] void refuse(std::string const& why) const { refuse(name_, why); }

 private:
  [[noreturn]] static void refuse(std::string const& name, std::string const& why) {
    throw std::runtime_error(name + ": the file " + why + ".");
  }

  void read(std::span<char const> first) {
    auto const header = nlohmann::json::parse(first.data() + 8, first.data() + data_begin_, nullptr, false);
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
  void check_offsets(std::uint64_t data_size) const {
    std::vector<std::pair<tensor, std::string>> in_order;
    for (auto const& [name, t] : tensors_) in_order.emplace_back(t, name);
    std::sort(in_order.begin(), in_order.end(), [](auto const& a, auto const& b) {
      return std::pair(a.first.begin, a.first.end) < std::pair(b.first.begin, b.first.end);
    });
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
  std::uint64_t data_begin_ = 0;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, tensor> tensors_;
};

}  // namespace checkpoint
