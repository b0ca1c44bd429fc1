#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// This header alone and those that include it need nlohmann-json.
#include <nlohmann/json.hpp>

namespace switchyard::offload {

/// Where a tensor is in a safetensors file.
struct stored_tensor {
  std::string type;  ///< as the format calls it: F32, BF16, ...
  std::vector<std::int64_t> dims;
  std::uint64_t begin, end;  ///< bytes after the header
};

inline std::string text_of_dims(std::vector<std::int64_t> const& dims) {
  std::string result = "[";
  for (std::int64_t d : dims) result += (result.size() > 1 ? ", " : "") + std::to_string(d);
  return result + "]";
}

/// Bytes of one element, 0 for a type that the format does not have.
inline std::uint64_t bytes_of_type(std::string_view type) {
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
/// Everything that the header claims is checked before it is used. Functions return nothing, or why this is no header, as the end of a
/// sentence that begins with the file: `has tensor 'x' of unknown type 'F7'`.
/// Source: the format's description, https://github.com/huggingface/safetensors#format.
class safetensors_header {
 public:
  /// Bytes from the file's begin to the first tensor; `first` has its first bytes, 8 or all.
  static std::string size(std::span<char const> first, std::uint64_t file_size, std::uint64_t& bytes) {
    bytes = 0;
    if (file_size < 8 || first.size() < 8) {
      return "has " + std::to_string(file_size) + " bytes, too few for a safetensors file";
    }
    std::uint64_t size;
    std::memcpy(&size, first.data(), 8);
    if (size > file_size - 8) {
      return "is truncated, damaged or no safetensors file: it announces a header of " + std::to_string(size) +
             " bytes, and " + std::to_string(file_size - 8) + " follow";
    }
    constexpr std::uint64_t most = 100'000'000;  // what the format's own readers take
    if (size > most) {
      return "is damaged or no safetensors file: it announces a header of " + std::to_string(size) + " bytes";
    }
    bytes = 8 + size;
    return {};
  }

  /// Takes the first bytes of a file, `size` of them at least.
  std::string parse(std::span<char const> first, std::uint64_t file_size) {
    std::string wrong = size(first, file_size, data_begin_);
    if (wrong.empty()) wrong = read(first);
    if (wrong.empty()) wrong = check_offsets(file_size - data_begin_);
    return wrong;
  }

  /// Bytes from the file's begin to the first tensor.
  std::uint64_t data_begin() const { return data_begin_; }
  std::map<std::string, stored_tensor> const& tensors() const { return tensors_; }
  std::map<std::string, std::string> const& metadata() const { return metadata_; }

 private:
  std::string read(std::span<char const> first) {
    auto const header = nlohmann::json::parse(first.data() + 8, first.data() + data_begin_, nullptr, false);
    if (!header.is_object()) return "is damaged or no safetensors file: its header is not a JSON object";
    for (auto const& [name, entry] : header.items()) {
      std::string wrong = name == "__metadata__" ? read_metadata(entry) : read_tensor(name, entry);
      if (wrong == misshapen) return "has a damaged header: its entry '" + name + "' is not of the expected form";
      if (!wrong.empty()) return wrong;
    }
    return {};
  }

  std::string read_metadata(nlohmann::json const& entry) {
    if (!entry.is_object()) return misshapen;
    for (auto const& [key, value] : entry.items()) {
      if (!value.is_string()) return misshapen;
      metadata_[key] = value.get<std::string>();
    }
    return {};
  }

  std::string read_tensor(std::string const& name, nlohmann::json const& entry) {
    if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string()) return misshapen;
    for (char const* list : {"shape", "data_offsets"}) {
      if (!entry.contains(list) || !entry[list].is_array()) return misshapen;
      // A negative number or a fraction would be converted silently.
      for (auto const& number : entry[list]) {
        if (!number.is_number_unsigned()) {
          return "has a damaged header: a number of tensor '" + name + "' is no size";
        }
      }
    }
    if (entry["data_offsets"].size() < 2) return misshapen;
    stored_tensor t{entry["dtype"].get<std::string>(), entry["shape"].get<std::vector<std::int64_t>>(),
                    entry["data_offsets"][0].get<std::uint64_t>(), entry["data_offsets"][1].get<std::uint64_t>()};
    std::uint64_t bytes = bytes_of_type(t.type);
    if (bytes == 0) return "has tensor '" + name + "' of unknown type '" + t.type + "'";
    for (std::int64_t d : t.dims) {
      auto const extent = static_cast<std::uint64_t>(d);
      if (d < 0 || (extent != 0 && bytes > std::numeric_limits<std::uint64_t>::max() / extent)) {
        return "has tensor '" + name + "' with shape " + text_of_dims(t.dims) + ", more than memory can hold";
      }
      bytes *= extent;
    }
    if (t.begin > t.end || t.end - t.begin != bytes) {
      return "has tensor '" + name + "' at bytes " + std::to_string(t.begin) + " to " + std::to_string(t.end) +
             ", but its shape " + text_of_dims(t.dims) + " of " + t.type + " takes " + std::to_string(bytes);
    }
    tensors_.emplace(name, std::move(t));
    return {};
  }

  /// The format wants the tensors back to back: no overlap, no gap, nothing after the last.
  std::string check_offsets(std::uint64_t data_size) const {
    std::vector<std::pair<stored_tensor const*, std::string const*>> in_order;
    for (auto const& [name, t] : tensors_) in_order.emplace_back(&t, &name);
    std::sort(in_order.begin(), in_order.end(), [](auto const& a, auto const& b) {
      return std::pair(a.first->begin, a.first->end) < std::pair(b.first->begin, b.first->end);
    });
    std::uint64_t end = 0;
    for (auto const& [t, name] : in_order) {
      if (t->end > data_size) {
        return "is truncated or damaged: tensor '" + *name + "' ends at byte " + std::to_string(t->end) + " of " +
               std::to_string(data_size);
      }
      if (t->begin != end) {
        return "is damaged: tensor '" + *name + "' begins at byte " + std::to_string(t->begin) +
               ", and the one before it ends at " + std::to_string(end);
      }
      end = t->end;
    }
    if (end != data_size) {
      return "is damaged: its last tensor ends at byte " + std::to_string(end) + " of " + std::to_string(data_size);
    }
    return {};
  }

  static constexpr char const* misshapen = "?";

  std::uint64_t data_begin_ = 0;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, stored_tensor> tensors_;
};

}  // namespace switchyard::offload
