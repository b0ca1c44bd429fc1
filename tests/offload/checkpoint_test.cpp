#include "catch.hpp"
#include "support/said.hpp"
#include "support/temporary_folder.hpp"

#include <switchyard/offload/block_memory.hpp>
#include <switchyard/offload/host_store.hpp>
#include <switchyard/offload/pack_experts.hpp>
#include <switchyard/offload/packed_file.hpp>
#include <switchyard/offload/piece.hpp>
#include <switchyard/offload/safetensors.hpp>
#include <switchyard/switchyard.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

using Catch::Matchers::ContainsSubstring;
using support::said;
namespace sy = switchyard;
namespace offload = switchyard::offload;

namespace {

constexpr sy::shape dims{.hidden = 10, .intermediate = 12, .experts = 3, .top_k = 1};
template <class Expert, class Element, sy::shape Dims = dims>
using layer_of = sy::layer<Dims, sy::router::softmax_top_k, sy::capacity::dropless, Expert, sy::backend::cpu, Element>;
using gated = layer_of<sy::expert::gated_mlp<sy::silu>, sy::bfloat16>;
using gated_with_bias = layer_of<sy::expert::with_bias<sy::expert::gated_mlp<sy::silu>>, sy::bfloat16>;
using plain = layer_of<sy::expert::mlp<sy::relu>, float>;
using plain_with_bias = layer_of<sy::expert::with_bias<sy::expert::mlp<sy::relu>>, float>;

// As published checkpoints number their sparse layers.
constexpr std::array layer_numbers{1, 3};

/// One number for each weight, which tells all: exact in bfloat16 and float. Matrices are 0 gate, 1 up, 2 down, their biases 3, 4, 5.
double value(int layer, int expert, int matrix, int row, int column) {
  return ((layer * 3 + expert) * 6 + matrix) * 120 + row * (matrix == 2 ? 12 : 10) + column;
}
template <class Element>
Element stored(int layer, int expert, int matrix, int row, int column) {
  int const number = static_cast<int>(value(layer, expert, matrix, row, column));
  if constexpr (sizeof(Element) == 2) {
    Element result;
    result.bits = static_cast<std::uint16_t>(number);
    return result;
  } else {
    return static_cast<Element>(number);
  }
}

/// How many pieces of a store are not `value`.
template <class Layer, class Store>
int count_wrong(Store& store, std::array<int, 2> layers = layer_numbers) {
  using at = offload::piece<Layer>;
  using element = typename Layer::element;
  offload::block_memory const place = offload::take_blocks(at::bytes);
  int wrong = store.layers() != 2 || store.experts() != 3 || store.piece_bytes() != at::bytes;
  for (int i = 0; wrong == 0 && i < 2; ++i) {
    for (int expert = 0; expert < 3; ++expert) {
      std::vector<std::byte> expected(static_cast<std::size_t>(at::bytes));
      auto const put = [&](std::int64_t offset, int matrix, std::int64_t rows, std::int64_t columns) {
        for (int r = 0; r < rows; ++r) {
          for (int c = 0; c < columns; ++c) {
            element const e = stored<element>(layers[static_cast<std::size_t>(i)], expert, matrix, r, c);
            std::memcpy(expected.data() + offset + (r * columns + c) * std::int64_t{sizeof e}, &e, sizeof e);
          }
        }
      };
      if (at::gated) put(at::gate, 0, 12, 10);
      put(at::up, 1, 12, 10);
      put(at::down, 2, 10, 12);
      if (at::gated && at::has_bias) put(at::gate_bias, 3, 12, 1);
      if (at::has_bias) put(at::up_bias, 4, 12, 1);
      if (at::has_bias) put(at::down_bias, 5, 10, 1);
      std::memset(place.get(), 0xee, static_cast<std::size_t>(at::bytes));
      std::string const said = store.read(i, expert, place.get());
      CHECK(said == "");
      wrong += std::memcmp(place.get(), expected.data(), expected.size()) != 0;
    }
  }
  return wrong;
}

/// A safetensors file that is put together.
struct new_file {
  nlohmann::ordered_json header;
  std::vector<char> data;

