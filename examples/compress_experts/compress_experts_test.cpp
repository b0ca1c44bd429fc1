// That what is compressed computes the same when all is kept, that a run goes on where it was stopped, and that files which are damaged
// or something else are refused with one sentence.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <switchyard/core/operand.hpp>
#include <switchyard/core/pack_masked.hpp>
#include <switchyard/expert/residual.hpp>

#include "../checkpoint/reader.hpp"
#include "../checkpoint/writer.hpp"
#include "compress.hpp"
#include "layers.hpp"
#include "options.hpp"
#include "report.hpp"
#include "restore.hpp"

#if defined(COMPRESS_EXPERTS_WITH_LAPACK)
#include <switchyard/compression/lapack_svd.hpp>
#endif

namespace {

using namespace compress_experts;
namespace fs = std::filesystem;

int failures = 0;

void check(bool holds, std::string const& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

/// What `body` throws; empty when it does not.
std::string said(std::function<void()> const& body) {
  try {
    body();
  } catch (std::exception const& wrong) {
    return wrong.what();
  }
  return {};
}
void check_refusal(std::string const& what, std::string_view sentence, std::function<void()> const& body) {
  std::string const got = said(body);
  std::printf("%-34s %s\n", what.c_str(), got.c_str());
  check(got.find(sentence) != got.npos && got.find('\n') == got.npos,
        what + ": expected '" + std::string(sentence) + "'");
}

std::vector<char> bytes_of_file(fs::path const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}
void write_file(fs::path const& path, std::vector<char> const& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::mt19937 engine(1);
float random_number() {
  float sum = 0.0f;
  for (int i = 0; i < 4; ++i) sum += static_cast<float>(engine()) / 4294967296.0f - 0.5f;
  return sum;
}

/// A checkpoint of two layers with routed experts, and more.
struct style {
  char const* name;
  char const *experts, *word, *gate, *up, *down;
  char const* type;
  bool biased = false;
};
constexpr style styles[] = {{"mixtral", "block_sparse_moe.experts", "", "w1", "w3", "w2", "BF16"},
                            {"olmoe", "mlp.experts", "", "gate_proj", "up_proj", "down_proj", "F16"},
                            {"plain", "mlp.experts", "", "gate_proj", "up_proj", "down_proj", "F32"},
                            {"switch", "mlp.experts", "expert_", "", "wi", "wo", "F32"},
                            {"nllb", "ffn.experts", "expert_", "", "fc1", "fc2", "F32", true},
                            {"gated and biased", "mlp.experts", "", "gate_proj", "up_proj", "down_proj", "F32", true}};
constexpr int experts = 3, hidden = 6, intermediate = 40, layer_count = 2;

using content = std::map<std::string, std::pair<checkpoint::shape, std::vector<float>>>;

content make_content(style const& s) {
  content result;
  auto const add = [&](std::string const& name, checkpoint::shape const& dims) {
    std::int64_t size = 1;
    for (std::int64_t d : dims) size *= d;
    std::vector<float> values;
    for (std::int64_t i = 0; i < size; ++i) values.push_back(random_number());
    std::vector<char> const bytes = narrow(s.type, values.data(), values.size());
    widen(s.type, bytes.data(), values.size(), values.data());
    result[name] = {dims, values};
  };
  for (int l = 0; l < layer_count; ++l) {
    std::string const layer = "model.layers." + std::to_string(l + 1) + ".";
    for (int e = 0; e < experts; ++e) {
      std::string const expert = layer + s.experts + "." + s.word + std::to_string(e) + ".";
      if (*s.gate != '\0') add(expert + s.gate + ".weight", {intermediate, hidden});
      add(expert + s.up + ".weight", {intermediate, hidden});
      add(expert + s.down + ".weight", {hidden, intermediate});
      if (s.biased) add(expert + s.up + ".bias", {intermediate});
      if (s.biased && *s.gate != '\0') add(expert + s.gate + ".bias", {intermediate});
      if (s.biased) add(expert + s.down + ".bias", {hidden});
    }
    add(layer + "router.weight", {experts, hidden});
  }
  add("model.embed_tokens.weight", {11, hidden});
  return result;
}

void write_content(fs::path const& path, content const& all, std::string const& type) {
  std::vector<checkpoint::new_tensor> tensors;
  for (auto const& [name, of] : all) {
    tensors.push_back({name, type, of.first,
                       [values = of.second, type](auto const& to) { to(narrow(type, values.data(), values.size())); }});
  }
  checkpoint::write_safetensors(path, std::move(tensors), {{"format", "pt"}}, {}, false);
}

content read_content(fs::path const& path) {
  checkpoint::reader file(path);
  content result;
  for (std::string const& name : file.names()) {
    checkpoint::tensor const& t = file.at(name);
    std::vector<char> const bytes = file.read(name);
    std::vector<float> values(bytes.size() / checkpoint::width(t.type));
    widen(t.type, bytes.data(), values.size(), values.data());
    result[name] = {t.dims, values};
  }
  return result;
}

/// What an expert computes for one input, in double: down(relu(up x + b) [* gate x]).
std::vector<double> outputs(style const& s, content const& all, std::string const& expert,
                            std::vector<double> const& x) {
  auto const feature = [&](std::string const& projection, int row) {
    std::vector<float> const& w = all.at(expert + projection + ".weight").second;
    double sum = s.biased ? all.at(expert + projection + ".bias").second[static_cast<std::size_t>(row)] : 0.0;
    for (int i = 0; i < hidden; ++i)
      sum += w[static_cast<std::size_t>(row * hidden + i)] * x[static_cast<std::size_t>(i)];
    return sum;
  };
  std::vector<double> result(hidden, 0.0);
  for (int u = 0; u < intermediate; ++u) {
    double inner = std::max(feature(s.up, u), 0.0);
    if (*s.gate != '\0') inner *= feature(s.gate, u);
    for (int f = 0; f < hidden; ++f) {
      result[static_cast<std::size_t>(f)] +=
          all.at(expert + s.down + ".weight").second[static_cast<std::size_t>(f * intermediate + u)] * inner;
    }
  }
  return result;
}

bool always(step const&) { return true; }

options options_with(fs::path const& input, fs::path const& output, std::vector<std::string> flags = {}) {
  std::vector<std::string> all{input.string(), output.string(), "--threads", "1"};
  all.insert(all.end(), flags.begin(), flags.end());
  options result = parse(all);
  result.durable = false;  // thousands of files
  return result;
}

compression::truncated_svd svd() {
#if defined(COMPRESS_EXPERTS_WITH_LAPACK)
  return compression::lapack_svd;
#else
  return {};
#endif
}

/// That experts of `got` compute what those of `expected` do, up to `tolerance` of the largest output.
void check_function(style const& s, content const& expected, content const& got, double tolerance) {
  check(expected.size() == got.size(), std::string(s.name) + ": as many tensors");
  for (auto const& [name, of] : expected) {
    check(got.contains(name) && got.at(name).first == of.first, name + ": is there, with its shape");
    bool const copied = name.find(".experts.") == name.npos || name.ends_with(std::string(s.down) + ".bias");
    if (copied && got.contains(name)) check(got.at(name).second == of.second, name + ": is copied");
  }
  for (int l = 0; l < layer_count; ++l) {
    for (int e = 0; e < experts; ++e) {
      std::string const expert =
          "model.layers." + std::to_string(l + 1) + "." + s.experts + "." + s.word + std::to_string(e) + ".";
      std::vector<double> x;
      for (int i = 0; i < hidden; ++i) x.push_back(random_number());
      std::vector<double> const a = outputs(s, expected, expert, x), b = outputs(s, got, expert, x);
      double apart = 0.0, largest = 0.0;
      for (std::size_t i = 0; i < a.size(); ++i) {
        apart = std::max(apart, std::abs(a[i] - b[i]));
        largest = std::max(largest, std::abs(a[i]));
      }
      check(apart <= tolerance * largest, expert + ": computes the same, apart by " + std::to_string(apart / largest));
    }
  }
}

void all_is_kept(fs::path const& folder) {
  for (style const& s : styles) {
    content const original = make_content(s);
    fs::path const input = folder / "model.safetensors", output = folder / "out.safetensors",
                   plain = folder / "plain.safetensors";
    write_content(input, original, s.type);
    double const tolerance = std::string(s.type) == "F32" ? 1e-5 : std::string(s.type) == "F16" ? 5e-3 : 4e-2;
    std::vector<std::vector<std::string>> forms = {{"--keep", "1"}};
    if (svd()) forms.push_back({"--form", "svd", "--rank", "12", "--start=0"});
    for (auto const& flags : forms) {
      auto const reports = compress(options_with(input, output, flags), svd(), always);
      check(reports.size() == layer_count, "a report for each layer");
      check(!fs::exists(output.string() + ".work"), "the work folder is gone");
      if (&s == styles && flags[0] == "--keep") std::printf("%s", table(reports).c_str());
      restore(options_with(output, plain), always);
      bool const whole = flags[0] == "--keep" || *s.gate == '\0';  // 12 numbers of a unit, or with a bias 13
      if (whole && !(s.biased && flags[0] != "--keep")) check_function(s, original, read_content(plain), tolerance);
      check(checkpoint::reader(plain).metadata().at("format") == "pt", "the metadata are kept");
      check(!checkpoint::reader(plain).metadata().contains(metadata_key), "and say nothing of what is gone");
    }
  }
}

/// Compares the file of a run with what the library says.
void a_quarter_is_kept(fs::path const& folder) {
  style const& s = styles[2];
  content const original = make_content(s);
  fs::path const input = folder / "model.safetensors", output = folder / "out.safetensors",
                 plain = folder / "plain.safetensors";
  write_content(input, original, s.type);
  auto const reports = compress(options_with(input, output, {"--layers", "2", "--start", "1"}), svd(), always);
  check(reports.size() == 1 && reports[0].layer.prefix == "model.layers.2.mlp.experts", "--layers names one");
  restore(options_with(output, plain), always);
  content const got = read_content(plain);
  for (auto const& [name, of] : original) {
    if (!name.starts_with("model.layers.2.mlp.experts")) check(got.at(name) == of, name + ": is copied");
  }

  expert_layer const layer = reports[0].layer;
  checkpoint::reader file(input);
  compression::resmoe_options options;
  options.centre.starts = {1};
  compression::resmoe job(layer.sizes, options, {.threads = 1});
  compression::residual_writer const compare = [&](compression::expert_residual const& r) {
    compression::matrix rows = job.centre();
    for (std::size_t i = 0; i < rows.values().size(); ++i) rows.values()[i] += r.change.data[i];
    for (std::string const& p : layer.projections()) {
      std::vector<char> const bytes = detail::projection_bytes(layer, p, rows);
      std::vector<float> values(bytes.size() / 4);
      widen("F32", bytes.data(), values.size(), values.data());
      check(got.at(layer.name(r.expert, p)).second == values,
            layer.name(r.expert, p) + ": is what the library restores");
    }
  };
  check(job.run(detail::expert_source(file, layer), compare), "the library's run is finished");
  check(job.report().barycenter.residual == reports[0].report.barycenter.residual, "the report is the library's");
  check(reports[0].bytes_before == std::int64_t{4} * experts * intermediate * hidden * 3, "bytes before");
  check(reports[0].centre_bytes == std::int64_t{4} * intermediate * hidden * 3, "bytes of the centre");
  check(reports[0].bytes_before == reports[0].report.plain_bytes() &&
            reports[0].centre_bytes == reports[0].report.centre_bytes() &&
            reports[0].residual_bytes == reports[0].report.residual_bytes(),
        "bytes are the library's");
}

/// Values of a tensor as a layer reads them where they stand.
template <class T>
std::vector<T> tensor_values(checkpoint::reader& file, std::string const& name) {
  std::vector<char> const bytes = file.read(name);
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

/// The operands of a layer, made of the tensors that are written, give the weights that are restored.
void operands_of_layers(fs::path const& folder) {
  style const& s = styles[2];
  fs::path const input = folder / "model.safetensors", output = folder / "out.safetensors",
                 plain = folder / "plain.safetensors";
  write_content(input, make_content(s), s.type);
  std::vector<std::vector<std::string>> forms = {{"--start=0"}};
  if (svd()) forms.push_back({"--start=0", "--form=svd", "--rank=5"});
  for (auto const& flags : forms) {
    expert_layer const layer = compress(options_with(input, output, flags), svd(), always)[0].layer;
    restore(options_with(output, plain), always);
    content const restored = read_content(plain);
    checkpoint::reader file(output);
    for (std::string const& p : layer.projections()) {
      int const rows = static_cast<int>(layer.dims(p)[0]), columns = static_cast<int>(layer.dims(p)[1]);
      auto const centre = tensor_values<float>(file, layer.centre_name(p));
      auto const compare = [&](auto const& change) {
        sy::base_plus<sy::weight_view<float>, std::remove_cvref_t<decltype(change)>> const operand{
            sy::weight_view<float>::packed(centre.data(), rows, columns), change};
        for (int e = 0; e < experts; ++e) {
          std::vector<float> const& expected = restored.at(layer.name(e, p)).second;
          double apart = 0.0;
          for (int row = 0; row < rows; ++row) {
            for (int column = 0; column < columns; column += 32) {
              float weights[32];
              int const count = std::min(32, columns - column);
              operand.read(e, row, column, count, weights);
              for (int i = 0; i < count; ++i) {
                float const of_file = expected[static_cast<std::size_t>(row * columns + column + i)];
                apart = std::max(apart, std::abs(static_cast<double>(weights[i]) - of_file));
              }
            }
          }
          check(apart < 1e-6, layer.name(e, p) + ": a layer reads what is restored, apart by " + std::to_string(apart));
        }
      };
      if (flags.size() == 1) {
        auto const masks = tensor_values<std::uint32_t>(file, layer.residual_name(p + ".masks"));
        auto const values = tensor_values<float>(file, layer.residual_name(p + ".values"));
        auto const first_values = tensor_values<std::int64_t>(file, layer.residual_name(p + ".first_values"));
        auto const block_starts = tensor_values<std::uint32_t>(file, layer.residual_name(p + ".block_starts"));
        sy::masked_change<float> const change{masks.data(), values.data(), first_values.data(), block_starts.data(),
                                              rows,         columns,       first_values.back()};
        sy::check_masked(change, experts);
        check(static_cast<std::int64_t>(values.size()) == first_values.back() + sy::masked_change<float>::padding,
              "padding");
        compare(change);
      } else {
        auto const units = tensor_values<float>(file, layer.residual_name("units"));
        auto const features = tensor_values<float>(file, layer.residual_name(p + ".features"));
        compare(sy::residual_factors<float>{units.data(), features.data(), rows, columns, 5, p == layer.down});
      }
    }
  }
}

void shards_and_layers(fs::path const& folder) {
  style const& s = styles[0];
  content const original = make_content(s);
  fs::path const input = folder / "model.safetensors", output = folder / "out.safetensors",
                 other = folder / "other.safetensors";
  write_content(input, original, s.type);
  fs::path const shards = folder / "shards";
  fs::create_directories(shards);
  content parts[2];
  nlohmann::json index = {{"metadata", {{"total_size", 1}}}};
  std::size_t number = 0;
  for (auto const& [name, of] : original) {
    std::size_t const part = number++ % 2;
    parts[part][name] = of;
    index["weight_map"][name] = "model-" + std::to_string(part) + ".safetensors";
  }
  for (std::size_t i = 0; i < 2; ++i)
    write_content(shards / ("model-" + std::to_string(i) + ".safetensors"), parts[i], s.type);
  std::string const text = index.dump();
  write_file(shards / "model.safetensors.index.json", {text.begin(), text.end()});
  std::vector<std::string> const flags = {"--start", "0", "--no-comparison"};
  compress(options_with(input, output, flags), svd(), always);
  compress(options_with(shards, other, flags), svd(), always);
  check(bytes_of_file(output) == bytes_of_file(other), "shards give the file that a whole one does");

  auto const refuse_index = [&](std::string const& what, std::string_view sentence, nlohmann::json const& changed) {
    std::string const written = changed.dump();
    write_file(shards / "model.safetensors.index.json", {written.begin(), written.end()});
    check_refusal(what, sentence, [&] { compress(options_with(shards, other, flags), svd(), always); });
  };
  nlohmann::json changed = index;
  changed["weight_map"]["model.embed_tokens.weight"] = "../model.safetensors";
  refuse_index("a shard elsewhere", "no name of a file in its folder", changed);
  changed["weight_map"]["model.embed_tokens.weight"] = "none.safetensors";
  refuse_index("a shard that is not there", "none.safetensors: the file cannot be read", changed);
  changed = index;
  changed["weight_map"]["more"] = "model-0.safetensors";
  refuse_index("a tensor that is not there", "has no tensor 'more', which the index says it has", changed);
  changed["weight_map"].erase("more");
  changed["weight_map"].erase("model.embed_tokens.weight");
  refuse_index("a tensor that is not named", "that the index does not know", changed);
  refuse_index("no weight map", "it has no 'weight_map'", {{"weight_map", 3}});

  for (auto const& [layers, item] :
       {std::pair{"7-9", "7-9"}, std::pair{"1,99", "99"}, std::pair{"decoder,1", "decoder"}}) {
    check_refusal("layers that are not there",
                  "has no layer with routed experts that --layers " + std::string(item) + " names", [&, l = layers] {
                    compress(options_with(input, other, {"--layers", l}), svd(), always);
                  });
  }
  check_refusal("compressed twice", "has been compressed already",
                [&] { compress(options_with(output, other), svd(), always); });
  check_refusal("restored without need", "has not been compressed by this program",
                [&] { restore(options_with(input, other), always); });
  check_refusal("a start that is not there", "starts: expected experts from 0 to 2, got 3", [&] {
    compress(options_with(input, other, {"--start", "3"}), svd(), always);
  });
  if (!svd()) {
    check_refusal("no LAPACK", "built without LAPACK", [&] {
      compress(options_with(input, other, {"--form", "svd"}), svd(), always);
    });
  }
  content without = original;
  without.erase("model.layers.1.block_sparse_moe.experts.1.w3.weight");
  write_content(input, without, s.type);
  check_refusal("an expert with a part missing", "which the other experts have",
                [&] { compress(options_with(input, other), svd(), always); });
  without = original;
  without["model.layers.1.block_sparse_moe.experts.1.w3.weight"].first = {hidden, intermediate};
  write_content(input, without, s.type);
  check_refusal("an expert of another shape", "expected BF16 and [40, 6]",
                [&] { compress(options_with(input, other), svd(), always); });
  without = original;
  without["model.layers.1.block_sparse_moe.experts.1.w3.weight"].second[5] = INFINITY;
  write_content(input, without, s.type);
  check_refusal("a weight that is infinite", "weights of expert 1: expected finite numbers",
                [&] { compress(options_with(input, other), svd(), always); });
  fs::remove_all(other.string() + ".work");
  content other_names = {{"a.experts.0.up.weight", {{2, 2}, {1, 2, 3, 4}}}};
  write_content(input, other_names, s.type);
  check_refusal("experts of unknown names", "with the projections up, which are none that are known",
                [&] { compress(options_with(input, other), svd(), always); });
  write_content(input, {{"a.weight", {{2, 2}, {1, 2, 3, 4}}}}, s.type);
  check_refusal("no experts", "has no routed experts of known names",
                [&] { compress(options_with(input, other), svd(), always); });
  check_refusal("no input", "none.safetensors: the file cannot be read",
                [&] { compress(options_with(folder / "none.safetensors", other), svd(), always); });
  write_content(input, original, s.type);
  check_refusal("no place for the output", "cannot be made",
                [&] { compress(options_with(input, input / "below" / "out.safetensors"), svd(), always); });
}

void stopped_and_resumed(fs::path const& folder) {
  style const& s = styles[0];
  fs::path const input = folder / "model.safetensors", whole = folder / "whole.safetensors",
                 output = folder / "out.safetensors";
  write_content(input, make_content(s), s.type);
  std::vector<std::vector<std::string>> forms = {{"--keep", "0.3"}};
  if (svd()) forms.push_back({"--form", "svd", "--keep", "0.5", "--start", "2"});
  for (std::vector<std::string> flags : forms) {
    fs::remove(output);
    int calls = 0;
    compress(options_with(input, whole, flags), svd(), [&](step const&) { return ++calls > 0; });
    std::vector<char> const expected = bytes_of_file(whole);
    std::vector<std::string> resumed = flags;
    resumed.push_back("--resume");
    int const step_size = std::max(1, calls / 25);
    for (int stop = 1; stop <= calls; stop += step_size) {
      int left = stop;
      bool was_stopped = false;
      try {
        compress(options_with(input, output, flags), svd(), [&](step const&) { return --left > 0; });
      } catch (stopped const&) {
        was_stopped = true;
      }
      check(was_stopped, "the run stops at call " + std::to_string(stop));
      check(!fs::exists(output) && !fs::exists(output.string() + ".part"), "nothing stands in the place of the output");
      if (stop == 1) {
        check_refusal("a run that was stopped", "has a run that was stopped. Add --resume",
                      [&] { compress(options_with(input, output, flags), svd(), always); });
        auto others = resumed;
        others.push_back("--tolerance=1e-9");
        check_refusal("other flags", "with another checkpoint or other flags",
                      [&] { compress(options_with(input, output, others), svd(), always); });
        std::vector<char> const kept = bytes_of_file(input);
        write_content(input, make_content(s), s.type);
        check_refusal("other weights", "with another checkpoint or other flags",
                      [&] { compress(options_with(input, output, resumed), svd(), always); });
        write_file(input, kept);
      }
      compress(options_with(input, output, resumed), svd(), always);
      check(bytes_of_file(output) == expected,
            "a run that was stopped at call " + std::to_string(stop) + " gives the same file");
      fs::remove(output);
    }
  }
  // Files of the work folder that are damaged.
  int left = 150;
  std::string const first =
      said([&] { compress(options_with(input, output), svd(), [&](step const&) { return --left > 0; }); });
  check(first.find("stopped") == 0, "stopped: " + first);
  for (auto const& entry : fs::directory_iterator(output.string() + ".work")) {
    std::vector<char> const good = bytes_of_file(entry.path());
    if (entry.path().filename() == "lock") continue;
    std::vector<char> bad = good;
    bad[bad.size() / 2] = static_cast<char>(bad[bad.size() / 2] ^ 4);
    write_file(entry.path(), bad);
    std::string const got = said([&] { compress(options_with(input, output, {"--resume"}), svd(), always); });
    check(!got.empty() && got.find('\n') == got.npos,
          entry.path().filename().string() + " that is damaged is refused: " + got);
    if (!fs::exists(output.string() + ".work")) break;
    write_file(entry.path(), good);
  }
  fs::remove_all(output.string() + ".work");
}

/// Nothing of the user's is overwritten or removed, and two processes do not work in one folder.
void files_of_others(fs::path const& folder) {
  style const& s = styles[0];
  fs::path const input = folder / "model.safetensors", output = folder / "out.safetensors",
                 work = folder / "out.safetensors.work", linked = folder / "linked.safetensors";
  write_content(input, make_content(s), s.type);
  std::vector<char> const before = bytes_of_file(input);
  std::vector<std::string> const flags = {"--start=0", "--no-comparison"};
  auto const refuse = [&](std::string const& what, std::string_view sentence, fs::path const& from,
                          fs::path const& to) {
    check_refusal(what, sentence, [&] { compress(options_with(from, to, flags), svd(), always); });
    check_refusal(what + ", restored", sentence, [&] { restore(options_with(from, to), always); });
    check(bytes_of_file(input) == before, what + ": the input is as it was");
  };
  refuse("the output is the input", "which is a file of the input", input, input);
  refuse("by another way", "which is a file of the input", input, folder / "." / "model.safetensors");
  fs::create_symlink(input.filename(), linked);
  refuse("by a link", "which is a file of the input", input, linked);
  fs::remove(linked);
  refuse("a folder as the output", "this is a folder", input, folder);
  fs::copy_file(input, folder / "x.part");
  refuse("beside the output", "x.part, which is a file of the input", folder / "x.part", folder / "x");
  fs::remove(folder / "x.part");
  fs::path const shards = folder / "index";
  fs::create_directories(shards);
  fs::copy_file(input, shards / "one.safetensors");
  nlohmann::json index;
  checkpoint::reader const file(input);
  for (std::string const& name : file.names()) index["weight_map"][name] = "one.safetensors";
  std::string const text = index.dump();
  write_file(shards / "model.safetensors.index.json", {text.begin(), text.end()});
  refuse("a shard as the output", "one.safetensors, which is a file of the input", shards, shards / "one.safetensors");
  refuse("the index as the output", "index.json, which is a file of the input", shards,
         shards / "model.safetensors.index.json");

  fs::create_directories(work);
  std::string const thesis = "thesis";
  write_file(work / "thesis.txt", {thesis.begin(), thesis.end()});
  check_refusal("a folder of the user's", "the folder has 'thesis.txt', which is not of this program",
                [&] { compress(options_with(input, output, flags), svd(), always); });
  check(fs::exists(work / "thesis.txt") && !fs::exists(work / "lock"), "the user's folder is as it was");
  fs::remove(work / "thesis.txt");
  // What comes while the program works stays, too. Here files are on the disk before the run goes on.
  options wanted = options_with(input, output, flags);
  wanted.durable = true;
  compress(wanted, svd(), [&](step const&) {
    write_file(work / "thesis.txt", {thesis.begin(), thesis.end()});
    return true;
  });
  check(fs::exists(work / "thesis.txt") && std::distance(fs::directory_iterator(work), {}) == 1,
        "files of the program's own are removed, and no others");
  fs::remove_all(work);
  std::string const not_ours = "mine";
  fs::create_directories(work);
  write_file(work / "plan", {not_ours.begin(), not_ours.end()});
  for (auto const& more : {std::vector<std::string>{}, {"--resume"}}) {
    check_refusal("another's plan", "plan: the file is damaged or of another program",
                  [&] { compress(options_with(input, output, more), svd(), always); });
  }
  check(bytes_of_file(work / "plan").size() == not_ours.size(), "another's plan is as it was");
  fs::remove_all(work);
#if defined(COMPRESS_EXPERTS_HAS_LOCKS)
  {
    work_folder const held(work, false);
    check_refusal("two at once", "another process works in this folder",
                  [&] { compress(options_with(input, output, flags), svd(), always); });
  }
  check(!fs::exists(work), "a folder in which nothing was begun is gone");
#endif
  check(detail::is_own_name("layer12.expert3.part") && detail::is_own_name("layer0.state") &&
            !detail::is_own_name("layer.state") && !detail::is_own_name("layer1.expert") &&
            !detail::is_own_name("layer1.experts") && !detail::is_own_name("my plan"),
        "names of the program's own files");
}

/// Numbers in the metadata of a compressed file that are none.
void damaged_metadata(fs::path const& folder) {
  style const& s = styles[3];
  fs::path const input = folder / "model.safetensors", output = folder / "out.safetensors",
                 changed = folder / "changed.safetensors", plain = folder / "plain.safetensors";
  write_content(input, make_content(s), s.type);
  compress(options_with(input, output, {"--start=0", "--no-comparison"}), svd(), always);
  checkpoint::reader file(output);
  auto const about = nlohmann::json::parse(file.metadata().at(metadata_key));
  for (char const* key : {"count", "hidden", "intermediate", "rank"}) {
    for (nlohmann::json const& value : {nlohmann::json(1e300), nlohmann::json(1099511627776 + 3), nlohmann::json(-3),
                                        nlohmann::json("3"), nlohmann::json(2.5)}) {
      nlohmann::json other = about;
      other["layers"][0][key] = value;
      std::vector<checkpoint::new_tensor> tensors;
      for (std::string const& name : file.names()) tensors.push_back(detail::copy_of(file, name));
      checkpoint::write_safetensors(changed, std::move(tensors), {{metadata_key, other.dump()}}, {}, false);
      check_refusal(key + (" = " + value.dump()), "has a damaged 'switchyard_resmoe' in its metadata",
                    [&] { restore(options_with(changed, plain), always); });
    }
  }
}

/// Changes bytes of a small file in many ways: each is refused with one sentence, or is a file.
void fuzzed(fs::path const& folder) {
  fs::path const input = folder / "model.safetensors", output = folder / "out.safetensors",
                 changed = folder / "changed.safetensors", plain = folder / "plain.safetensors";
  int refused = 0, taken = 0;
  auto const try_all = [&](fs::path const& file, std::function<void()> const& run) {
    std::vector<char> const good = bytes_of_file(file);
    std::uint64_t header = 0;
    std::memcpy(&header, good.data(), 8);
    for (int trial = 0; trial < 200; ++trial) {
      std::vector<char> bytes = good;
      std::size_t const reach = trial % 4 == 0 ? bytes.size() : std::min<std::size_t>(bytes.size(), header + 8);
      for (int changes = 1 + trial % 3; changes > 0; --changes) {
        std::size_t const at = engine() % reach;
        // Digits for digits, so that the header is often still JSON.
        bool const digit = bytes[at] >= '0' && bytes[at] <= '9';
        bytes[at] = digit ? static_cast<char>('0' + engine() % 10) : static_cast<char>(engine());
      }
      if (trial % 10 == 9) bytes.resize(engine() % bytes.size());
      write_file(changed, bytes);
      std::string const got = said(run);
      (got.empty() ? taken : refused)++;
      check(got.find('\n') == got.npos, "a sentence of one line: " + got);
      check(got.find("stopped") == got.npos, "nothing stops by itself");
      check(!fs::exists(output.string() + ".part") && !fs::exists(plain.string() + ".part"),
            "nothing is left half-written");
      fs::remove_all(output.string() + ".work");
    }
  };
  for (style const& s : {styles[0], styles[4]}) {
    content small;
    for (auto const& [name, of] : make_content(s)) {
      if (name.find("layers.2") == name.npos) small[name] = of;
    }
    write_content(input, small, s.type);
    try_all(input, [&] { compress(options_with(changed, output, {"--start=0", "--no-comparison"}), svd(), always); });
    compress(options_with(input, folder / "compressed.safetensors"), svd(), always);
    try_all(folder / "compressed.safetensors", [&] { restore(options_with(changed, plain), always); });
    if (!svd()) continue;
    compress(options_with(input, folder / "compressed.safetensors", {"--form=svd", "--rank=2"}), svd(), always);
    try_all(folder / "compressed.safetensors", [&] { restore(options_with(changed, plain), always); });
  }
  std::printf("changed files: %d refused, %d taken\n", refused, taken);
  check(refused > 100 && taken > 10, "changes of both kinds");
}

void command_lines() {
  auto const refuse = [](char const* what, std::string_view sentence, std::vector<std::string> const& arguments) {
    check_refusal(what, sentence, [&] { parse(arguments); });
  };
  refuse("no files", "expected INPUT and OUTPUT, got 0", {});
  refuse("three files", "got 3 names", {"a", "b", "c"});
  refuse("an unknown flag", "unknown flag '--colour'", {"--colour", "red"});
  refuse("a flag without value", "--keep needs a value", {"a", "b", "--keep"});
  refuse("too much", "--keep: expected a number from 0.000000 to 1.000000, got '2'", {"a", "b", "--keep", "2"});
  refuse("no form", "--form: expected pruned or svd, got 'dense'", {"a", "b", "--form=dense"});
  refuse("no number", "--iterations: expected a whole number from 1", {"a", "b", "--iterations", "0"});
  refuse("a rank of what is pruned", "--rank: wants --form svd", {"a", "b", "--rank", "3"});
  check(parse({"--help"}).help, "--help");
  options const all = parse({"a", "--keep=0.5", "b", "--start", "best", "--threads=3", "--resume", "--layers", "1-2"});
  check(all.input == "a" && all.output == "b" && all.keep == 0.5 && all.start == -1 && all.threads == 3 && all.resume &&
            all.layers == "1-2",
        "flags between names");
  expert_layer layer;
  layer.prefix = "encoder.block.11.layer.1.mlp.experts";
  auto const names = [&](std::string const& list) {
    bool named = false;
    for (layer_item const& item : detail::layer_items("--layers", list)) named = named || is_named(layer, item);
    return named;
  };
  check(names("11") && names("3,8-12") && names("encoder") && names("block.11"), "named");
  check(!names("1") && !names("12-13") && !names("decoder,2"), "not named");
  for (char const* list : {"-5", "8-", "8--9", "9-8", "1,,2", "1,", "", "1-2-3", "99999999999"}) {
    refuse("layers", "--layers: expected numbers, ranges such as 8-31 and parts of names",
           {"a", "b", "--layers", list});
  }
  for (std::vector<std::string> const& flag :
       {std::vector<std::string>{"--keep", "0.5"}, {"--form=svd"}, {"--resume"}, {"--layers=1"}, {"--no-comparison"}}) {
    std::vector<std::string> line{"--restore", "a", "b"};
    line.insert(line.end(), flag.begin(), flag.end());
    refuse("with --restore", "is no flag of --restore", line);
  }
  check(parse({"--restore", "a", "b", "--threads", "2"}).threads == 2, "--restore takes --threads");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: compress_experts_test FOLDER\n");
    return 2;
  }
  fs::path const folder = fs::path(argv[1]);
  try {
    fs::remove_all(folder);
    fs::create_directories(folder);
    command_lines();
    all_is_kept(folder);
    a_quarter_is_kept(folder);
    operands_of_layers(folder);
    shards_and_layers(folder);
    stopped_and_resumed(folder);
    files_of_others(folder);
    damaged_metadata(folder);
    fuzzed(folder);
    fs::remove_all(folder);
  } catch (std::exception const& wrong) {
    check(false, std::string("not expected: ") + wrong.what());
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
