#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "safetensors_header.hpp"
#include "writer.hpp"

namespace checkpoint {

/// A safetensors file on the disk, which is read tensor by tensor.
class tensor_file {
 public:
  /// Reads and checks the header.
  explicit tensor_file(std::filesystem::path const& path) : path_(path), in_(path, std::ios::binary | std::ios::ate) {
    if (!in_) throw std::runtime_error(path.string() + ": the file cannot be read.");
    size_ = static_cast<std::uint64_t>(in_.tellg());
    std::vector<char> first(8 < size_ ? 8 : size_);
    read_at(path.string(), 0, first);
    std::uint64_t const header_size = safetensors_header::size(path.string(), first, size_);
    first.resize(header_size);
    read_at(path.string(), 0, first);
    header_ = std::make_unique<safetensors_header>(path.string(), first, size_);
  }

  std::filesystem::path const& path() const { return path_; }
  safetensors_header const& header() const { return *header_; }
  std::uint64_t size() const { return size_; }

  /// Reads bytes of a tensor, from `offset` within it on.
  void read(tensor const& t, std::uint64_t offset, std::span<char> to) {
    if (offset > t.end - t.begin || to.size() > t.end - t.begin - offset) {
      throw std::logic_error("tensor_file::read: bytes behind the tensor");
    }
    read_at(header_->name(), header_->data_begin() + t.begin + offset, to);
  }

 private:
  void read_at(std::string const& name, std::uint64_t offset, std::span<char> to) {
    in_.clear();
    in_.seekg(static_cast<std::streamoff>(offset));
    if (!to.empty() && !in_.read(to.data(), static_cast<std::streamsize>(to.size()))) {
      throw std::runtime_error(name + ": the file cannot be read at byte " + std::to_string(offset) + ".");
    }
  }

  std::filesystem::path path_;
  std::ifstream in_;
  std::uint64_t size_ = 0;
  std::unique_ptr<safetensors_header> header_;
};

/// A checkpoint: one safetensors file, or an index of several (`*.index.json`), or a folder with either. No file is read as a whole.
/// What does not hold is a std::runtime_error of one sentence.
class reader {
 public:
  explicit reader(std::filesystem::path path) {
    if (std::filesystem::is_directory(path)) {
      auto const index = path / "model.safetensors.index.json";
      path = std::filesystem::exists(index) ? index : path / "model.safetensors";
    }
    if (path.extension() != ".json") {
      add_file(path);
      for (auto const& [name, t] : files_[0].header().tensors()) file_of_[name] = 0;
      return;
    }
    index_ = path;
    std::ifstream in(path, std::ios::binary);
    if (!in) throw std::runtime_error(path.string() + ": the file cannot be read.");
    auto const index = nlohmann::json::parse(in, nullptr, false);
    auto const refuse = [&](std::string const& why) { throw std::runtime_error(path.string() + ": " + why + "."); };
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object() ||
        index["weight_map"].empty()) {
      refuse("the file is damaged or no index of a checkpoint: it has no 'weight_map'");
    }
    std::map<std::string, std::size_t> numbers;
    for (auto const& [name, file] : index["weight_map"].items()) {
      std::string const part = file.is_string() ? file.get<std::string>() : std::string();
      if (part.empty() || part.find('/') != part.npos || part.find('\\') != part.npos) {
        refuse("the index has no name of a file in its folder for tensor '" + name + "'");
      }
      auto const [at, is_new] = numbers.emplace(part, files_.size());
      if (is_new) add_file(path.parent_path() / part);
      if (!files_[at->second].header().tensors().contains(name)) {
        files_[at->second].header().refuse("has no tensor '" + name + "', which the index says it has");
      }
      file_of_[name] = at->second;
    }
    for (tensor_file const& file : files_) {
      for (auto const& [name, t] : file.header().tensors()) {
        if (!file_of_.contains(name)) file.header().refuse("has a tensor '" + name + "' that the index does not know");
      }
    }
  }

  /// Throws where what is written to `output`, or beside it at first, would take the place of one of the checkpoint's own files.
  void refuse_as_output(std::filesystem::path const& output) const {
    std::vector<std::filesystem::path> own;
    if (!index_.empty()) own.push_back(index_);
    for (tensor_file const& file : files_) own.push_back(file.path());
    for (std::filesystem::path const& place : {output, new_file::beside(output)}) {
      for (std::filesystem::path const& one : own) {
        std::error_code none;
        if (!std::filesystem::equivalent(place, one, none)) continue;
        throw std::runtime_error(output.string() + ": the output would be written over " + one.string() +
                                 ", which is a file of the input. Choose another name.");
      }
    }
    if (std::filesystem::is_directory(output)) {
      throw std::runtime_error(output.string() + ": the output is one file, and this is a folder.");
    }
  }

  /// The names of all tensors, in the order of the alphabet.
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (auto const& [name, file] : file_of_) result.push_back(name);
    return result;
  }
  bool has(std::string const& name) const { return file_of_.contains(name); }
  tensor const& at(std::string const& name) const { return file_with(name).header().at(name); }
  /// Of the first file.
  std::map<std::string, std::string> const& metadata() const { return files_[0].header().metadata(); }

  /// Reads bytes of a tensor, from `offset` within it on.
  void read(std::string const& name, std::uint64_t offset, std::span<char> to) {
    tensor_file& file = file_with(name);
    file.read(file.header().at(name), offset, to);
  }
  std::vector<char> read(std::string const& name) {
    tensor const& t = at(name);
    std::vector<char> bytes(t.end - t.begin);
    read(name, 0, bytes);
    return bytes;
  }

  /// Throws: the file that has this tensor is not what was expected, because it `why`.
  [[noreturn]] void refuse(std::string const& tensor_name, std::string const& why) const {
    file_with(tensor_name).header().refuse(why);
  }
  /// Throws: the checkpoint is not what was expected, because it `why`.
  [[noreturn]] void refuse(std::string const& why) const { files_[0].header().refuse(why); }

  /// What tells this checkpoint from another, without reading all of it: the files' names, sizes and headers, and how every tensor begins.
  std::string fingerprint() {
    std::uint64_t hash = 0xcbf29ce484222325u;
    auto const add = [&](std::span<char const> bytes) {
      for (char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
      hash = (hash ^ 0xffu) * 0x100000001b3u;
    };
    for (tensor_file& file : files_) {
      add(std::filesystem::path(file.header().name()).filename().string());
      add(std::to_string(file.size()));
      for (auto const& [name, t] : file.header().tensors()) {
        add(name + t.type + text(t.dims) + std::to_string(t.begin));
        std::vector<char> first(std::min<std::uint64_t>(t.end - t.begin, 256));
        file.read(t, 0, first);
        add(first);
      }
    }
    return std::to_string(hash);
  }

 private:
  void add_file(std::filesystem::path const& path) { files_.emplace_back(path); }
  tensor_file const& file_with(std::string const& name) const {
    auto const found = file_of_.find(name);
    if (found == file_of_.end()) refuse("has no tensor '" + name + "'");
    return files_[found->second];
  }
  tensor_file& file_with(std::string const& name) {
    return const_cast<tensor_file&>(std::as_const(*this).file_with(name));
  }

  std::filesystem::path index_;  ///< empty where there is none
  std::vector<tensor_file> files_;
  std::map<std::string, std::size_t> file_of_;
};

}  // namespace checkpoint
