#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../checkpoint/safetensors_header.hpp"
#include "file.hpp"
#include "sha256.hpp"

namespace tiny_lm {

/// A safetensors file in memory, whose header is checked: see `safetensors_header`.
class safetensors {
 public:
  using shape = checkpoint::shape;

  /// Reads a file from the disk.
  static safetensors load(std::string const& path) { return {path, read_file(path)}; }

  /// Takes the bytes of a file; `name` is what errors call it.
  safetensors(std::string name, std::vector<char> bytes)
      : bytes_(std::move(bytes)), header_(std::move(name), bytes_, bytes_.size()) {}

  /// An entry of the file's `__metadata__`.
  std::string const& metadata(std::string const& key) const {
    auto const found = header_.metadata().find(key);
    if (found == header_.metadata().end()) refuse("has no '" + key + "' in its metadata");
    return found->second;
  }

  /// Refuses data, which is all that follows the header, with another SHA-256 than the metadata's `data_sha256`.
  void check_data() const {
    std::string const& expected = metadata("data_sha256");
    auto const bytes = std::span(bytes_).subspan(header_.data_begin());
    std::string const got = sha256({reinterpret_cast<unsigned char const*>(bytes.data()), bytes.size()});
    if (got != expected) {
      refuse("is damaged and has to be fetched again: expected data with the SHA-256 " + expected + ", got " + got);
    }
  }

  bool has(std::string const& tensor_name) const { return header_.tensors().contains(tensor_name); }

  /// The elements of a tensor as float. F32 and BF16 are what weights are shipped in; anything else is refused, and
  /// so are another shape and values that are not finite.
  std::vector<float> floats(std::string const& tensor_name, shape const& expected) const {
    checkpoint::tensor const& t = header_.at(tensor_name);
    if (t.dims != expected) {
      refuse("has tensor '" + tensor_name + "' with shape " + checkpoint::text(t.dims) + ", expected " +
             checkpoint::text(expected));
    }
    if (t.type != "F32" && t.type != "BF16") {
      refuse("has tensor '" + tensor_name + "' of type " + t.type + ", expected F32 or BF16");
    }
    static_assert(std::endian::native == std::endian::little, "tensors are copied as they stand");
    std::vector<float> values((t.end - t.begin) / checkpoint::width(t.type));
    char const* const from = bytes_.data() + header_.data_begin() + t.begin;
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
  std::size_t size() const { return header_.tensors().size(); }

  /// Throws: this file is not what was expected, because it `why`.
  [[noreturn]] void refuse(std::string const& why) const { header_.refuse(why); }

 private:
  std::vector<char> bytes_;
  checkpoint::safetensors_header header_;
};

}  // namespace tiny_lm
