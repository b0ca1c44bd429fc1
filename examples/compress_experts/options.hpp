#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace compress_experts {

inline constexpr std::string_view usage_text = R"(usage: compress_experts INPUT OUTPUT [flag value]...
       compress_experts --restore INPUT OUTPUT

Compresses the routed experts of a checkpoint by ResMoE: one centre for each layer, found by optimal transport between hidden
units, and of each expert what it differs from the centre, pruned or of low rank. All other tensors are copied. The second form
writes plain experts again, which every engine reads; of the flags it takes --threads alone.

INPUT is a safetensors file, an index of several (model.safetensors.index.json), or a folder with either. OUTPUT is one file. What
is computed for it stands in the folder OUTPUT.work until it is whole, and what is written of it in OUTPUT.part. Ctrl-C stops; the same command with --resume goes on.

  --layers LIST      numbers and ranges of layers, or parts of their names, such as 8-31 or 1,3,decoder  (all)
                     (a number is the first one in a layer's name; each part of the list must name a layer)
  --keep SHARE       of each expert's numbers that is kept beside the centre                             (0.25)
  --form FORM        pruned, or svd for two factors of low rank                                          (pruned)
  --rank N           of svd, instead of --keep
  --start N          the expert that the centre begins as, or best: all are tried                        (best)
  --tolerance T      the centre's squared movement at which it has been found                            (1e-7)
  --iterations N     at most                                                                             (100)
  --threads N                                                                                            (all)
  --no-comparison    leave out what the report says of other centres, about half of the time
  --resume           go on with what was stopped
  --help             this text

The exit code is 0 when OUTPUT is whole, 1 when a file is not as expected, 2 for a command line that cannot be understood and 130
after Ctrl-C.
)";

/// A command line that cannot be understood.
struct usage_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A number or a range of layers, or a part of their names.
struct layer_item {
  std::string text;
  int first = -1, last = -1;  ///< -1: it is a part of a name
};

struct options {
  std::string input, output;
  bool restore = false, resume = false, help = false;
  std::string layers;                   ///< empty: all
  std::vector<layer_item> layer_items;  ///< what `layers` has
  double keep = 0.25;
  bool low_rank = false;
  int rank = -1;   ///< -1: by `keep`
  int start = -1;  ///< -1: the best
  double tolerance = 1e-7;
  int iterations = 100;
  int threads = 0;
  bool compare = true;
  bool durable = true;  ///< files are on the disk before the run goes on; no flag, but for tests that write very many
};

namespace detail {

inline int whole_number(std::string const& flag, std::string const& value, int least, int most) {
  int result = 0;
  auto const [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
  if (error != std::errc{} || end != value.data() + value.size() || result < least || result > most) {
    throw usage_error(flag + ": expected a whole number from " + std::to_string(least) + " to " + std::to_string(most) +
                      ", got '" + value + "'");
  }
  return result;
}

inline double number(std::string const& flag, std::string const& value, double least, double most) {
  char* end = nullptr;
  double const result = std::strtod(value.c_str(), &end);  // some standard libraries have no from_chars for double
  if (value.empty() || end != value.c_str() + value.size() || !(result >= least && result <= most)) {
    throw usage_error(flag + ": expected a number from " + std::to_string(least) + " to " + std::to_string(most) +
                      ", got '" + value + "'");
  }
  return result;
}

/// Takes "8-31,decoder" apart.
inline std::vector<layer_item> layer_items(std::string const& flag, std::string const& list) {
  std::vector<layer_item> result;
  for (std::size_t begin = 0; begin <= list.size();) {
    std::size_t const end = std::min(list.find(',', begin), list.size());
    layer_item item{.text = list.substr(begin, end - begin)};
    begin = end + 1;
    auto const refuse = [&] {
      throw usage_error(flag +
                        ": expected numbers, ranges such as 8-31 and parts of names, with commas between them, got '" +
                        list + "'");
    };
    if (item.text.empty()) refuse();
    if (item.text.find_first_not_of("0123456789-") == std::string::npos) {
      std::size_t const dash = item.text.find('-');
      auto const number = [](std::string const& digits) {
        int value = -1;
        auto const [at, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
        return error == std::errc{} && at == digits.data() + digits.size() ? value : -1;
      };
      item.first = number(item.text.substr(0, dash));
      item.last = dash == std::string::npos ? item.first : number(item.text.substr(dash + 1));
      if (item.first < 0 || item.last < item.first) refuse();
    }
    result.push_back(std::move(item));
  }
  return result;
}

}  // namespace detail

/// Reads `--flag value` and `--flag=value`. Throws usage_error.
inline options parse(std::vector<std::string> const& arguments) {
  options result;
  std::vector<std::string> files, flags;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    std::string flag = arguments[i], value;
    if (!flag.starts_with("--")) {
      files.push_back(flag);
      continue;
    }
    flags.push_back(flag.substr(0, flag.find('=')));
    if (flag == "--help") result.help = true;
    if (flag == "--restore") result.restore = true;
    if (flag == "--resume") result.resume = true;
    if (flag == "--no-comparison") result.compare = false;
    if (flag == "--help" || flag == "--restore" || flag == "--resume" || flag == "--no-comparison") continue;
    std::size_t const equals = flag.find('=');
    bool const joined = equals != std::string::npos;
    if (joined) {
      value = flag.substr(equals + 1);
      flag.resize(equals);
    }
    bool found = false;
    for (std::string_view name :
         {"--layers", "--keep", "--form", "--rank", "--start", "--tolerance", "--iterations", "--threads"}) {
      found = found || flag == name;
    }
    if (!found) throw usage_error("unknown flag '" + flag + "'");
    if (!joined) {
      if (i + 1 == arguments.size()) throw usage_error(flag + " needs a value");
      value = arguments[++i];
    }
    constexpr int many = 1'000'000'000;
    if (flag == "--layers") {
      result.layers = value;
      result.layer_items = detail::layer_items(flag, value);
    }
    if (flag == "--keep") result.keep = detail::number(flag, value, 0.0, 1.0);
    if (flag == "--form") {
      if (value != "pruned" && value != "svd")
        throw usage_error(flag + ": expected pruned or svd, got '" + value + "'");
      result.low_rank = value == "svd";
    }
    if (flag == "--rank") result.rank = detail::whole_number(flag, value, 0, many);
    if (flag == "--start") result.start = value == "best" ? -1 : detail::whole_number(flag, value, 0, many);
    if (flag == "--tolerance") result.tolerance = detail::number(flag, value, 0.0, 1e300);
    if (flag == "--iterations") result.iterations = detail::whole_number(flag, value, 1, many);
    if (flag == "--threads") result.threads = detail::whole_number(flag, value, 1, 1024);
  }
  if (result.help) return result;
  if (files.size() != 2) {
    throw usage_error("expected INPUT and OUTPUT, got " + std::to_string(files.size()) + " names of files");
  }
  for (std::string const& flag : flags) {
    if (!result.restore || flag == "--restore" || flag == "--threads") continue;
    throw usage_error(flag + ": is no flag of --restore, which takes how experts were compressed from the file");
  }
  if (result.rank >= 0 && !result.low_rank) throw usage_error("--rank: wants --form svd");
  result.input = files[0];
  result.output = files[1];
  return result;
}

}  // namespace compress_experts