  template <class Element>
  void add(std::string const& name, std::vector<std::int64_t> const& shape, std::vector<Element> const& values) {
    std::size_t const begin = data.size(), bytes = values.size() * sizeof(Element);
    data.resize(begin + bytes);
    std::memcpy(data.data() + begin, values.data(), bytes);
    header[name] = {
        {"dtype", sizeof(Element) == 4 ? "F32" : "BF16"}, {"shape", shape}, {"data_offsets", {begin, begin + bytes}}};
  }
  std::vector<char> bytes() const {
    std::string const text = header.dump();
    std::uint64_t const size = text.size();
    std::vector<char> result(8);
    std::memcpy(result.data(), &size, 8);
    result.insert(result.end(), text.begin(), text.end());
    result.insert(result.end(), data.begin(), data.end());
    return result;
  }
  void write(std::string const& path) const { support::write_file(path, bytes()); }
};

/// How a tensor of one expert has its numbers: which matrix, row and column stand where.
struct stored_entry {
  int matrix, row, column;
};
using arrangement = std::function<stored_entry(int row, int column)>;
arrangement plainly(int matrix) {
  return [=](int row, int column) { return stored_entry{matrix, row, column}; };
}
arrangement transposed(int matrix) {
  return [=](int row, int column) { return stored_entry{matrix, column, row}; };
}

template <class Element>
std::vector<Element> numbers(int layer, int expert, int rows, int columns, arrangement const& where) {
  std::vector<Element> result;
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) {
      stored_entry const e = where(r, c);
      result.push_back(stored<Element>(layer, expert, e.matrix, e.row, e.column));
    }
  }
  return result;
}

/// A tensor for each expert, whose name ends with `suffix`.
template <class Element>
void add_each(new_file& file, int layer, std::string const& pattern, int rows, int columns, int matrix) {
  for (int expert = 0; expert < 3; ++expert) {
    std::vector<std::int64_t> const shape =
        columns == 1 ? std::vector<std::int64_t>{rows} : std::vector<std::int64_t>{rows, columns};
    file.add(offload::detail::name_of(pattern, layer, expert), shape,
             numbers<Element>(layer, expert, rows, columns, plainly(matrix)));
  }
}
/// One tensor for all.
template <class Element>
void add_fused(new_file& file, int layer, std::string const& pattern, int rows, int columns, arrangement const& where,
               std::vector<std::int64_t> const& shape) {
  std::vector<Element> all;
  for (int expert = 0; expert < 3; ++expert) {
    std::vector<Element> const one = numbers<Element>(layer, expert, rows, columns, where);
    all.insert(all.end(), one.begin(), one.end());
  }
  file.add(offload::detail::name_of(pattern, layer, 0), shape, all);
}

void add_mixtral(new_file& file, int layer) {
  offload::expert_tensors const names = offload::checkpoint_names::mixtral();
  file.add<float>("a router" + std::to_string(layer), {3}, {1, 2, 3});
  add_each<sy::bfloat16>(file, layer, names.gate, 12, 10, 0);
  add_each<sy::bfloat16>(file, layer, names.down, 10, 12, 2);
  add_each<sy::bfloat16>(file, layer, names.up, 12, 10, 1);
}

}  // namespace

