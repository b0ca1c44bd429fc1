#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "safetensors_header.hpp"

#if __has_include(<fcntl.h>) && __has_include(<unistd.h>)
#include <fcntl.h>
#include <unistd.h>
#define CHECKPOINT_HAS_FSYNC 1
#endif

namespace checkpoint {
namespace detail {

/// Waits until the disk has a file, or which files a folder has. Whether it has; where the system has no such call, it does nothing.
inline bool wait_for_disk([[maybe_unused]] std::filesystem::path const& path) {
#if defined(CHECKPOINT_HAS_FSYNC)
  int const file = ::open(path.c_str(), O_RDONLY);
  if (file < 0) return false;
  bool const done = ::fsync(file) == 0;
  ::close(file);
  return done;
#else
  return true;
#endif
}

}  // namespace detail

/// A file that is written beside its place, and takes it when it is whole: whoever opens the place finds the old file or the new one,
/// and nothing of what was begun is left behind. What the system refuses is a std::runtime_error of one sentence.
class new_file {
 public:
  /// Unless `durable` is false, the disk has the bytes before they take the place, so that a power failure costs no file: some
  /// milliseconds for each.
  explicit new_file(std::filesystem::path place, bool durable = true)
      : place_(std::move(place)), beside_(beside(place_)), durable_(durable), out_(beside_, std::ios::binary) {
    if (!out_) refuse();
  }
  /// Where a file for this place is written.
  static std::filesystem::path beside(std::filesystem::path const& place) { return place.string() + ".part"; }
  new_file(new_file const&) = delete;
  new_file& operator=(new_file const&) = delete;
  ~new_file() {
    if (whole_) return;
    out_.close();
    std::error_code ignored;
    std::filesystem::remove(beside_, ignored);
  }

  void write(std::span<char const> bytes) {
    if (!out_.write(bytes.data(), static_cast<std::streamsize>(bytes.size()))) refuse();
  }
  void finish() {
    out_.close();
    if (!out_ || (durable_ && !detail::wait_for_disk(beside_))) refuse();
    std::error_code error;
    std::filesystem::rename(beside_, place_, error);
    if (error) throw std::runtime_error(place_.string() + ": the file cannot be written: " + error.message() + ".");
    whole_ = true;
    // Some file systems cannot wait for a folder, and the file is there anyway.
    if (durable_) detail::wait_for_disk(place_.has_parent_path() ? place_.parent_path() : std::filesystem::path("."));
  }

 private:
  [[noreturn]] void refuse() const { throw std::runtime_error(beside_.string() + ": the file cannot be written."); }

  std::filesystem::path place_, beside_;
  bool durable_;
  std::ofstream out_;
  bool whole_ = false;
};

/// A tensor that is to be written. `write` hands its bytes on, in one piece or several.
struct new_tensor {
  std::string name, type;
  shape dims;
  std::function<void(std::function<void(std::span<char const>)> const& to)> write;

  std::uint64_t bytes() const {
    std::uint64_t result = width(type);
    for (std::int64_t d : dims) result *= static_cast<std::uint64_t>(d);
    return result;
  }
};

/// Writes a safetensors file: tensors of wider elements first, so that all are aligned, and else in the order that they have here.
/// `progress` is called with the share that is written, and throws to stop. `durable` is `new_file`'s.
inline void write_safetensors(std::filesystem::path const& path, std::vector<new_tensor> tensors,
                              std::map<std::string, std::string> const& metadata,
                              std::function<void(double)> const& progress = {}, bool durable = true) {
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](new_tensor const& a, new_tensor const& b) { return width(a.type) > width(b.type); });
  nlohmann::ordered_json header;
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t end = 0;
  for (new_tensor const& t : tensors) {
    if (header.contains(t.name)) {
      throw std::runtime_error(path.string() + ": the file would have two tensors that are called '" + t.name + "'.");
    }
    std::uint64_t const begin = std::exchange(end, end + t.bytes());
    header[t.name] = {{"dtype", t.type}, {"shape", t.dims}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  new_file out(path, durable);
  std::uint64_t const size = text.size();
  char length[8];
  std::memcpy(length, &size, 8);
  out.write(length);
  out.write(text);
  std::uint64_t all = 0;
  for (new_tensor const& t : tensors) {
    std::uint64_t written = 0;
    t.write([&](std::span<char const> bytes) {
      if (progress) progress(static_cast<double>(all + written) / static_cast<double>(std::max<std::uint64_t>(end, 1)));
      out.write(bytes);
      written += bytes.size();
    });
    if (written != t.bytes())
      throw std::logic_error("write_safetensors: " + t.name + " has another size than was said");
    all += written;
  }
  out.finish();
}

}  // namespace checkpoint
