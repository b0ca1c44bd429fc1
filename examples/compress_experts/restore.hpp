#pragma once

#include <switchyard/compression/low_rank.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/masked_change.hpp>
#include <switchyard/core/pack_masked.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "../checkpoint/reader.hpp"
#include "../checkpoint/writer.hpp"
#include "compress.hpp"
#include "layers.hpp"
#include "options.hpp"

namespace compress_experts {
namespace detail {

/// A layer of a compressed file, as its metadata has it.
struct compressed_layer {
  expert_layer layer;
  std::int64_t rank = -1;  ///< -1: it is pruned
};

/// A whole number of the metadata, from 0 on; -1 for anything else.
inline int whole_number_of(nlohmann::json const& value) {
  constexpr std::uint64_t most = std::numeric_limits<int>::max() / 4;
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > most) return -1;
  return value.get<int>();
}

inline std::vector<compressed_layer> compressed_layers(checkpoint::reader const& file) {
  auto const found = file.metadata().find(metadata_key);
  if (found == file.metadata().end()) {
    file.refuse(std::string("has not been compressed by this program: there is no '") + metadata_key +
                "' in its metadata");
  }
  auto const about = nlohmann::json::parse(found->second, nullptr, false);
  std::string const damaged = std::string("has a damaged '") + metadata_key + "' in its metadata";
  std::vector<compressed_layer> result;
  try {
    if (about.at("version") != 1) file.refuse("was compressed by a newer version of this program");
    for (nlohmann::json const& of : about.at("layers")) {
      compressed_layer c;
      expert_layer& layer = c.layer;
      layer = {.prefix = of.at("experts"),
               .word = of.at("word"),
               .gate = of.at("gate"),
               .up = of.at("up"),
               .down = of.at("down"),
               .type = of.at("type")};
      layer.sizes = {.experts = whole_number_of(of.at("count")),
                     .hidden = whole_number_of(of.at("hidden")),
                     .intermediate = whole_number_of(of.at("intermediate"))};
      layer.sizes.gated = !layer.gate.empty();
      for (int size : {layer.sizes.experts, layer.sizes.hidden, layer.sizes.intermediate}) {
        if (size < 1) file.refuse(damaged);
      }
      if (layer.type != "F32" && layer.type != "BF16" && layer.type != "F16") file.refuse(damaged);
      if (of.contains("rank")) c.rank = whole_number_of(of.at("rank"));
      if ((of.contains("rank") && c.rank < 0) || layer.sizes.experts > 999'999) file.refuse(damaged);
      result.push_back(std::move(c));
    }
  } catch (nlohmann::json::exception const&) {
    file.refuse(damaged);
  }
  return result;
}

/// Restores one projection of all experts of a layer, one after the other.
class projection_restorer {
 public:
  projection_restorer(checkpoint::reader& file, compressed_layer const& of, std::string projection, int threads)
      : file_(file), of_(of), projection_(std::move(projection)), dims_(of.layer.dims(projection_)), threads_(threads) {
    expert_layer const& layer = of_.layer;
    std::int64_t const experts = layer.sizes.experts, rows = dims_[0], columns = dims_[1];
    check(layer.centre_name(projection_), layer.type, dims_);
    if (of_.rank >= 0) {
      checkpoint::shape const features = projection_ == layer.down
                                             ? checkpoint::shape{experts, layer.sizes.hidden, of_.rank}
                                             : checkpoint::shape{experts, of_.rank, layer.sizes.hidden};
      check(layer.residual_name("units"), layer.type, {experts, layer.sizes.intermediate, of_.rank});
      check(layer.residual_name(projection_ + ".features"), layer.type, features);
    } else {
      check(part("masks"), "U32", {experts, rows, sy::divide_up(columns, 32)});
      check(part("block_starts"), "U32", {experts, rows, sy::divide_up(columns, block_columns)});
      check(part("first_values"), "I64", {experts + 1});
      if (!file_.has(part("values"))) file_.refuse("has no tensor '" + part("values") + "'");
      checkpoint::tensor const& values = file_.at(part("values"));
      if (values.type != layer.type || values.dims.size() != 1 || values.dims[0] < padding) {
        file_.refuse(part("values"), "has tensor '" + part("values") + "' of type " + values.type + " with shape " +
                                         checkpoint::text(values.dims) + ", expected " + layer.type +
                                         " and one dimension of at least " + std::to_string(padding));
      }
    }
  }

  /// The matrix of an expert, in the bytes of its type.
  std::vector<char> operator()(int expert) {
    if (centre_.empty()) centre_ = floats(file_.read(of_.layer.centre_name(projection_)));
    std::vector<float> result = centre_;
    if (of_.rank >= 0) {
      add_factors(expert, result);
    } else {
      add_masked(expert, result);
    }
    if (expert + 1 == of_.layer.sizes.experts)
      centre_ = {};  // experts come in their order, and other layers want the memory
    return narrow(of_.layer.type, result.data(), result.size());
  }

 private:
  static constexpr int block_columns = sy::masked_change<float>::block_columns,
                       padding = sy::masked_change<float>::padding;

  std::string part(char const* name) const { return of_.layer.residual_name(projection_ + "." + name); }

  void check(std::string const& name, std::string const& type, checkpoint::shape const& dims) const {
    if (!file_.has(name)) file_.refuse("has no tensor '" + name + "'");
    checkpoint::tensor const& t = file_.at(name);
    if (t.type == type && t.dims == dims) return;
    file_.refuse(name, "has tensor '" + name + "' of type " + t.type + " with shape " + checkpoint::text(t.dims) +
                           ", expected " + type + " and " + checkpoint::text(dims));
  }
  std::vector<float> floats(std::vector<char> const& bytes) const {
    std::vector<float> values(bytes.size() / checkpoint::width(of_.layer.type));
    widen(of_.layer.type, bytes.data(), values.size(), values.data());
    return values;
  }
  /// Part `number` of `count` equal ones of a tensor.
  template <class T = char>
  std::vector<T> slice(std::string const& name, std::int64_t number, std::int64_t count) {
    std::uint64_t const bytes = (file_.at(name).end - file_.at(name).begin) / static_cast<std::uint64_t>(count);
    std::vector<T> result(bytes / sizeof(T));
    file_.read(name, static_cast<std::uint64_t>(number) * bytes, {reinterpret_cast<char*>(result.data()), bytes});
    return result;
  }

  void add_masked(int expert, std::vector<float>& to) {
    int const experts = of_.layer.sizes.experts, rows = static_cast<int>(dims_[0]),
              columns = static_cast<int>(dims_[1]);
    if (first_values_.empty()) first_values_ = slice<std::int64_t>(part("first_values"), 0, 1);
    std::int64_t const all = file_.at(part("values")).dims[0] - padding;
    std::int64_t const begin = first_values_[static_cast<std::size_t>(expert)],
                       end = first_values_[static_cast<std::size_t>(expert) + 1];
    std::string const damaged =
        "is damaged: the parts of '" + of_.layer.residual_name(projection_) + "' do not fit each other";
    if (begin < 0 || begin > end || end > all || first_values_.front() != 0 || first_values_.back() != all) {
      file_.refuse(part("first_values"), damaged);
    }
    auto const masks = slice<std::uint32_t>(part("masks"), expert, experts);
    auto const block_starts = slice<std::uint32_t>(part("block_starts"), expert, experts);
    auto const width = checkpoint::width(of_.layer.type);
    std::vector<char> bytes(static_cast<std::size_t>(end - begin) * width);
    file_.read(part("values"), static_cast<std::uint64_t>(begin) * width, bytes);
    std::vector<float> const values = floats(bytes);
    std::int64_t const first_values[] = {0, end - begin};
    sy::masked_change<float> const change{masks.data(), values.data(), first_values, block_starts.data(),
                                          rows,         columns,       end - begin};
    try {
      sy::check_masked(change, 1);
    } catch (sy::error const&) {
      file_.refuse(part("masks"), damaged);
    }
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < columns; column += 32) {
        change.add(0, row, column, std::min(32, columns - column), to.data() + std::int64_t{row} * columns + column);
      }
    }
  }

