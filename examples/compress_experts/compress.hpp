#pragma once

#include <switchyard/compression/resmoe.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "../checkpoint/reader.hpp"
#include "../checkpoint/writer.hpp"
#include "layers.hpp"
#include "options.hpp"
#include "work_folder.hpp"

namespace compress_experts {

/// The key of the output's metadata that says what was compressed, and how.
inline constexpr char const* metadata_key = "switchyard_resmoe";

/// What a run is told while it works. `layer` counts those that are compressed.
struct step {
  int layer = 0, layers = 0;
  std::string name = {};  ///< of the layer; empty while the output is written
  compression::progress of_layer = {};
};
/// Returns false to stop.
using step_watcher = std::function<bool(step const&)>;

/// The run was told to stop, and has put down what it has.
struct stopped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct layer_report {
  expert_layer layer = {};
  compression::resmoe_report report = {};
  std::int64_t bytes_before = 0, centre_bytes = 0, residual_bytes = 0;
};

namespace detail {

/// Reads an expert from a checkpoint into the order of units.
class expert_source {
 public:
  expert_source(checkpoint::reader& file, expert_layer const& layer) : file_(file), layer_(layer) {}

  void operator()(int expert, sy::view<float> rows) {
    std::vector<float> const up = floats(layer_.name(expert, layer_.up)),
                             down = floats(layer_.name(expert, layer_.down)),
                             gate =
                                 layer_.sizes.gated ? floats(layer_.name(expert, layer_.gate)) : std::vector<float>{},
                             up_bias = bias(expert, layer_.up), gate_bias = bias(expert, layer_.gate);
    auto const pointer = [](std::vector<float> const& v) { return v.empty() ? nullptr : v.data(); };
    compression::gather_units<float>(
        layer_.sizes, {pointer(gate), pointer(up), pointer(down), pointer(gate_bias), pointer(up_bias)}, rows);
  }

 private:
  std::vector<float> floats(std::string const& name) {
    std::vector<char> const bytes = file_.read(name);
    std::vector<float> values(bytes.size() / checkpoint::width(layer_.type));
    widen(layer_.type, bytes.data(), values.size(), values.data());
    return values;
  }
  std::vector<float> bias(int expert, std::string const& projection) {
    if (projection.empty() || !layer_.sizes.biased) return {};
    std::string const name = layer_.name(expert, projection, "bias");
    return file_.has(name) ? floats(name) : std::vector<float>{};
  }

