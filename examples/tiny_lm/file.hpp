#pragma once

#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

namespace tiny_lm {

/// A whole file. Throws std::runtime_error with its name and the reason when it cannot be read.
inline std::vector<char> read_file(std::string const& path) {
  std::error_code error;
  std::uintmax_t const size = std::filesystem::file_size(path, error);
  if (error) throw std::runtime_error(path + ": cannot be read: " + error.message() + ".");
  std::ifstream in(path, std::ios::binary);
  std::vector<char> bytes(size);
  if (!in.read(bytes.data(), static_cast<std::streamsize>(size))) {
    throw std::runtime_error(path + ": cannot be read: " + std::generic_category().message(errno) + ".");
  }
  return bytes;
}

}  // namespace tiny_lm
