#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <nlohmann/json.hpp>

/// Reader of safetensors files: 8 bytes of header length, a JSON header, raw little-endian row-major data.
namespace safetensors {

static_assert(std::endian::native == std::endian::little, "the reader copies little-endian data as it stands");

struct tensor {
  std::string type;  ///< "F32", "I32", "U8", ...
  std::vector<std::int64_t> shape;
  std::vector<char> bytes;

  std::int64_t size() const {
    std::int64_t n = 1;
    for (std::int64_t extent : shape) n *= extent;
    return n;
  }
};

struct file {
  std::map<std::string, std::string> metadata;
  std::map<std::string, tensor> tensors;

  bool has(std::string const& name) const { return tensors.contains(name); }

  tensor const& at(std::string const& name) const {
    auto const found = tensors.find(name);
    if (found == tensors.end()) throw std::runtime_error("safetensors: there is no tensor '" + name + "'");
    return found->second;
  }

  /// The elements of a tensor as stored: float for F32, std::int32_t for I32, std::uint8_t for U8.
  template <class T>
  std::vector<T> values(std::string const& name) const {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, std::int32_t> || std::is_same_v<T, std::uint8_t>);
    std::string_view const wanted = std::is_same_v<T, float> ? "F32" : std::is_same_v<T, std::int32_t> ? "I32" : "U8";
    tensor const& t = at(name);
    if (t.type != wanted)
      throw std::runtime_error("safetensors: '" + name + "' is " + t.type + ", not " + std::string(wanted));
    std::vector<T> out(t.bytes.size() / sizeof(T));
    if (!out.empty()) std::memcpy(out.data(), t.bytes.data(), t.bytes.size());
    return out;
  }
};

/// Reads a whole file. Throws std::runtime_error with the file's name when it is damaged or truncated.
inline file read(std::filesystem::path const& path) {
  auto const refuse = [&](std::string const& why) { throw std::runtime_error(path.string() + ": " + why); };
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) refuse("cannot be opened");
  std::uint64_t const total = std::uint64_t(in.tellg());
  if (total < 8) refuse("is too short for a safetensors file");
  std::vector<char> bytes(total);
  in.seekg(0);
  if (!in.read(bytes.data(), std::streamsize(total))) refuse("cannot be read");

  std::uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), 8);
  if (header_size > total - 8) refuse("ends within its header");
  auto const header = nlohmann::json::parse(bytes.data() + 8, bytes.data() + 8 + header_size, nullptr, false);
  if (!header.is_object()) refuse("has a header that is not a JSON object");

  file out;
  std::uint64_t const data_size = total - 8 - header_size;
  char const* const data = bytes.data() + 8 + header_size;
  try {
    for (auto const& [name, entry] : header.items()) {
      if (name == "__metadata__") {
        out.metadata = entry.get<std::map<std::string, std::string>>();
        continue;
      }
      tensor t;
      t.type = entry.at("dtype").get<std::string>();
      t.shape = entry.at("shape").get<std::vector<std::int64_t>>();
      std::uint64_t const begin = entry.at("data_offsets").at(0).get<std::uint64_t>();
      std::uint64_t const end = entry.at("data_offsets").at(1).get<std::uint64_t>();
      std::uint64_t const width = t.type == "U8" || t.type == "I8" || t.type == "BOOL"     ? 1
                                  : t.type == "F16" || t.type == "BF16" || t.type == "I16" ? 2
                                  : t.type == "F64" || t.type == "I64"                     ? 8
                                                                                           : 4;
      if (begin > end || end > data_size) refuse("ends within tensor '" + name + "'");
      if (end - begin != std::uint64_t(t.size()) * width)
        refuse("has tensor '" + name + "' with a size that is not that of its shape");
      t.bytes.assign(data + begin, data + end);
      out.tensors.emplace(name, std::move(t));
    }
  } catch (nlohmann::json::exception const& wrong) {
    refuse(std::string("has a damaged header: ") + wrong.what());
  }
  return out;
}

}  // namespace safetensors