TEST_CASE("experts are packed from any order of a layer's weights", "[offload]") {
  // gate and up in turns, with inputs as rows, as gpt-oss has them; down with inputs as rows; biases in turns.
  std::vector<std::vector<sy::bfloat16>> gate_up, down, gate_up_bias, down_bias;
  std::vector<gated_with_bias::weights> weights;
  for (int layer : layer_numbers) {
    for (auto* list : {&gate_up, &down, &gate_up_bias, &down_bias}) list->emplace_back();
    for (int expert = 0; expert < 3; ++expert) {
      auto const append = [&](auto& to, int rows, int columns, arrangement const& where) {
        auto const one = numbers<sy::bfloat16>(layer, expert, rows, columns, where);
        to.back().insert(to.back().end(), one.begin(), one.end());
      };
      append(gate_up, 10, 24, [](int row, int column) { return stored_entry{column % 2, column / 2, row}; });
      append(down, 12, 10, transposed(2));
      append(gate_up_bias, 1, 24, [](int, int column) { return stored_entry{3 + column % 2, column / 2, 0}; });
      append(down_bias, 10, 1, plainly(5));
    }
    auto const halves =
        gated_with_bias::split_gate_up(gate_up.back().data(), sy::gate_up_order::interleaved, sy::storage::input_major);
    auto const biases = sy::split_gate_up_bias(gate_up_bias.back().data(), 12, sy::gate_up_order::interleaved);
    gated_with_bias::weights w;
    w.gate_proj = halves.gate;
    w.up_proj = halves.up;
    w.down_proj = sy::weight_view<sy::bfloat16, sy::projection::out>::transposed(down.back().data(), 10, 12);
    w.bias = {.gate = biases.gate, .up = biases.up, .down = gated_with_bias::out_bias(down_bias.back().data())};
    weights.push_back(w);
  }
  offload::weights_store<gated_with_bias> store(weights);
  CHECK(count_wrong<gated_with_bias>(store) == 0);
  CHECK(store.format() == "bfloat16, gate and up [12, 10], down [10, 12], biases");
  CHECK(store.read(0, 3, nullptr) == "no layer 0, expert 3 in a store of 2 layers of 3 experts");

  using at = offload::piece<gated_with_bias>;
  std::int64_t const layer_bytes = 3 * offload::place_bytes(at::bytes);
  offload::block_memory const memory = offload::take_blocks(2 * layer_bytes);
  for (int i = 0; i < 2; ++i) {
    offload::pack_experts<gated_with_bias>(weights[static_cast<std::size_t>(i)], memory.get() + i * layer_bytes);
  }
  offload::host_store host({.pieces = memory.get(), .layers = 2, .experts = 3, .piece_bytes = at::bytes});
  CHECK(count_wrong<gated_with_bias>(host) == 0);

  // A file is for layers of one type.
  support::temporary_folder const folder;
  REQUIRE(offload::pack(folder / "a", store));
  offload::file_store packed = offload::open_packed<gated_with_bias>(folder / "a", {.verify_reads = true});
  CHECK(packed.format() == store.format());
  CHECK(count_wrong<gated_with_bias>(packed) == 0);
  CHECK_THAT(
      said([&] { offload::open_packed<gated>(folder / "a"); }),
      ContainsSubstring("expected pieces of bfloat16, gate and up [12, 10], down [10, 12], got \"" + folder / "a" +
                        "\", with pieces of bfloat16, gate and up [12, 10], down [10, 12], biases."));
  using more = layer_of<sy::expert::with_bias<sy::expert::gated_mlp<sy::silu>>, sy::bfloat16,
                        sy::shape{.hidden = 10, .intermediate = 12, .experts = 4, .top_k = 1}>;
  CHECK_THAT(said([&] { offload::open_packed<more>(folder / "a"); }),
             ContainsSubstring("expected 4 experts of each layer, got"));

  weights[1].bias.up.data = nullptr;
  CHECK_THAT(said([&] { offload::pack_experts<gated_with_bias>(weights[1], memory.get()); }),
             ContainsSubstring("offload::pack_experts, weights.bias.up: expected numbers, got a null pointer"));
  CHECK_THAT(said([&] { offload::weights_store<gated>({}); }), ContainsSubstring("expected one at least, got none"));
}