  void add_factors(int expert, std::vector<float>& to) {
    int const experts = of_.layer.sizes.experts;
    std::int64_t const units = of_.layer.sizes.intermediate, hidden = of_.layer.sizes.hidden;
    if (of_.rank == 0) return;
    std::vector<float> const u = floats(slice(of_.layer.residual_name("units"), expert, experts));
    std::vector<float> v = floats(slice(of_.layer.residual_name(projection_ + ".features"), expert, experts));
    bool const is_down = projection_ == of_.layer.down;
    if (is_down) {
      std::vector<float> const transposed = v;
      for (std::int64_t f = 0; f < hidden; ++f) {
        for (std::int64_t k = 0; k < of_.rank; ++k) v[k * hidden + f] = transposed[f * of_.rank + k];
      }
    }
    compression::matrix rows(units, hidden);
    compression::add_low_rank({nullptr, units, hidden}, {u.data(), units, of_.rank}, {v.data(), of_.rank, hidden}, rows,
                              {.threads = threads_});
    for (std::int64_t unit = 0; unit < units; ++unit) {
      for (std::int64_t f = 0; f < hidden; ++f) to[is_down ? f * units + unit : unit * hidden + f] += rows.row(unit)[f];
    }
  }

  checkpoint::reader& file_;
  compressed_layer const& of_;
  std::string projection_;
  checkpoint::shape dims_;
  int threads_;
  std::vector<float> centre_;
  std::vector<std::int64_t> first_values_;
};

}  // namespace detail

/// Writes plain experts, with their old names, shapes and types, from a file that `compress` has written. Their units stand in the
/// centre's order. Throws std::exception of one sentence, and `stopped` when `watch` returned false.
inline void restore(options const& wanted, step_watcher const& watch) {
  checkpoint::reader file(wanted.input);
  file.refuse_as_output(wanted.output);
  std::vector<detail::compressed_layer> const layers = detail::compressed_layers(file);
  std::vector<checkpoint::new_tensor> tensors;
  for (detail::compressed_layer const& c : layers) {
    for (std::string const& p : c.layer.projections()) {
      auto const restorer = std::make_shared<detail::projection_restorer>(file, c, p, wanted.threads);
      for (int e = 0; e < c.layer.sizes.experts; ++e) {
        tensors.push_back(
            {c.layer.name(e, p), c.layer.type, c.layer.dims(p), [restorer, e](auto const& to) { to((*restorer)(e)); }});
      }
    }
  }
  for (std::string const& name : file.names()) {
    bool part_of_one = false;
    for (detail::compressed_layer const& c : layers) {
      part_of_one = part_of_one || name.starts_with(c.layer.prefix + ".centre.") ||
                    name.starts_with(c.layer.prefix + ".residual.");
    }
    if (!part_of_one) tensors.push_back(detail::copy_of(file, name));
  }
  std::map<std::string, std::string> metadata = file.metadata();
  metadata.erase(metadata_key);
  auto const progress = [&](double done) {
    if (!watch({.layer = 0, .layers = 0, .of_layer = {.done = done, .seconds_left = -1.0}})) {
      throw stopped("stopped. Nothing is written; the same command begins again.");
    }
  };
  checkpoint::write_safetensors(wanted.output, std::move(tensors), metadata, progress, wanted.durable);
}

}  // namespace compress_experts
