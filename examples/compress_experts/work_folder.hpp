#pragma once

#include <switchyard/compression/resmoe.hpp>
#include <switchyard/compression/state_bytes.hpp>
#include <switchyard/core/pack_masked.hpp>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../checkpoint/writer.hpp"
#include "layers.hpp"

#if __has_include(<sys/file.h>) && __has_include(<fcntl.h>) && __has_include(<unistd.h>)
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#define COMPRESS_EXPERTS_HAS_LOCKS 1
#endif

/// What stands on the disk until the output is whole, so that a run goes on where it was stopped. Every file is written beside its
/// place and has a checksum.
namespace compress_experts {

namespace compression = sy::compression;

/// One projection of a pruned residual, as `masked_change` has it; values in the bytes of the checkpoint's type.
struct masked_part {
  std::vector<std::uint32_t> masks, block_starts;
  std::vector<char> values;  ///< without padding
};

/// The residual of one expert.
struct residual_part {
  std::vector<masked_part> masked;          ///< of a pruned one, of each projection
  std::vector<char> units;                  ///< U [intermediate, rank], of one of low rank
  std::vector<std::vector<char>> features;  ///< V of each projection, [rank, hidden], of down [hidden, rank]
  std::vector<std::vector<char>> biases;    ///< [intermediate], restored, of gate and up; empty where there is none
};

/// A layer that is finished: its centre, and what came of it.
struct layer_part {
  std::vector<std::vector<char>> centre;          ///< of each projection
  std::vector<std::vector<std::int64_t>> counts;  ///< values of each projection of each expert, where it is pruned
  compression::resmoe_report report;
};

namespace detail {

inline compression::state_writer& operator<<(compression::state_writer& to, std::vector<std::vector<char>> const& all) {
  to << static_cast<std::uint64_t>(all.size());
  for (auto const& one : all) to << one;
  return to;
}
inline compression::state_reader& operator>>(compression::state_reader& from, std::vector<std::vector<char>>& all) {
  std::uint64_t count = 0;
  from >> count;
  if (count > 3) throw std::runtime_error("the bytes are others than those that were written");
  all.resize(static_cast<std::size_t>(count));
  for (auto& one : all) from >> one;
  return from;
}

/// Keeps other processes away from a file, until it goes. Where the system has no such locks, it does nothing.
class file_lock {
 public:
  file_lock() = default;
  file_lock(file_lock const&) = delete;
  file_lock& operator=(file_lock const&) = delete;
  ~file_lock() {
#if defined(COMPRESS_EXPERTS_HAS_LOCKS)
    if (file_ >= 0) ::close(file_);
#endif
  }

  /// Makes the file where it is missing. Whether no other has it.
  bool take([[maybe_unused]] std::filesystem::path const& path) {
#if defined(COMPRESS_EXPERTS_HAS_LOCKS)
    file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file_ < 0) throw std::runtime_error(path.string() + ": the file cannot be written.");
    return ::flock(file_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
#else
    return true;
#endif
  }

 private:
  int file_ = -1;
};

/// Whether the work folder's own files have such a name.
inline bool is_own_name(std::string name) {
  if (name.ends_with(".part")) name.resize(name.size() - 5);
  if (name == "plan" || name == "lock") return true;
  auto const digits = [&](std::size_t from) {
    return std::min(name.find_first_not_of("0123456789", from), name.size());
  };
  if (!name.starts_with("layer")) return false;
  std::size_t const end = digits(5);
  std::string const rest = name.substr(end);
  if (end == 5) return false;
  return rest == ".state" || rest == ".finished" ||
         (rest.starts_with(".expert") && rest.size() > 7 && digits(end + 7) == name.size());
}

}  // namespace detail

class work_folder {
 public:
  /// Makes the folder, which belongs to this object until it goes. Throws where another process works there, and where there are files of
  /// others and no plan. `durable` is `checkpoint::new_file`'s.
  work_folder(std::filesystem::path folder, bool durable) : folder_(std::move(folder)), durable_(durable) {
    std::error_code error;
    std::filesystem::create_directories(folder_, error);
    if (error) throw std::runtime_error(text() + ": the folder cannot be made: " + error.message() + ".");
    for (auto const& entry : std::filesystem::directory_iterator(folder_)) {
      if (has_plan()) break;
      std::string const name = entry.path().filename().string();
      if (detail::is_own_name(name) && entry.is_regular_file()) continue;
      throw std::runtime_error(
          text() + ": the folder has '" + name +
          "', which is not of this program, and is where its work would stand. Choose another name for "
          "the output.");
    }
    if (!lock_.take(folder_ / "lock")) {
      throw std::runtime_error(text() + ": another process works in this folder.");
    }
  }
  /// A folder in which no computation was begun goes again.
  ~work_folder() {
    if (!has_plan()) remove();
  }
  work_folder(work_folder const&) = delete;
  work_folder& operator=(work_folder const&) = delete;

  bool has_plan() const {
    std::error_code none;
    return std::filesystem::exists(folder_ / "plan", none);
  }
  std::string text() const { return folder_.string(); }