TEST_CASE("a checkpoint of a tensor for each expert is a store as it lies", "[offload]") {
  support::temporary_folder const folder;
  new_file one;
  for (int layer : layer_numbers) add_mixtral(one, layer);
  std::string const path = folder / "model.safetensors";
  one.write(path);
  auto const names = offload::checkpoint_names::mixtral();
  for (bool const page_cache : {false, true}) {
    offload::file_store store = offload::open_safetensors<gated>(path, names, {.page_cache = page_cache});
    CHECK(count_wrong<gated>(store) == 0);
    CHECK(store.format() == offload::piece<gated>::format());
    offload::file_store from_folder =
        offload::open_safetensors<gated>(folder.path(), names, {.page_cache = page_cache});
    CHECK(count_wrong<gated>(from_folder) == 0);
  }
  // Layers in an order of the caller's, and packed.
  auto reversed = names;
  reversed.layers = {3, 1};
  offload::file_store store = offload::open_safetensors<gated>(path, reversed);
  CHECK(count_wrong<gated>(store, {3, 1}) == 0);
  REQUIRE(offload::pack(folder / "packed", store));
  offload::file_store packed = offload::open_packed<gated>(folder / "packed", {.verify_reads = true});
  CHECK(count_wrong<gated>(packed, {3, 1}) == 0);
}

TEST_CASE("a checkpoint of several files is opened by its index or by their names", "[offload]") {
  support::temporary_folder const folder;
  new_file first, second, third;
  add_mixtral(first, 1);
  add_mixtral(second, 3);
  third.add<float>("an embedding", {2}, {1, 2});
  std::vector<std::string> const files{folder / "a.safetensors", folder / "b.safetensors", folder / "c.safetensors"};
  first.write(files[0]);
  second.write(files[1]);
  third.write(files[2]);
  auto const names = offload::checkpoint_names::mixtral();
  offload::file_store by_names = offload::open_safetensors<gated>(files, names);
  CHECK(count_wrong<gated>(by_names) == 0);

  nlohmann::json index;
  for (auto const& [file, name] : {std::pair(&first, "a"), std::pair(&second, "b"), std::pair(&third, "c")}) {
    for (auto const& [tensor, entry] : file->header.items())
      index["weight_map"][tensor] = std::string(name) + ".safetensors";
  }
  std::string const path = folder / "model.safetensors.index.json";
  auto const open_with = [&](std::string const& text) {
    support::write_file(path, {text.begin(), text.end()});
    return said([&] { offload::open_safetensors<gated>(folder.path(), names); });
  };
  REQUIRE(open_with(index.dump()) == "");
  offload::file_store by_index = offload::open_safetensors<gated>(path, names);
  CHECK(count_wrong<gated>(by_index) == 0);
  CHECK(by_index.path(1) == files[1]);

  CHECK_THAT(open_with("{}"), ContainsSubstring("it has no 'weight_map'"));
  CHECK_THAT(open_with("{"), ContainsSubstring("it has no 'weight_map'"));
  CHECK_THAT(open_with(R"({"weight_map": {"x": "../a"}})"),
             ContainsSubstring("no name of a file in its folder for tensor 'x'"));
  CHECK_THAT(open_with(R"({"weight_map": {"x": 3}})"),
             ContainsSubstring("no name of a file in its folder for tensor 'x'"));
  CHECK_THAT(open_with(R"({"weight_map": {"x": "a.safetensors"}})"),
             ContainsSubstring("a.safetensors\", which has no tensor 'x', which the index says it has"));
  CHECK_THAT(open_with(R"({"weight_map": {"x": "none"}})"), ContainsSubstring("none\", No such file or directory"));
  CHECK_THAT(said([&] {
               offload::open_safetensors<gated>(std::vector<std::string>{files[0], files[0]}, names);
             }),
             ContainsSubstring("expected each tensor once, got 'a router1' in"));
  CHECK_THAT(said([&] { offload::open_safetensors<gated>(std::vector<std::string>{}, names); }),
             ContainsSubstring("expected a file at least, got none"));
}

