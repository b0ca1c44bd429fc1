#pragma once

#include <switchyard/offload/safetensors_header.hpp>

#include <cstdint>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace checkpoint {

using shape = std::vector<std::int64_t>;
using tensor = switchyard::offload::stored_tensor;

inline std::string text(shape const& dims) { return switchyard::offload::text_of_dims(dims); }

/// Bytes of one element, 0 for a type that the format does not have.
inline std::uint64_t width(std::string_view type) { return switchyard::offload::bytes_of_type(type); }

/// The header of a safetensors file with a name: what does not hold is a std::runtime_error of one sentence that begins with it.
class safetensors_header {
  using reader = switchyard::offload::safetensors_header;

 public:
  /// Bytes from the file's begin to the first tensor; `first` has its first bytes, 8 or all.
  static std::uint64_t size(std::string const& name, std::span<char const> first, std::uint64_t file_size) {
    std::uint64_t bytes;
    if (std::string const wrong = reader::size(first, file_size, bytes); !wrong.empty()) refuse(name, wrong);
    return bytes;
  }

  /// Takes the first bytes of a file, at least `size` of them; `name` is what errors call it.
  safetensors_header(std::string name, std::span<char const> first, std::uint64_t file_size) : name_(std::move(name)) {
    if (std::string const wrong = header_.parse(first, file_size); !wrong.empty()) refuse(wrong);
  }

  std::string const& name() const { return name_; }
  /// Bytes from the file's begin to the first tensor.
  std::uint64_t data_begin() const { return header_.data_begin(); }
  std::map<std::string, tensor> const& tensors() const { return header_.tensors(); }
  std::map<std::string, std::string> const& metadata() const { return header_.metadata(); }

  tensor const& at(std::string const& tensor_name) const {
    auto const found = tensors().find(tensor_name);
    if (found == tensors().end()) refuse("has no tensor '" + tensor_name + "'");
    return found->second;
  }

  /// Throws: this file is not what was expected, because it `why`.
  [[noreturn]] void refuse(std::string const& why) const { refuse(name_, why); }

 private:
  [[noreturn]] static void refuse(std::string const& name, std::string const& why) {
    throw std::runtime_error(name + ": the file " + why + ".");
  }

  std::string name_;
  reader header_;
};

}  // namespace checkpoint