  /// Begins a computation that is described so.
  void begin(std::string const& plan) const {
    compression::state_writer to;
    to << std::vector<char>(plan.begin(), plan.end());
    write("plan", std::move(to).finish());
  }
  /// What the computation was described as.
  std::string plan() const {
    auto const text = take<std::vector<char>>("plan", [](compression::state_reader& from, auto& to) { from >> to; });
    return {text.begin(), text.end()};
  }
  /// Removes the program's own files, and the folder where it has no others.
  void remove() const {
    std::error_code ignored;
    std::vector<std::filesystem::path> own;
    for (auto const& entry : std::filesystem::directory_iterator(folder_, ignored)) {
      if (detail::is_own_name(entry.path().filename().string())) own.push_back(entry.path());
    }
    for (std::filesystem::path const& path : own) std::filesystem::remove(path, ignored);
    std::filesystem::remove(folder_, ignored);
  }

  bool has_state(int layer) const { return std::filesystem::exists(folder_ / state_name(layer)); }
  std::vector<std::byte> state(int layer) const { return read<std::byte>(state_name(layer)); }
  void save_state(int layer, std::vector<std::byte> const& bytes) const { write(state_name(layer), bytes); }

  void save(int layer, int expert, residual_part const& part) const {
    using detail::operator<<;
    compression::state_writer to;
    to << static_cast<std::uint64_t>(part.masked.size());
    for (masked_part const& m : part.masked) to << m.masks << m.block_starts << m.values;
    to << part.units << part.features << part.biases;
    write(part_name(layer, expert), std::move(to).finish());
  }
  residual_part residual(int layer, int expert) const {
    using detail::operator>>;
    return take<residual_part>(part_name(layer, expert), [](compression::state_reader& from, residual_part& part) {
      std::uint64_t count = 0;
      from >> count;
      if (count > 3) throw std::runtime_error("the bytes are others than those that were written");
      part.masked.resize(static_cast<std::size_t>(count));
      for (masked_part& m : part.masked) from >> m.masks >> m.block_starts >> m.values;
      from >> part.units >> part.features >> part.biases;
    });
  }

  bool is_finished(int layer) const { return std::filesystem::exists(folder_ / layer_name(layer)); }
  void save(int layer, layer_part const& part) const {
    using detail::operator<<;
    compression::state_writer to;
    compression::resmoe_report const& r = part.report;
    to << part.centre << static_cast<std::uint64_t>(part.counts.size());
    for (auto const& counts : part.counts) to << counts;
    to << r.form << r.element << r.kept << r.rank << r.start << r.iterations << r.compared << r.single_expert;
    for (compression::centre_error const& e : {r.barycenter, r.average, r.single}) to << e.centre << e.residual;
    write(layer_name(layer), std::move(to).finish());
    std::error_code ignored;
    std::filesystem::remove(folder_ / state_name(layer), ignored);
  }
  layer_part finished(int layer, compression::expert_sizes const& sizes) const {
    using detail::operator>>;
    return take<layer_part>(layer_name(layer), [&](compression::state_reader& from, layer_part& part) {
      std::uint64_t count = 0;
      from >> part.centre >> count;
      if (count > 3) throw std::runtime_error("the bytes are others than those that were written");
      part.counts.resize(static_cast<std::size_t>(count));
      for (auto& counts : part.counts) from >> counts;
      compression::resmoe_report& r = part.report;
      r.sizes = sizes;
      from >> r.form >> r.element >> r.kept >> r.rank >> r.start >> r.iterations >> r.compared >> r.single_expert;
      for (compression::centre_error* e : {&r.barycenter, &r.average, &r.single}) from >> e->centre >> e->residual;
      std::size_t const projections = sizes.gated ? 3 : 2;
      bool const pruned = r.form == compression::residual_form::pruned;
      if (part.centre.size() != projections || part.counts.size() != (pruned ? projections : 0)) {
        throw std::runtime_error("it has another number of projections");
      }
    });
  }

 private:
  static std::string state_name(int layer) { return "layer" + std::to_string(layer) + ".state"; }
  static std::string layer_name(int layer) { return "layer" + std::to_string(layer) + ".finished"; }
  static std::string part_name(int layer, int expert) {
    return "layer" + std::to_string(layer) + ".expert" + std::to_string(expert);
  }

  void write(std::string const& name, std::span<char const> bytes) const {
    checkpoint::new_file out(folder_ / name, durable_);
    out.write(bytes);
    out.finish();
  }
  void write(std::string const& name, std::vector<std::byte> const& bytes) const {
    write(name, std::span(reinterpret_cast<char const*>(bytes.data()), bytes.size()));
  }

  template <class Byte>
  std::vector<Byte> read(std::string const& name) const {
    std::string const path = (folder_ / name).string();
    std::ifstream in(path, std::ios::binary | std::ios::ate);
    if (!in) throw std::runtime_error(path + ": the file cannot be read.");
    std::vector<Byte> bytes(static_cast<std::size_t>(in.tellg()));
    in.seekg(0);
    if (!bytes.empty() && !in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()))) {
      throw std::runtime_error(path + ": the file cannot be read.");
    }
    return bytes;
  }

  template <class Part, class Take>
  Part take(std::string const& name, Take const& take_parts) const {
    std::vector<std::byte> const bytes = read<std::byte>(name);
    try {
      compression::state_reader from(bytes);
      Part part;
      take_parts(from, part);
      from.finish();
      return part;
    } catch (std::exception const& wrong) {
      throw std::runtime_error((folder_ / name).string() +
                               ": the file is damaged or of another program: " + wrong.what() +
                               ". Remove the folder and begin again, or choose another name for the output.");
    }
  }

  std::filesystem::path folder_;
  bool durable_;
  detail::file_lock lock_;
};

}  // namespace compress_experts