TEST_CASE("a checkpoint of one tensor for all experts is a store, in any order of its numbers", "[offload]") {
  support::temporary_folder const folder;
  using element = sy::bfloat16;
  auto const concatenated = [](int row, int column) { return stored_entry{row / 12, row % 12, column}; };
  auto const stacked_inputs = [](int row, int column) { return stored_entry{column / 12, column % 12, row}; };
  auto const in_turns = [](int row, int column) { return stored_entry{column % 2, column / 2, row}; };
  auto const biases_in_turns = [](int row, int) { return stored_entry{3 + row % 2, row / 2, 0}; };
  new_file granite, dbrx, llama, gpt_oss, nllb;
  namespace of = offload::checkpoint_names;
  for (int layer : layer_numbers) {
    add_fused<element>(granite, layer, of::granite().gate_up, 24, 10, concatenated, {3, 24, 10});
    add_fused<element>(granite, layer, of::granite().down, 10, 12, plainly(2), {3, 10, 12});
    add_fused<element>(dbrx, layer, of::dbrx().gate, 12, 10, plainly(0), {36, 10});
    add_fused<element>(dbrx, layer, of::dbrx().up, 12, 10, plainly(1), {36, 10});
    add_fused<element>(dbrx, layer, of::dbrx().down, 12, 10, transposed(2), {36, 10});
    add_fused<element>(llama, layer, of::llama4().gate_up, 10, 24, stacked_inputs, {3, 10, 24});
    add_fused<element>(llama, layer, of::llama4().down, 12, 10, transposed(2), {3, 12, 10});
    add_fused<element>(gpt_oss, layer, of::gpt_oss().gate_up, 10, 24, in_turns, {3, 10, 24});
    add_fused<element>(gpt_oss, layer, of::gpt_oss().gate_up_bias, 24, 1, biases_in_turns, {3, 24});
    add_fused<element>(gpt_oss, layer, of::gpt_oss().down, 12, 10, transposed(2), {3, 12, 10});
    add_fused<element>(gpt_oss, layer, of::gpt_oss().down_bias, 10, 1, plainly(5), {3, 10});
    add_each<float>(nllb, layer, of::nllb_decoder().up, 12, 10, 1);
    add_each<float>(nllb, layer, of::nllb_decoder().down, 10, 12, 2);
    add_each<float>(nllb, layer, of::nllb_decoder().up_bias, 12, 1, 4);
    add_each<float>(nllb, layer, of::nllb_decoder().down_bias, 10, 1, 5);
  }
  auto const store = [&]<class Layer>(Layer const*, new_file const& file, offload::expert_tensors const& names) {
    file.write(folder / "model.safetensors");
    return offload::open_safetensors<Layer>(folder.path(), names);
  };
  gated const* const a_gated = nullptr;
  offload::file_store opened = store(a_gated, granite, of::granite());
  CHECK(count_wrong<gated>(opened) == 0);
  CHECK(opened.extents(0, 0).size() <= 3);
  opened = store(a_gated, dbrx, of::dbrx());
  CHECK(count_wrong<gated>(opened) == 0);
  opened = store(a_gated, llama, of::llama4());
  CHECK(count_wrong<gated>(opened) == 0);
  gated_with_bias const* const with_bias = nullptr;
  opened = store(with_bias, gpt_oss, of::gpt_oss());
  CHECK(count_wrong<gated_with_bias>(opened) == 0);
  plain_with_bias const* const of_floats = nullptr;
  opened = store(of_floats, nllb, of::nllb_decoder());
  CHECK(count_wrong<plain_with_bias>(opened) == 0);
}

