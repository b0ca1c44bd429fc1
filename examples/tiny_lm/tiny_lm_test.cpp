// That damaged and mismatching weight files are refused with the sentence that tells what is wrong, that command lines
// are read carefully, and that a text goes on past the context.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <switchyard/sida/hash_table.hpp>
#include <switchyard/sida/predictor.hpp>

#include <nlohmann/json.hpp>

#include "evaluate.hpp"
#include "file.hpp"
#include "generate.hpp"
#include "model.hpp"
#include "moe.hpp"
#include "options.hpp"
#include "picture.hpp"
#include "predictor.hpp"
#include "safetensors.hpp"
#include "sha256.hpp"

namespace {

using namespace tiny_lm;
using nlohmann::json;

int failures = 0;

void check(bool holds, std::string const& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

/// That `body` throws one line that contains `sentence`.
void check_refusal(std::string const& what, std::string_view sentence, std::function<void()> const& body) {
  try {
    body();
    check(false, what + ": not refused");
  } catch (std::exception const& wrong) {
    std::string_view const got = wrong.what();
    std::printf("%-32s %s\n", what.c_str(), wrong.what());
    check(got.find(sentence) != got.npos && got.find('\n') == got.npos,
          what + ": expected '" + std::string(sentence) + "'");
  }
}

/// The shipped file taken apart, to be put together wrongly.
struct parts {
  json header;
  std::vector<char> data;

  explicit parts(std::vector<char> const& bytes) {
    std::uint64_t size;
    std::memcpy(&size, bytes.data(), 8);
    header = json::parse(bytes.data() + 8, bytes.data() + 8 + size);
    data.assign(bytes.begin() + 8 + static_cast<std::ptrdiff_t>(size), bytes.end());
  }

  /// Makes the checksum that of the data, for what is wrong with the file to be something else.
  void seal() { header["__metadata__"]["data_sha256"] = sha256(std::vector<unsigned char>(data.begin(), data.end())); }

  std::vector<char> file() const { return file(header.dump()); }

  std::vector<char> file(std::string const& text) const {
    std::uint64_t const size = text.size();
    std::vector<char> bytes(8 + text.size() + data.size());
    std::memcpy(bytes.data(), &size, 8);
    std::copy(text.begin(), text.end(), bytes.begin() + 8);
    std::copy(data.begin(), data.end(), bytes.end() - static_cast<std::ptrdiff_t>(data.size()));
    return bytes;
  }
};

void load(std::vector<char> bytes) {
  safetensors const file("weights", std::move(bytes));
  model<kinds::shipped> const weights(file);
}

void damaged_files(std::vector<char> const& shipped) {
  auto const cut = [&](std::size_t size) {
    load({shipped.begin(), shipped.begin() + static_cast<std::ptrdiff_t>(size)});
  };
  check_refusal("empty", "has 0 bytes, too few", [&] { cut(0); });
  check_refusal("cut in the header length", "has 5 bytes, too few", [&] { cut(5); });
  check_refusal("cut after the header length", "announces a header of", [&] { cut(8); });
  check_refusal("cut in the header", "announces a header of", [&] { cut(500); });
  check_refusal("cut in the tensors", "is truncated or damaged: tensor '", [&] { cut(shipped.size() / 2); });
  check_refusal("cut before the last byte", "is truncated or damaged: tensor '", [&] { cut(shipped.size() - 1); });
  for (std::size_t i = 0; i < 8; ++i) {
    check_refusal("header length, byte " + std::to_string(i), "is ", [&] {
      auto bytes = shipped;
      bytes[i] = static_cast<char>(bytes[i] ^ 0x40);
      load(bytes);
    });
  }
  std::size_t const data_begin = shipped.size() - parts(shipped).data.size();
  for (std::size_t at : {data_begin, data_begin + (shipped.size() - data_begin) / 2, shipped.size() - 1}) {
    check_refusal("a flipped bit at " + std::to_string(at), "is damaged and has to be fetched again: expected", [&] {
      auto bytes = shipped;
      bytes[at] = static_cast<char>(bytes[at] ^ 1);
      load(bytes);
    });
  }
  check_refusal("a byte too much", "its last tensor ends at byte", [&] {
    auto bytes = shipped;
    bytes.push_back(0);
    load(bytes);
  });
  check_refusal("another kind of file", "no safetensors file", [] {
    std::string const text = "<svg xmlns=\"http://www.w3.org/2000/svg\"/>\n";
    load({text.begin(), text.end()});
  });
  check_refusal("no JSON", "its header is not a JSON object", [&] { load(parts(shipped).file("{\"a\": ")); });
  check_refusal("a list", "its header is not a JSON object", [&] { load(parts(shipped).file("[1, 2]")); });
}

void mismatching_files(std::vector<char> const& shipped) {
  std::string const router = "blocks.0.moe.router.weight", q = "blocks.1.attention.q.weight";
  auto const changed = [&](std::string const& what, std::string_view sentence, auto const& change) {
    check_refusal(what, sentence, [&] {
      parts p(shipped);
      change(p);
      load(p.file());
    });
  };
  changed("another shape", "with shape [128, 8], expected [8, 128]", [&](parts& p) {
    p.header[router]["shape"] = {128, 8};
  });
  changed("a shape that is too large", "takes 8192", [&](parts& p) { p.header[router]["shape"] = {16, 128}; });
  changed("a shape past memory", "more than memory can hold", [&](parts& p) {
    p.header[router]["shape"] = {std::int64_t{1} << 62, std::int64_t{1} << 62};
  });
  changed("a negative shape", "is no size", [&](parts& p) { p.header[router]["shape"] = {-8, -128}; });
  changed("a shape with a fraction", "is no size", [&](parts& p) { p.header[router]["shape"] = {8.5, 128}; });
  changed("another type", "of type I32, expected F32 or BF16", [&](parts& p) { p.header[router]["dtype"] = "I32"; });
  changed("an unknown type", "of unknown type 'F33'", [&](parts& p) { p.header[router]["dtype"] = "F33"; });
  changed("a type that is a number", "is not of the expected form", [&](parts& p) { p.header[router]["dtype"] = 32; });
  changed("no type", "is not of the expected form", [&](parts& p) { p.header[router].erase("dtype"); });
  changed("one offset", "is not of the expected form", [&](parts& p) { p.header[router]["data_offsets"] = {0}; });
  changed("an entry that is a text", "is not of the expected form", [&](parts& p) { p.header[router] = "F32"; });
  changed("a missing tensor", "is damaged: tensor '", [&](parts& p) { p.header.erase(router); });
  changed("a renamed tensor", "has no tensor '" + router + "'", [&](parts& p) {
    p.header["router"] = p.header[router];
    p.header.erase(router);
  });
  changed("a tensor too much", "tensors, and the model has", [&](parts& p) {
    p.header["bias"] = {{"dtype", "F32"}, {"shape", {1}}, {"data_offsets", {p.data.size(), p.data.size() + 4}}};
    p.data.resize(p.data.size() + 4);
    p.seal();
  });
  changed("overlapping tensors", "and the one before it ends at",
          [&](parts& p) { p.header[q]["data_offsets"] = p.header["blocks.1.attention.k.weight"]["data_offsets"]; });
  changed("offsets past the end", "ends at byte", [&](parts& p) {
    p.header["embedding.weight"]["data_offsets"] = {p.data.size(), p.data.size() + 256 * 128 * 2};
  });
  changed("offsets backwards", "at bytes 4096 to 0", [&](parts& p) { p.header[router]["data_offsets"] = {4096, 0}; });
  changed("a value that is not finite", "with a value that is not finite", [&](parts& p) {
    std::size_t const at = p.header[q]["data_offsets"][0];
    p.data[at] = p.data[at + 1] = '\x7f';
    p.data[at] = '\xc0';
    p.seal();
  });
  changed("no metadata", "has no 'format'", [](parts& p) { p.header.erase("__metadata__"); });
  changed("no checksum", "has no 'data_sha256'", [](parts& p) { p.header["__metadata__"].erase("data_sha256"); });
  changed("another checksum", "expected data with the SHA-256 0, got ",
          [](parts& p) { p.header["__metadata__"]["data_sha256"] = "0"; });
  changed("metadata of another form", "is not of the expected form", [](parts& p) {
    p.header["__metadata__"]["seed"] = {1, 2};
  });
  changed("another format", "has the format 'pt', expected 'switchyard-tiny-lm-1'",
          [](parts& p) { p.header["__metadata__"]["format"] = "pt"; });
  changed("another kind of model", "of kind 'dense', expected 'moe'",
          [](parts& p) { p.header["__metadata__"]["model"] = "dense"; });
  changed("a config that is no JSON", "not a JSON object", [](parts& p) { p.header["__metadata__"]["config"] = "{"; });
  auto const config = [&](std::string const& key, json const& value, std::string_view sentence) {
    changed("config: " + key + " " + value.dump(), sentence, [&](parts& p) {
      json inner = json::parse(p.header["__metadata__"]["config"].get<std::string>());
      inner[key] = value;
      p.header["__metadata__"]["config"] = inner.dump();
    });
  };
  config("experts", 16, "was made for another model: expected experts = 8");
  config("top_k", 1, "expected top_k = 2");
  config("rope_theta", 500000, "expected rope_theta = 10000");
  config("norm_epsilon", 1e-6, "expected norm_epsilon = 1e-05");
  config("hidden", nullptr, "expected hidden = 128");
  config("hidden", "128", "expected hidden = 128");
}

void files_on_disk() {
  check_refusal("an absent file", "/no/such/file: cannot be read: ", [] { safetensors::load("/no/such/file"); });
  check_refusal("a folder", "cannot be read: ", [] { safetensors::load("."); });
}

void command_lines() {
  auto const read = [](std::vector<char const*> arguments) {
    arguments.insert(arguments.begin(), "tiny_lm");
    return parse(static_cast<int>(arguments.size()), arguments.data());
  };
  options const good =
      read({"--prompt", "--odd=1", "--tokens=7", "--temperature", "0", "--seed", "18446744073709551615"});
  check(good.prompt == "--odd=1" && good.tokens == 7 && good.temperature == 0.0 && good.seed == ~std::uint64_t{0},
        "a good command line");
  check(good.backend == backend::cpu && good.bytes == 0, "the CPU and the whole text, unless told otherwise");
  options const shortened = read({"--backend=cuda", "--bytes", "512"});
  check(shortened.backend == backend::cuda && shortened.bytes == 512, "some bytes on the GPU");
  check(read({"--backend", "cuda", "--backend", "cpu"}).backend == backend::cpu, "the last backend counts");
  check(read({"--prompt="}).prompt.empty(), "an empty prompt");
  check(read({"-h"}).help && read({"--tokens", "1", "--help"}).help, "help");
  check_refusal("an unknown flag", "unknown flag '--colour'", [&] { read({"--colour", "red"}); });
  check_refusal("no flag", "unknown flag 'text'", [&] { read({"text"}); });
  check_refusal("no value", "--tokens needs a value", [&] { read({"--tokens"}); });
  check_refusal("no number", "got 'ten'", [&] { read({"--tokens", "ten"}); });
  check_refusal("half a number", "got '10x'", [&] { read({"--tokens", "10x"}); });
  check_refusal("a negative number", "got '-1'", [&] { read({"--tokens=-1"}); });
  check_refusal("a number too large", "got '99999999999'", [&] { read({"--tokens", "99999999999"}); });
  check_refusal("a negative temperature", "got '-0.5'", [&] { read({"--temperature", "-0.5"}); });
  check_refusal("a temperature that is none", "got 'nan'", [&] { read({"--temperature", "nan"}); });
  check_refusal("no threads", "got '0'", [&] { read({"--threads", "0"}); });
  check_refusal("no bytes", "got '0'", [&] { read({"--bytes", "0"}); });
  check_refusal("an unknown backend", "--backend: expected cpu or cuda, got 'tpu'", [&] {
    read({"--backend", "tpu"});
  });
}

void continuations(std::vector<char> const& shipped) {
  safetensors const file("weights", shipped);
  model<kinds::shipped> const weights(file);
  cpu_layers<kinds::shipped> const layers(weights.moe, weights.router);
  auto const continued = [&](std::string_view prompt, int count, double temperature) {
    std::string text;
    generate(weights, layers, prompt, count, temperature, 1,
             [&](unsigned char byte) { text += static_cast<char>(byte); });
    return text;
  };
  std::string const text(300, 'a');
  check(continued("And God", 20, 0.7).size() == 20, "as many bytes as asked for");
  check(continued("And God", 20, 0.7) == continued("And God", 20, 0.7), "a seed means one text");
  check(continued("", 10, 0.0) == continued("\n", 10, 0.0), "an empty prompt begins at a new line");
  check(continued(text, 5, 0.0) == continued(text.substr(300 - context), 5, 0.0),
        "only the end of a long prompt is read");
  check(continued("And God", context + 50, 0.7).size() == context + 50, "a text goes on past the context");

  // The cache: bytes read one by one give the logits of the same bytes read at once.
  reader<kinds::shipped> at_once(weights, layers), one_by_one(weights, layers);
  std::string const verse = "In the beginning God created the heaven and the earth.";
  std::vector<unsigned char> const bytes(verse.begin(), verse.end());
  auto const expected = at_once.read(bytes);
  float furthest = 0.0f;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    auto const logits = one_by_one.read({bytes.data() + i, 1});
    for (int v = 0; v < vocabulary; ++v)
      furthest = std::max(furthest, std::abs(logits[v] - expected[i * vocabulary + v]));
  }
  check(furthest < 1e-3f, "one by one as at once, apart by " + std::to_string(furthest));
  check(at_once.used() == one_by_one.used(), "the same experts, one by one as at once");
}

void scores(std::vector<char> const& shipped) {
  safetensors const file("weights", shipped);
  model<kinds::shipped> const weights(file);
  cpu_layers<kinds::shipped> const layers(weights.moe, weights.router);
  std::string const verse = "And it came to pass in those days, that he went out into a mountain to pray. ";
  std::string text;
  while (text.size() < 4 * context + 2) text += verse;
  text.resize(4 * context + 2);  // the last window has one byte
  std::vector<unsigned char> const bytes(text.begin(), text.end());
  auto const quiet = [](std::int64_t, std::int64_t) {};
  evaluation<kinds::shipped> const one = evaluate<kinds::shipped>(weights, layers, bytes, 1, quiet);
  evaluation<kinds::shipped> const three = evaluate<kinds::shipped>(weights, layers, bytes, 3, quiet);
  check(one.bytes == 4 * context + 1, "every byte but the first is predicted");
  check(one.bits_per_byte == three.bits_per_byte && one.used == three.used, "one thread scores as three do");
  check(one.bits_per_byte > 0.0 && one.bits_per_byte < 8.0, "a score better than chance");
  std::vector<unsigned char> const two = {'A', 'n'};
  reader<kinds::shipped> read(weights, layers);
  check(evaluate<kinds::shipped>(weights, layers, two, 2, quiet).bits_per_byte ==
            bits(read.read(std::span(two).first(1)), 'n'),
        "the shortest text");
}

/// The shipped predictor predicts here what it did in PyTorch.
void predictions(std::vector<char> const& shipped) {
  std::vector<char> const bytes = read_file(TINY_LM_MODELS "/sida_predictor.safetensors");
  safetensors const file("predictor", bytes);
  expert_predictor const of(file);
  switchyard::sida::predictor const& network = of.network();
  model<kinds::shipped> const weights(safetensors("weights", shipped));
  constexpr int hidden = model<kinds::shipped>::hidden;
  std::vector<char> const text = read_file(TINY_LM_TEXT);
  std::vector<float> rows;
  for (int i = 0; i < context; ++i) {
    auto const row = weights.embedding.begin() + static_cast<unsigned char>(text[static_cast<std::size_t>(i)]) * hidden;
    rows.insert(rows.end(), row, row + hidden);
  }
  check(network.heads.size() == blocks && network.embedding == hidden, "a predictor of this model");
  std::vector<float> logits(static_cast<std::size_t>(blocks * context * network.experts));
  std::vector<std::byte> scratch(switchyard::sida::predict_workspace_bytes(network, 1, context));
  switchyard::sida::predict(
      network,
      {.embeddings = rows.data(), .sequences = 1, .length = context, .logits = logits.data(), .workspace = scratch});
  switchyard::sida::hash_table table;
  switchyard::sida::build_hash_table(logits.data(), blocks, context, network.experts, 1, table);
  std::string expected, got;
  for (json const& block : json::parse(file.metadata("first_window"))) expected += block.get<std::string>();
  for (std::int32_t id : table.ids) got += static_cast<char>('0' + id);
  int equal = 0;
  for (std::size_t i = 0; i < std::min(expected.size(), got.size()); ++i) equal += expected[i] == got[i];
  check(expected.size() == got.size() && equal >= blocks * context - 2,  // two that are almost tied may swap
        "predictions as in PyTorch: " + std::to_string(equal) + " of " + std::to_string(expected.size()));

  auto const changed = [&](std::string const& what, std::string_view sentence, auto const& change) {
    check_refusal(what, sentence, [&] {
      parts p(bytes);
      change(p);
      expert_predictor const read(safetensors("predictor", p.file()));
    });
  };
  auto const config = [&](std::string const& key, json const& value, std::string_view sentence) {
    changed("predictor: " + key + " " + value.dump(), sentence, [&](parts& p) {
      json inner = json::parse(p.header["__metadata__"]["config"].get<std::string>());
      inner[key] = value;
      p.header["__metadata__"]["config"] = inner.dump();
    });
  };
  changed("a predictor of another format", "has the format 'pt', expected 'switchyard-sida-predictor-1'",
          [](parts& p) { p.header["__metadata__"]["format"] = "pt"; });
  changed("a predictor without its config", "without a size 'd' from 1 to 65536",
          [](parts& p) { p.header["__metadata__"]["config"] = "[]"; });
  config("hidden", 32, "expected [32, 128]");
  config("layers", 3, "tensors, and the predictor has");
  config("sparsemax", "sorted", "has an unknown SparseMax 'sorted'");
  config("gate_order", "input, cell", "has gates in another order");
}

void small_parts() {
  check(sha256({}) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "SHA-256 of nothing");
  std::string const text = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";  // FIPS 180-4's second example
  std::vector<unsigned char> const bytes(text.begin(), text.end());
  check(sha256(bytes) == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1", "SHA-256 of two blocks");
  shares const all = shares_of(std::vector<std::vector<std::int64_t>>{{1, 3}, {0, 0}});
  check(all[0][0] == 25.0 && all[0][1] == 75.0 && all[1][0] == 0.0, "shares in percent");
  check(std::abs(effective_number({25.0, 25.0, 25.0, 25.0, 0.0}) - 4.0) < 1e-12 &&
            effective_number({0.0, 100.0}) == 1.0 && effective_number({25.0, 75.0}) < 2.0,
        "as many experts as are used alike");
  check(row_use(all) ==
            "  block 0: 2 of 2 rows read, with the entropy of 2 read alike\n"
            "  block 1: 0 of 2 rows read, with the entropy of 1 read alike\n",
        "the rows of a memory, counted");
  check(bars(all).find("75.0 %") != std::string::npos && svg(all, "").find("Block 1") != std::string::npos, "pictures");
}

}  // namespace

int main() {
  std::vector<char> const shipped = read_file(TINY_LM_WEIGHTS);
  load(shipped);
  damaged_files(shipped);
  mismatching_files(shipped);
  files_on_disk();
  command_lines();
  continuations(shipped);
  scores(shipped);
  predictions(shipped);
  small_parts();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
