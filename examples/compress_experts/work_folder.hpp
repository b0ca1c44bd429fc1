#pragma once

#include <switchyard/compression/resmoe.hpp>
#include <switchyard/compression/state_bytes.hpp>
#include <switchyard/core/pack_masked.hpp>

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

}  // namespace detail

class work_folder {
 public:
  explicit work_folder(std::filesystem::path folder) : folder_(std::move(folder)) {}

  bool exists() const { return std::filesystem::exists(folder_ / "plan"); }
  std::string text() const { return folder_.string(); }

  /// Makes the folder, for a computation that is described so.
  void begin(std::string const& plan) const {
    std::error_code error;
    std::filesystem::create_directories(folder_, error);
    if (error) throw std::runtime_error(text() + ": the folder cannot be made: " + error.message() + ".");
    write("plan", std::span<char const>(plan));
  }
  /// What the computation was described as.
  std::string plan() const {
    std::vector<char> const bytes = read<char>("plan");
    return {bytes.begin(), bytes.end()};
  }
  void remove() const {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
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
    to << r.form << r.element << r.kept << r.rank << r.start << r.iterations << r.barycenter << r.compared << r.average
       << r.single << r.single_expert;
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
      from >> r.form >> r.element >> r.kept >> r.rank >> r.start >> r.iterations >> r.barycenter >> r.compared >>
          r.average >> r.single >> r.single_expert;
    });
  }

 private:
  static std::string state_name(int layer) { return "layer" + std::to_string(layer) + ".state"; }
  static std::string layer_name(int layer) { return "layer" + std::to_string(layer) + ".finished"; }
  static std::string part_name(int layer, int expert) {
    return "layer" + std::to_string(layer) + ".expert" + std::to_string(expert);
  }

  void write(std::string const& name, std::span<char const> bytes) const {
    checkpoint::new_file out(folder_ / name);
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
      throw std::runtime_error((folder_ / name).string() + ": the file is damaged: " + wrong.what() +
                               ". Remove the folder and begin again.");
    }
  }

  std::filesystem::path folder_;
};

}  // namespace compress_experts