  checkpoint::reader& file_;
  expert_layer const& layer_;
};

/// Where the columns of a projection begin in a unit's row.
inline int column_of(expert_layer const& layer, std::string const& projection) {
  return projection == layer.down ? layer.sizes.down_column()
         : projection == layer.up ? layer.sizes.up_column()
                                  : layer.sizes.gate_column();
}

/// The matrix of a projection, as a checkpoint has it, of rows of units.
inline std::vector<char> projection_bytes(expert_layer const& layer, std::string const& projection,
                                          sy::view<float const> rows) {
  std::int64_t const hidden = layer.sizes.hidden, units = layer.sizes.intermediate;
  std::vector<float> values(static_cast<std::size_t>(hidden * units));
  compression::expert_arrays<float> to;
  (projection == layer.down ? to.down : projection == layer.up ? to.up : to.gate) = values.data();
  compression::scatter_units(layer.sizes, rows, to);
  return narrow(layer.type, values.data(), values.size());
}

template <class Element>
masked_part pack(expert_layer const& layer, std::string const& projection, compression::expert_residual const& r) {
  bool const is_down = projection == layer.down;
  std::int64_t const columns = layer.sizes.columns(), begin = column_of(layer, projection);
  checkpoint::shape const dims = layer.dims(projection);
  sy::masked_arrays<Element> packed(static_cast<int>(dims[0]), static_cast<int>(dims[1]));
  packed.append(r.change.data + begin, r.kept + begin, is_down ? 1 : columns, is_down ? columns : 1);
  auto const* const values = reinterpret_cast<char const*>(packed.values.data());
  return {std::move(packed.masks),
          std::move(packed.block_starts),
          {values, values + packed.value_count() * static_cast<std::int64_t>(sizeof(Element))}};
}

/// What is put down of an expert.
inline residual_part part_of(expert_layer const& layer, sy::view<float const> centre,
                             compression::expert_residual const& r, checkpoint::reader const& file) {
  residual_part part;
  compression::expert_sizes const& sizes = layer.sizes;
  for (std::string const& p : layer.projections()) {
    if (r.kept != nullptr) {
      part.masked.push_back(layer.type == "F32"    ? pack<float>(layer, p, r)
                            : layer.type == "BF16" ? pack<sy::bfloat16>(layer, p, r)
                                                   : pack<sy::half>(layer, p, r));
      continue;
    }
    // As layers take it in: of down the transpose.
    std::int64_t const rank = r.right.rows, hidden = sizes.hidden;
    std::vector<float> features(static_cast<std::size_t>(rank * hidden));
    for (std::int64_t k = 0; k < rank; ++k) {
      for (std::int64_t f = 0; f < hidden; ++f) {
        features[static_cast<std::size_t>(p == layer.down ? f * rank + k : k * hidden + f)] =
            r.right.row(k)[column_of(layer, p) + f];
      }
    }
    part.features.push_back(narrow(layer.type, features.data(), features.size()));
  }
  if (r.kept == nullptr) {
    part.units = narrow(layer.type, r.left.data, static_cast<std::size_t>(r.left.rows * r.left.columns));
  }
  // One number for each unit: restored, they take as much as a residual would.
  for (std::string const& p : layer.projections()) {
    bool const has = p != layer.down && sizes.biased && file.has(layer.name(0, p, "bias"));
    std::vector<float> values;
    std::int64_t const column = sizes.bias_column() + (p == layer.up && sizes.gated ? 1 : 0);
    for (std::int64_t u = 0; has && u < sizes.intermediate; ++u) {
      double change = 0.0;
      if (r.kept != nullptr) {
        change = r.change.row(u)[column];
      } else {
        for (std::int64_t k = 0; k < r.right.rows; ++k) {
          change += static_cast<double>(r.left.row(u)[k]) * r.right.row(k)[column];
        }
      }
      values.push_back(static_cast<float>(centre.row(u)[column] + change));
    }
    part.biases.push_back(narrow(layer.type, values.data(), values.size()));
  }
  return part;
}

inline compression::stored_as element_of(std::string const& type) {
  return type == "F32"    ? compression::stored_as::float32
         : type == "BF16" ? compression::stored_as::bfloat16
                          : compression::stored_as::float16;
}

inline compression::resmoe_options options_of(options const& wanted, expert_layer const& layer,
                                              compression::truncated_svd const& svd) {
  compression::resmoe_options result;
  result.form = wanted.low_rank ? compression::residual_form::low_rank : compression::residual_form::pruned;
  result.keep = wanted.keep;
  result.rank = wanted.rank;
  result.element = element_of(layer.type);
  if (wanted.low_rank) result.svd = svd;
  result.centre.starts =
      wanted.start < 0 ? compression::every_start(layer.sizes.experts) : std::vector<int>{wanted.start};
  result.centre.tolerance = wanted.tolerance;
  result.centre.most_iterations = wanted.iterations;
  result.compare = wanted.compare;
  return result;
}

/// Compresses one layer, from where its folder says that it was stopped, and puts down the result.
inline void compress_layer(checkpoint::reader& file, expert_layer const& layer, int number, options const& wanted,
                           compression::truncated_svd const& svd, work_folder const& folder,
                           compression::watcher const& watch) {
  compression::resmoe job(layer.sizes, options_of(wanted, layer, svd), {.threads = wanted.threads});
  if (folder.has_state(number)) job.restore(folder.state(number));
  auto saved = std::chrono::steady_clock::now();
  auto const write = [&](compression::expert_residual const& r) {
    folder.save(number, r.expert, part_of(layer, job.centre(), r, file));
  };
  auto const watch_and_save = [&](compression::progress const& p) {
    if (!watch(p)) return false;
    // A machine that stops without a word costs some minutes.
    if (std::chrono::steady_clock::now() - saved > std::chrono::minutes(10)) {
      folder.save_state(number, job.save());
      saved = std::chrono::steady_clock::now();
    }
    return true;
  };
  if (!job.run(expert_source(file, layer), write, watch_and_save)) {
    folder.save_state(number, job.save());
    throw stopped("stopped in " + layer.prefix + ". The same command with --resume goes on.");
  }
  layer_part part;
  for (std::string const& p : layer.projections()) part.centre.push_back(projection_bytes(layer, p, job.centre()));
  part.report = job.report();
  if (part.report.form == compression::residual_form::pruned) {
    part.counts.resize(layer.projections().size());
    for (int e = 0; e < layer.sizes.experts; ++e) {
      residual_part const of = folder.residual(number, e);
      for (std::size_t p = 0; p < of.masked.size(); ++p) {
        part.counts[p].push_back(static_cast<std::int64_t>(of.masked[p].values.size() / checkpoint::width(layer.type)));
      }
    }
  }
  folder.save(number, part);
}

/// What was put down of the layer that was asked for last.
class layer_cache {
 public:
  explicit layer_cache(work_folder const& folder) : folder_(folder) {}