TEST_CASE("a checkpoint that is not what was expected says which tensor", "[offload]") {
  support::temporary_folder const folder;
  std::string const path = folder / "model.safetensors";
  auto const names = offload::checkpoint_names::switch_encoder();
  new_file right;
  for (int layer : layer_numbers) {
    add_each<float>(right, layer, names.up, 12, 10, 1);
    add_each<float>(right, layer, names.down, 10, 12, 2);
  }
  auto const open = [&](new_file const& file, offload::expert_tensors const& by) {
    file.write(path);
    return said([&] { offload::open_safetensors<plain>(path, by); });
  };
  REQUIRE(open(right, names) == "");
  std::string const name = "encoder.block.3.layer.1.mlp.experts.expert_1.wi.weight";

  auto const with = [&](auto change) {
    new_file file = right;
    change(file.header);
    return open(file, names);
  };
  CHECK_THAT(with([&](auto& h) {
               h["another"] = h[name];
               h.erase(name);
             }),
             ContainsSubstring("expected tensor '" + name + "', got \"" + path + "\", which does not have it"));
  CHECK_THAT(with([&](auto& h) { h[name]["dtype"] = "I32"; }),
             ContainsSubstring("expected tensor '" + name + "' of F32 with shape [12, 10], got \"" + path +
                               "\", which has it of I32 with shape [12, 10]. Take a layer of that element"));
  CHECK_THAT(with([&](auto& h) {
               h[name]["shape"] = {10, 12};
             }),
             ContainsSubstring("has it of F32 with shape [10, 12]"));
  CHECK_THAT(with([&](auto& h) { h[name]["dtype"] = "F7"; }),
             ContainsSubstring("of unknown type 'F7'. Fetch it again"));
  CHECK_THAT(with([&](auto& h) { h.erase(name); }), ContainsSubstring(", and the one before it ends at "));
  new_file longer = right;
  longer.data.push_back(0);
  CHECK_THAT(open(longer, names), ContainsSubstring("which is damaged: its last tensor ends at byte "));
  new_file more = right;
  more.add<float>("encoder.block.3.layer.1.mlp.experts.expert_3.wo.weight", {1}, {1});
  CHECK_THAT(open(more, names), ContainsSubstring("expected 3 experts, got \"" + path + "\", which has tensor '"));

  auto const by = [&](auto change) {
    offload::expert_tensors other = names;
    change(other);
    return open(right, other);
  };
  CHECK_THAT(by([](auto& n) { n.up = ""; }),
             ContainsSubstring("expected a name in .up for pieces of float, up [12, 10]"));
  CHECK_THAT(by([](auto& n) { n.gate = "g"; }), ContainsSubstring("expected no name in .gate for pieces of float, up"));
  CHECK_THAT(by([](auto& n) { n.gate_up = "g"; }), ContainsSubstring("expected no name in .gate_up"));
  CHECK_THAT(by([](auto& n) { n.down_bias = "g"; }), ContainsSubstring("expected no name in .down_bias"));
  CHECK_THAT(
      by([](auto& n) { n.down = "x.{layer}.{expert}"; }),
      ContainsSubstring("expected tensors of the name 'x.{layer}.{expert}', got \"" + path + "\", which has none"));
  CHECK_THAT(by([](auto& n) { n.layers = {1, 2}; }), ContainsSubstring("'encoder.block.2.layer.1."));
  CHECK_THAT(by([](auto& n) {
               n.down = "x";
               n.layers = {1, 2};
             }),
             ContainsSubstring("expected names with {layer} for 2 layers, got 'x'"));
  CHECK_THAT(said([&] { offload::open_safetensors<gated>(path, names); }),
             ContainsSubstring("expected a name in .gate"));

  // Bytes of the header, one after the other: every one of these files is refused in a sentence, or opens.
  std::vector<char> const bytes = right.bytes();
  std::mt19937 random(3);
  int opened = 0, refused = 0;
  for (std::size_t i = 0; i < 400; ++i) {
    std::vector<char> damaged = bytes;
    std::size_t const at = i < 12 ? i : random() % (bytes.size() - right.data.size());
    damaged[at] = static_cast<char>(damaged[at] ^ 1 << random() % 8);
    if (i % 16 == 0) damaged.resize(random() % bytes.size());
    support::write_file(path, damaged);
    std::string const sentence = said([&] { offload::open_safetensors<plain>(path, names); });
    (sentence.empty() ? opened : refused) += 1;
    if (!sentence.empty()) CHECK(sentence.starts_with("switchyard: offload::"));
  }
  CHECK(refused > 300);
  CHECK(opened + refused == 400);
}
