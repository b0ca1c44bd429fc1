#pragma once

#include <switchyard/core/element.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/view.hpp>
#include <switchyard/offload/file_store.hpp>
#include <switchyard/offload/pack_experts.hpp>
#include <switchyard/offload/packed_file.hpp>
#include <switchyard/offload/piece.hpp>
#include <switchyard/offload/safetensors_header.hpp>
#include <switchyard/offload/store.hpp>

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace switchyard::offload {

/// What the experts' tensors are called in a checkpoint, with `{layer}` and `{expert}` where the numbers stand:
/// `model.layers.{layer}.mlp.experts.{expert}.up_proj.weight`. A name without `{expert}` is of one tensor for all experts, whose first
/// dimension they are (or whose rows they share out, as in DBRX). What an expert does not have stays empty. `checkpoint_names` has those of
/// published models.
struct expert_tensors {
  std::string gate = {}, up = {}, down = {};
  std::string gate_up = {};  ///< both in one tensor, in the place of `gate` and `up`
  std::string gate_bias = {}, up_bias = {}, down_bias = {}, gate_up_bias = {};
  gate_up_order order = gate_up_order::concatenated;  ///< of `gate_up` and `gate_up_bias`
  storage in = storage::output_major;   ///< of gate and up: [intermediate, hidden], else [hidden, intermediate]
  storage out = storage::output_major;  ///< of down: [hidden, intermediate], else [intermediate, hidden]
  std::vector<int> layers = {};  ///< the numbers of the layers, in the order of the store; empty: all that have experts
};

/// The names in the checkpoints of published models, as their authors distribute them.
namespace checkpoint_names {

/// Mixtral, PhiMoE.
inline expert_tensors mixtral() {
  std::string const expert = "model.layers.{layer}.block_sparse_moe.experts.{expert}.";
  return {.gate = expert + "w1.weight", .up = expert + "w3.weight", .down = expert + "w2.weight"};
}
/// Qwen2, Qwen3, OLMoE, DeepSeek-V2 and V3, GLM-4.5, ERNIE 4.5.
inline expert_tensors qwen() {
  std::string const expert = "model.layers.{layer}.mlp.experts.{expert}.";
  return {.gate = expert + "gate_proj.weight", .up = expert + "up_proj.weight", .down = expert + "down_proj.weight"};
}
inline expert_tensors granite() {
  std::string const experts = "model.layers.{layer}.block_sparse_moe.";
  return {.down = experts + "output_linear.weight", .gate_up = experts + "input_linear.weight"};
}
inline expert_tensors dbrx() {
  std::string const experts = "transformer.blocks.{layer}.ffn.experts.mlp.";
  return {.gate = experts + "w1", .up = experts + "v1", .down = experts + "w2", .out = storage::input_major};
}
inline expert_tensors llama4() {
  std::string const experts = "model.layers.{layer}.feed_forward.experts.";
  return {.down = experts + "down_proj",
          .gate_up = experts + "gate_up_proj",
          .in = storage::input_major,
          .out = storage::input_major};
}
/// gpt-oss in bfloat16.
inline expert_tensors gpt_oss() {
  std::string const experts = "model.layers.{layer}.mlp.experts.";
  return {.down = experts + "down_proj",
          .gate_up = experts + "gate_up_proj",
          .down_bias = experts + "down_proj_bias",
          .gate_up_bias = experts + "gate_up_proj_bias",
          .order = gate_up_order::interleaved,
          .in = storage::input_major,
          .out = storage::input_major};
}
/// Switch Transformers.
inline expert_tensors switch_encoder() {
  std::string const expert = "encoder.block.{layer}.layer.1.mlp.experts.expert_{expert}.";
  return {.up = expert + "wi.weight", .down = expert + "wo.weight"};
}
inline expert_tensors switch_decoder() {
  std::string const expert = "decoder.block.{layer}.layer.2.mlp.experts.expert_{expert}.";
  return {.up = expert + "wi.weight", .down = expert + "wo.weight"};
}
/// NLLB-MoE.
inline expert_tensors nllb(std::string const& half) {
  std::string const expert = "model." + half + ".layers.{layer}.ffn.experts.expert_{expert}.";
  return {.up = expert + "fc1.weight",
          .down = expert + "fc2.weight",
          .up_bias = expert + "fc1.bias",
          .down_bias = expert + "fc2.bias"};
}
inline expert_tensors nllb_encoder() { return nllb("encoder"); }
inline expert_tensors nllb_decoder() { return nllb("decoder"); }

}  // namespace checkpoint_names

namespace detail {

inline constexpr char const* safetensors_name = "offload::open_safetensors";

/// The headers of all files of a checkpoint.
class checkpoint_headers {
 public:
  struct found {
    int file;
    std::int64_t offset;  ///< bytes from the file's begin
    stored_tensor const* tensor;
  };

  explicit checkpoint_headers(std::vector<std::string> files) {
    if (files.empty()) fail(safetensors_name, "a file at least", "none");
    for (std::string& path : files) add_file(std::move(path));
    for (std::size_t i = 0; i < headers_.size(); ++i) {
      for (auto const& [name, t] : headers_[i].tensors()) {
        auto const [at, is_new] = where_.emplace(name, found{static_cast<int>(i), begin(i, t), &t});
        if (!is_new) {
          fail(safetensors_name, "each tensor once",
               "'" + name + "' in " + in_quotes(paths_[static_cast<std::size_t>(at->second.file)]) + " and in " +
                   in_quotes(paths_[i]));
        }
      }
    }
  }

  /// A safetensors file, an index of several (*.json), or a folder with either.
  explicit checkpoint_headers(std::string const& path) {
    struct stat of;
    std::string index = path;
    if (::stat(path.c_str(), &of) == 0 && S_ISDIR(of.st_mode)) {
      std::string const folder = path.ends_with('/') ? path : path + "/";
      index = folder + "model.safetensors.index.json";
      if (::stat(index.c_str(), &of) != 0) index = folder + "model.safetensors";
    }
    if (index.ends_with(".json")) {
      read_index(index);
    } else {
      *this = checkpoint_headers(std::vector<std::string>{index});
    }
  }

  std::vector<std::string> const& paths() const { return paths_; }
  std::map<std::string, found> const& tensors() const { return where_; }
  /// What the checkpoint is called in sentences.
  std::string name() const {
    return in_quotes(index_.empty() ? paths_[0] : index_) +
           (index_.empty() && paths_.size() > 1 ? " and its other files" : "");
  }

 private:
  std::int64_t begin(std::size_t file, stored_tensor const& t) const {
    return static_cast<std::int64_t>(headers_[file].data_begin() + t.begin);
  }

  [[noreturn]] static void refuse(std::string const& path, std::string const& why) {
    fail(safetensors_name, "a safetensors checkpoint",
         in_quotes(path) + ", which " + why + ". Fetch it again, or give another path");
  }

  static std::vector<char> read_file(open_file const& file, std::int64_t bytes) {
    std::vector<char> result(static_cast<std::size_t>(bytes));
    if (!read_all(file.file.number(), 0, reinterpret_cast<std::byte*>(result.data()), bytes)) {
      refuse(file.path, "cannot be read: " + system_says(errno));
    }
    return result;
  }

  void add_file(std::string path) {
    open_file const file = open_to_read(safetensors_name, path, false);
    auto const size = static_cast<std::uint64_t>(file.bytes);
    std::uint64_t bytes = 0;
    std::string wrong = safetensors_header::size(read_file(file, std::min<std::int64_t>(8, file.bytes)), size, bytes);
    if (!wrong.empty()) refuse(path, wrong);
    wrong = headers_.emplace_back().parse(read_file(file, static_cast<std::int64_t>(bytes)), size);
    if (!wrong.empty()) refuse(path, wrong);
    paths_.push_back(std::move(path));
  }

  void read_index(std::string const& path) {
    index_ = path;
    open_file const file = open_to_read(safetensors_name, path, false);
    if (file.bytes > 100'000'000) refuse(path, "is too long for the index of a checkpoint");
    std::vector<char> const text = read_file(file, file.bytes);
    auto const index = nlohmann::json::parse(text.begin(), text.end(), nullptr, false);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object() ||
        index["weight_map"].empty()) {
      refuse(path, "is damaged or no index of a checkpoint: it has no 'weight_map'");
    }
    std::size_t const slash = path.rfind('/');
    std::string const folder = slash == path.npos ? "" : path.substr(0, slash + 1);
    std::set<std::string> parts;
    for (auto const& [name, part] : index["weight_map"].items()) {
      std::string const file_name = part.is_string() ? part.get<std::string>() : std::string();
      if (file_name.empty() || file_name.find('/') != file_name.npos) {
        refuse(path, "has no name of a file in its folder for tensor '" + name + "'");
      }
      parts.insert(file_name);
    }
    std::vector<std::string> files;
    for (std::string const& part : parts) files.push_back(folder + part);
    *this = checkpoint_headers(std::move(files));
    index_ = path;
    for (auto const& [name, part] : index["weight_map"].items()) {
      auto const at = where_.find(name);
      if (at == where_.end() || paths_[static_cast<std::size_t>(at->second.file)] != folder + part.get<std::string>()) {
        refuse(folder + part.get<std::string>(), "has no tensor '" + name + "', which the index says it has");
      }
    }
  }

  std::string index_;  ///< empty where there is none
  std::vector<std::string> paths_;
  std::vector<safetensors_header> headers_;
  std::map<std::string, found> where_;
};

/// Takes a number, without zeros in front, from the begin of a text; -1 where there is none.
inline int take_number(std::string_view& text) {
  int number = 0;
  std::size_t digits = 0;
  for (; digits < text.size() && text[digits] >= '0' && text[digits] <= '9'; ++digits) {
    if (digits == 7) return -1;
    number = 10 * number + (text[digits] - '0');
  }
  if (digits == 0 || (digits > 1 && text[0] == '0')) return -1;
  text.remove_prefix(digits);
  return number;
}

/// The numbers in a tensor's name: -1 where the pattern has none. Whether it is of that pattern.
inline bool match_name(std::string_view pattern, std::string_view name, int& layer, int& expert) {
  layer = expert = -1;
  while (!pattern.empty()) {
    bool const is_layer = pattern.starts_with("{layer}"), is_expert = pattern.starts_with("{expert}");
    if (is_layer || is_expert) {
      int& number = is_layer ? layer : expert;
      int const here = take_number(name);
      if (here < 0 || (number >= 0 && number != here)) return false;
      number = here;
      pattern.remove_prefix(is_layer ? 7 : 8);
    } else {
      if (name.empty() || name[0] != pattern[0]) return false;
      pattern.remove_prefix(1);
      name.remove_prefix(1);
    }
  }
  return name.empty();
}

inline std::string name_of(std::string_view pattern, int layer, int expert) {
  std::string result;
  while (!pattern.empty()) {
    bool const is_layer = pattern.starts_with("{layer}"), is_expert = pattern.starts_with("{expert}");
    if (is_layer || is_expert) {
      result += std::to_string(is_layer ? layer : expert);
      pattern.remove_prefix(is_layer ? 7 : 8);
    } else {
      result += pattern[0];
      pattern.remove_prefix(1);
    }
  }
  return result;
}

/// `piece<Layer>` without the type.
struct piece_numbers {
  std::string type;  ///< as safetensors calls it
  std::int64_t element_bytes;
  int experts;
  bool gated, has_bias;
  std::int64_t hidden, intermediate;
  std::int64_t gate, up, down, gate_bias, up_bias, down_bias, bytes;
  std::string format;
};

template <class Layer>
piece_numbers numbers_of_piece() {
  using at = piece<Layer>;
  using element = typename at::element;
  static_assert(
      at::in_operand::in_place,
      "switchyard: open_safetensors reads experts that a checkpoint has as elements. Quantised ones go through "
      "offload::pack(path, weights_store<Layer>(layers)), once.");
  return {.type = std::same_as<element, float>      ? "F32"
                  : std::same_as<element, bfloat16> ? "BF16"
                                                    : "F16",
          .element_bytes = sizeof(element),
          .experts = Layer::dims.experts,
          .gated = at::gated,
          .has_bias = at::has_bias,
          .hidden = at::hidden,
          .intermediate = at::intermediate,
          .gate = at::gate,
          .up = at::up,
          .down = at::down,
          .gate_bias = at::gate_bias,
          .up_bias = at::up_bias,
          .down_bias = at::down_bias,
          .bytes = at::bytes,
          .format = std::string(at::format())};
}

/// A matrix that is not in the order of a piece: what `arrange` copies. Offsets are bytes, strides elements.
struct matrix_to_arrange {
  std::int64_t from, row_stride, column_stride, rows, columns, to;
};

template <class Word>
void arrange_matrices(std::vector<matrix_to_arrange> const& matrices, std::byte const* stored, std::byte* place) {
  for (matrix_to_arrange const& m : matrices) {
    put_matrix(reinterpret_cast<Word const*>(stored + m.from), m.row_stride, m.column_stride, m.rows, m.columns,
               place + m.to);
  }
}

/// What a checkpoint has of the experts of one layer type.
class expert_finder {
 public:
  expert_finder(checkpoint_headers const& checkpoint, expert_tensors const& names, piece_numbers const& piece)
      : checkpoint_(checkpoint), names_(names), piece_(piece) {
    check_names();
    find_layers();
  }

  file_store open(file_options const& options) {
    plan_parts();
    file_store_args args{.files = {},
                         .layers = static_cast<int>(names_.layers.size()),
                         .experts = piece_.experts,
                         .piece_bytes = piece_.bytes,
                         .pieces = {},
                         .format = piece_.format,
                         .options = options};
    std::vector<int> number_of_file(checkpoint_.paths().size(), -1);  // files without experts are not opened
    for (int layer : names_.layers) {
      for (int expert = 0; expert < piece_.experts; ++expert) {
        std::vector<extent>& extents = args.pieces.emplace_back();
        for (part const& p : parts_) {
          extent e = find(p, layer, expert);
          int& number = number_of_file[static_cast<std::size_t>(e.file)];
          if (number < 0) {
            number = static_cast<int>(args.files.size());
            args.files.push_back(checkpoint_.paths()[static_cast<std::size_t>(e.file)]);
          }
          e.file = number;
          if (p.second_at >= 0) {  // gate and up, one after the other
            e.bytes /= 2;
            extents.push_back(e);
            e.offset += e.bytes;
            e.at = p.second_at;
          }
          extents.push_back(e);
        }
      }
      refuse_more_experts(layer);
    }
    if (!arranged_.empty()) {
      args.stored_bytes = stored_bytes_;
      args.arrange = [matrices = arranged_, wide = piece_.element_bytes == 4](std::byte const* stored,
                                                                              std::byte* place) {
        if (wide) {
          arrange_matrices<float>(matrices, stored, place);
        } else {
          arrange_matrices<std::uint16_t>(matrices, stored, place);
        }
      };
    }
    return file_store(std::move(args));
  }

 private:
  /// A tensor, or an expert's share of it, and where it goes.
  struct part {
    std::string const* pattern;
    std::vector<std::int64_t> dims;  ///< of one expert
    std::int64_t at;
    std::int64_t second_at;  ///< of its second half, -1 where it is one
  };

  [[noreturn]] void refuse(std::string const& expected, std::string const& got) const {
    fail(safetensors_name, expected, got);
  }

  void check_names() const {
    auto const given = [](std::string const& name) { return !name.empty(); };
    bool const fused = given(names_.gate_up);
    auto const want = [&](std::string const& name, bool wanted, char const* member) {
      if (given(name) == wanted) return;
      refuse(std::string(wanted ? "a name" : "no name") + " in ." + member + " for pieces of " + piece_.format,
             wanted ? "none" : "'" + name + "'");
    };
    want(names_.gate_up, fused && piece_.gated, "gate_up");
    want(names_.gate, piece_.gated && !fused, "gate");
    want(names_.up, !fused, "up");
    want(names_.down, true, "down");
    want(names_.gate_up_bias, piece_.has_bias && fused, "gate_up_bias");
    want(names_.gate_bias, piece_.has_bias && piece_.gated && !fused, "gate_bias");
    want(names_.up_bias, piece_.has_bias && !fused, "up_bias");
    want(names_.down_bias, piece_.has_bias, "down_bias");
  }

  void find_layers() {
    if (names_.layers.empty()) {
      std::set<int> found;
      for (auto const& [name, t] : checkpoint_.tensors()) {
        int layer, expert;
        if (match_name(names_.down, name, layer, expert)) found.insert(std::max(layer, 0));
      }
      names_.layers.assign(found.begin(), found.end());
      if (found.empty()) refuse("tensors of the name '" + names_.down + "'", checkpoint_.name() + ", which has none");
    }
    if (names_.layers.size() > 1 && names_.down.find("{layer}") == names_.down.npos) {
      refuse("names with {layer} for " + std::to_string(names_.layers.size()) + " layers", "'" + names_.down + "'");
    }
  }

  /// Which tensors an expert is read from, and what is copied where they are in another order than a piece.
  void plan_parts() {
    bool const interleaved = !names_.gate_up.empty() && names_.order == gate_up_order::interleaved;
    bool const in_major = names_.in == storage::input_major, out_major = names_.out == storage::input_major;
    bool const arranges = in_major || out_major || interleaved;
    std::int64_t const inner = piece_.intermediate, hidden = piece_.hidden, element = piece_.element_bytes;

    // A matrix or bias; `second` is where the second of two in one tensor goes, else -1.
    auto const add = [&](std::string const& pattern, bool input_major, std::int64_t rows, std::int64_t columns,
                         std::int64_t first, std::int64_t second) {
      bool const two = second >= 0, is_bias = columns == 1;
      std::int64_t const stored_rows = two ? 2 * rows : rows;
      std::vector<std::int64_t> dims{stored_rows};
      if (!is_bias) dims.push_back(columns);
      if (!is_bias && input_major) std::swap(dims[0], dims[1]);
      if (!arranges) {
        parts_.push_back({&pattern, dims, first, second});
        return;
      }
      parts_.push_back({&pattern, dims, stored_bytes_, -1});
      std::int64_t const row = input_major && !is_bias ? 1 : columns;         // from one stored row to the next
      std::int64_t const column = input_major && !is_bias ? stored_rows : 1;  // from one column to the next
      std::int64_t const step = two && interleaved ? 2 * row : row;
      std::int64_t const half = interleaved ? row : rows * row;
      arranged_.push_back({stored_bytes_, step, column, rows, columns, first});
      if (two) arranged_.push_back({stored_bytes_ + half * element, step, column, rows, columns, second});
      stored_bytes_ += (stored_rows * columns * element + 63) / 64 * 64;
    };
    if (!names_.gate_up.empty()) {
      add(names_.gate_up, in_major, inner, hidden, piece_.gate, piece_.up);
    } else {
      if (piece_.gated) add(names_.gate, in_major, inner, hidden, piece_.gate, -1);
      add(names_.up, in_major, inner, hidden, piece_.up, -1);
    }
    add(names_.down, out_major, hidden, inner, piece_.down, -1);
    if (!piece_.has_bias) return;
    if (!names_.gate_up.empty()) {
      add(names_.gate_up_bias, false, inner, 1, piece_.gate_bias, piece_.up_bias);
    } else {
      if (piece_.gated) add(names_.gate_bias, false, inner, 1, piece_.gate_bias, -1);
      add(names_.up_bias, false, inner, 1, piece_.up_bias, -1);
    }
    add(names_.down_bias, false, hidden, 1, piece_.down_bias, -1);
  }

  /// Where the tensor of a part is, or an expert's share of it. Throws where it is not there, or not what it has to be.
  extent find(part const& p, int layer, int expert) const {
    std::string const name = name_of(*p.pattern, layer, expert);
    auto const at = checkpoint_.tensors().find(name);
    if (at == checkpoint_.tensors().end()) {
      refuse("tensor '" + name + "'", checkpoint_.name() + ", which does not have it");
    }
    stored_tensor const& t = *at->second.tensor;
    bool const for_all = p.pattern->find("{expert}") == p.pattern->npos;
    std::vector<std::int64_t> dims = p.dims, flat = p.dims;
    if (for_all) {
      dims.insert(dims.begin(), piece_.experts);
      flat[0] *= piece_.experts;
    }
    if (t.type != piece_.type || (t.dims != dims && t.dims != flat)) {
      refuse("tensor '" + name + "' of " + piece_.type + " with shape " + text_of_dims(dims),
             in_quotes(checkpoint_.paths()[static_cast<std::size_t>(at->second.file)]) + ", which has it of " + t.type +
                 " with shape " + text_of_dims(t.dims) + ". Take a layer of that element and these sizes");
    }
    std::int64_t bytes = piece_.element_bytes;
    for (std::int64_t d : p.dims) bytes *= d;
    return {at->second.file, at->second.offset + (for_all ? expert * bytes : 0), bytes, p.at};
  }

  void refuse_more_experts(int layer) const {
    std::string const one_more = name_of(names_.down, layer, piece_.experts);
    if (names_.down.find("{expert}") == names_.down.npos || !checkpoint_.tensors().contains(one_more)) return;
    refuse(std::to_string(piece_.experts) + " experts",
           checkpoint_.name() + ", which has tensor '" + one_more + "', too. Take a layer of as many experts");
  }

  checkpoint_headers const& checkpoint_;
  expert_tensors names_;
  piece_numbers const& piece_;
  std::vector<part> parts_;
  std::vector<matrix_to_arrange> arranged_;
  std::int64_t stored_bytes_ = 0;
};

}  // namespace detail

/// The experts of a checkpoint as it lies, without a copy: a safetensors file, the index of several (*.json), or a folder with
/// either. Names, types and shapes of all their tensors are checked; throws what is wrong with them.
///
/// Where a checkpoint has gate and up in turns, or matrices with their inputs as rows, every read puts the piece in order, which takes memory
/// for a second piece for each of `options.readers` and costs the reader some time: `pack` does it once for all.
template <class Layer>
file_store open_safetensors(std::string const& path, expert_tensors const& names, file_options const& options = {}) {
  detail::checkpoint_headers const checkpoint(path);
  detail::piece_numbers const piece = detail::numbers_of_piece<Layer>();
  return detail::expert_finder(checkpoint, names, piece).open(options);
}
/// The same of a list of files.
template <class Layer>
file_store open_safetensors(std::vector<std::string> const& files, expert_tensors const& names,
                            file_options const& options = {}) {
  detail::checkpoint_headers const checkpoint(files);
  detail::piece_numbers const piece = detail::numbers_of_piece<Layer>();
  return detail::expert_finder(checkpoint, names, piece).open(options);
}

}  // namespace switchyard::offload