  std::vector<residual_part> const& residuals(int layer, compression::expert_sizes const& sizes) {
    load(layer, sizes);
    return residuals_;
  }
  std::vector<std::vector<char>> const& centre(int layer, compression::expert_sizes const& sizes) {
    load(layer, sizes);
    return centre_;
  }

 private:
  void load(int layer, compression::expert_sizes const& sizes) {
    if (layer == layer_) return;
    residuals_.clear();
    centre_ = folder_.finished(layer, sizes).centre;
    for (int e = 0; e < sizes.experts; ++e) residuals_.push_back(folder_.residual(layer, e));
    layer_ = layer;
  }

  work_folder const& folder_;
  int layer_ = -1;
  std::vector<std::vector<char>> centre_;
  std::vector<residual_part> residuals_;
};

template <class T>
std::span<char const> bytes_of(std::vector<T> const& values) {
  return {reinterpret_cast<char const*>(values.data()), values.size() * sizeof(T)};
}

/// The tensors that a compressed layer has in the output. `cache` outlives them.
inline std::vector<checkpoint::new_tensor> tensors_of(expert_layer const& layer, int number, layer_part const& part,
                                                      checkpoint::reader const& file, layer_cache& cache) {
  std::vector<checkpoint::new_tensor> result;
  std::vector<std::string> const projections = layer.projections();
  std::int64_t const experts = layer.sizes.experts, rank = part.report.rank;
  bool const pruned = part.report.form == compression::residual_form::pruned;
  auto const of_experts = [&cache, number, sizes = layer.sizes](auto take) {
    return [&cache, number, sizes, take](std::function<void(std::span<char const>)> const& to) {
      for (residual_part const& r : cache.residuals(number, sizes)) to(take(r));
    };
  };
  for (std::size_t i = 0; i < projections.size(); ++i) {
    std::string const& p = projections[i];
    checkpoint::shape const dims = layer.dims(p);
    result.push_back({layer.centre_name(p), layer.type, dims, [&cache, number, sizes = layer.sizes, i](auto const& to) {
                        to(cache.centre(number, sizes).at(i));
                      }});
    if (pruned) {
      std::vector<std::int64_t> first_values{0};
      for (std::int64_t count : part.counts[i]) first_values.push_back(first_values.back() + count);
      std::int64_t const padded = first_values.back() + sy::masked_change<float>::padding;
      result.push_back({layer.residual_name(p + ".first_values"), "I64", {experts + 1}, [first_values](auto const& to) {
                          to(bytes_of(first_values));
                        }});
      result.push_back({layer.residual_name(p + ".masks"),
                        "U32",
                        {experts, dims[0], sy::divide_up(dims[1], 32)},
                        of_experts([i](residual_part const& r) { return bytes_of(r.masked.at(i).masks); })});
      result.push_back({layer.residual_name(p + ".block_starts"),
                        "U32",
                        {experts, dims[0], sy::divide_up(dims[1], sy::masked_change<float>::block_columns)},
                        of_experts([i](residual_part const& r) { return bytes_of(r.masked.at(i).block_starts); })});
      auto const values =
          of_experts([i](residual_part const& r) { return std::span<char const>(r.masked.at(i).values); });
      std::vector<char> const padding(sy::masked_change<float>::padding * checkpoint::width(layer.type), 0);
      result.push_back({layer.residual_name(p + ".values"), layer.type, {padded}, [values, padding](auto const& to) {
                          values(to);
                          to(padding);
                        }});
    } else {
      checkpoint::shape const of_features = p == layer.down ? checkpoint::shape{experts, layer.sizes.hidden, rank}
                                                            : checkpoint::shape{experts, rank, layer.sizes.hidden};
      result.push_back({layer.residual_name(p + ".features"), layer.type, of_features,
                        of_experts([i](residual_part const& r) { return std::span<char const>(r.features.at(i)); })});
    }
    if (p == layer.down || !layer.sizes.biased) continue;
    for (int e = 0; e < experts; ++e) {
      std::string const name = layer.name(e, p, "bias");
      if (!file.has(name)) continue;
      result.push_back(
          {name, layer.type, {layer.sizes.intermediate}, [&cache, number, sizes = layer.sizes, e, i](auto const& to) {
             to(cache.residuals(number, sizes).at(static_cast<std::size_t>(e)).biases.at(i));
           }});
    }
  }
  if (!pruned) {
    result.push_back({layer.residual_name("units"),
                      layer.type,
                      {experts, layer.sizes.intermediate, rank},
                      of_experts([](residual_part const& r) { return std::span<char const>(r.units); })});
  }
  return result;
}

/// A tensor that is copied as it is.
inline checkpoint::new_tensor copy_of(checkpoint::reader& file, std::string const& name) {
  checkpoint::tensor const& t = file.at(name);
  return {name, t.type, t.dims, [&file, name](std::function<void(std::span<char const>)> const& to) {
            constexpr std::uint64_t piece = 8 << 20;
            std::uint64_t const size = file.at(name).end - file.at(name).begin;
            std::vector<char> bytes(std::min(piece, size));
            for (std::uint64_t at = 0; at < size; at += piece) {
              auto const some = std::span(bytes).first(std::min(piece, size - at));
              file.read(name, at, some);
              to(some);
            }
          }};
}

inline nlohmann::json json_of(expert_layer const& layer, compression::resmoe_report const& report) {
  nlohmann::json result = {{"experts", layer.prefix},
                           {"word", layer.word},
                           {"gate", layer.gate},
                           {"up", layer.up},
                           {"down", layer.down},
                           {"type", layer.type},
                           {"count", layer.sizes.experts},
                           {"hidden", layer.sizes.hidden},
                           {"intermediate", layer.sizes.intermediate},
                           {"start", report.start},
                           {"iterations", report.iterations}};
  if (report.form == compression::residual_form::pruned) {
    result["kept"] = report.kept;
  } else {
    result["rank"] = report.rank;
  }
  return result;
}

}  // namespace detail

/// Does what the command line says, but for `--restore`. Returns what came of each layer. Throws std::exception of one sentence, and
/// `stopped` when `watch` returned false.
inline std::vector<layer_report> compress(options const& wanted, compression::truncated_svd const& svd,
                                          step_watcher const& watch) {
  checkpoint::reader file(wanted.input);
  file.refuse_as_output(wanted.output);
  if (file.metadata().contains(metadata_key)) file.refuse("has been compressed already: --restore makes it plain");
  std::vector<expert_layer> const layers = named_layers(file, wanted.layer_items);
  if (wanted.low_rank && !svd) {
    throw std::runtime_error(
        "--form svd: this program was built without LAPACK. Install it (liblapack-dev or "
        "libopenblas-dev), and configure and build again in an empty folder.");
  }
  for (expert_layer const& layer : layers) compression::resmoe(layer.sizes, detail::options_of(wanted, layer, svd));

  nlohmann::json const plan = {{"version", 1},
                               {"checkpoint", file.fingerprint()},
                               {"layers", wanted.layers},
                               {"keep", wanted.keep},
                               {"svd", wanted.low_rank},
                               {"rank", wanted.rank},
                               {"start", wanted.start},
                               {"tolerance", wanted.tolerance},
                               {"iterations", wanted.iterations},
                               {"comparison", wanted.compare}};
  work_folder const folder(wanted.output + ".work", wanted.durable);
  if (!folder.has_plan()) {
    folder.begin(plan.dump());
  } else if (std::string const found = folder.plan(); !wanted.resume) {
    throw std::runtime_error(folder.text() +
                             ": the folder has a run that was stopped. Add --resume to go on, or remove the "
                             "folder.");
  } else if (found != plan.dump()) {
    throw std::runtime_error(folder.text() +
                             ": the folder has a run with another checkpoint or other flags. Repeat its "
                             "flags, or remove the folder.");
  }

  int const count = static_cast<int>(layers.size());
  for (int i = 0; i < count; ++i) {
    if (folder.is_finished(i)) continue;
    detail::compress_layer(file, layers[i], i, wanted, svd, folder, [&](compression::progress const& p) {
      return watch({.layer = i, .layers = count, .name = layers[i].prefix, .of_layer = p});
    });
  }

  detail::layer_cache cache(folder);
  std::vector<checkpoint::new_tensor> tensors;
  std::vector<layer_report> reports;
  std::map<std::string, bool> replaced;
  nlohmann::json about = {{"version", 1}, {"layers", nlohmann::json::array()}};
  for (int i = 0; i < count; ++i) {
    expert_layer const& layer = layers[i];
    layer_part const part = folder.finished(i, layer.sizes);
    layer_report report{.layer = layer, .report = part.report};
    for (int e = 0; e < layer.sizes.experts; ++e) {
      for (std::string const& p : layer.projections()) {
        for (char const* what : {"weight", "bias"}) {
          std::string const name = layer.name(e, p, what);
          if (!file.has(name) || (p == layer.down && std::string(what) == "bias")) continue;
          replaced[name] = true;
          report.bytes_before += static_cast<std::int64_t>(file.at(name).end - file.at(name).begin);
        }
      }
    }
    for (checkpoint::new_tensor& t : detail::tensors_of(layer, i, part, file, cache)) {
      bool const of_centre = t.name.starts_with(layer.prefix + ".centre.");
      (of_centre ? report.centre_bytes : report.residual_bytes) += static_cast<std::int64_t>(t.bytes());
      tensors.push_back(std::move(t));
    }
    about["layers"].push_back(detail::json_of(layer, part.report));
    reports.push_back(std::move(report));
  }
  for (std::string const& name : file.names()) {
    if (!replaced.contains(name)) tensors.push_back(detail::copy_of(file, name));
  }
  std::map<std::string, std::string> metadata = file.metadata();
  metadata[metadata_key] = about.dump();
  auto const progress = [&](double done) {
    if (!watch({.layer = count, .layers = count, .of_layer = {.done = done, .seconds_left = -1.0}})) {
      throw stopped("stopped while the output was written. The same command with --resume writes it.");
    }
  };
  checkpoint::write_safetensors(wanted.output, std::move(tensors), metadata, progress, wanted.durable);
  folder.remove();
  return reports;
}

}  // namespace compress_experts
