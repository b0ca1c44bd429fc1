#pragma once

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>

#include "moe.hpp"

namespace tiny_lm {

inline constexpr std::string_view usage_text = R"(usage: tiny_lm [flag value]...

Scores a held-out text with a small Mixture-of-Experts language model, shows how often each expert was used, and
continues a prompt.

  --prompt TEXT      what to continue                           (And God said)
  --tokens N         bytes to write                             (600)
  --temperature T    0: always the likeliest byte; 1: as drawn  (0.7)
  --seed N           of the draw                                (1)
  --picture FILE     where the expert usage is drawn, as SVG; that of pkm's
                     1296 rows is not drawn                     (expert_usage.svg)
  --threads N        windows to score side by side              (all cores)
  --backend B        where the experts run: cpu or cuda         (cpu)
  --budget SHARE     how much of the experts is in memory, such as 25% or bytes;
                     the others are read from a file when they are needed,
                     or before; of the shipped model on the CPU   (all)
  --bytes N          bytes to score, from the start of the text (all)
  --model KIND       shipped; or one of those that are compared: dense, top2,
                     switch, omni, ac, stratified, sigma,
                     sigma_without_entropy, topk, pkm, relu     (shipped)
  --weights FILE     another weight file of that kind
  --text FILE        another text to score; the recorded score is for the whole of the shipped one only
  --help             this text

The score of the shipped text is compared with the recorded one. With --backend cuda, any other score is compared with
that of the same bytes on the CPU. The exit code is 1 when the two are more than 0.2 % apart.
)";

/// A command line that cannot be understood.
struct usage_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Where the Mixture-of-Experts layers run.
enum class backend { cpu, cuda };

struct options {
  std::string prompt = "And God said";
  int tokens = 600;
  double temperature = 0.7;
  std::uint64_t seed = 1;
  std::string picture = "expert_usage.svg";
  int threads = 1;
  tiny_lm::backend backend = tiny_lm::backend::cpu;
  double budget_share = 0.0;              ///< of the experts' bytes; 0: as `budget_bytes` says
  std::int64_t budget_bytes = 0;          ///< of experts in memory; 0: as `budget_share` says, or all
  std::int64_t bytes = 0;                 ///< to score; 0: all
  std::string model = "shipped";          ///< an option of `kinds`
  std::string weights = TINY_LM_WEIGHTS;  ///< the shipped files, from the build
  std::string text = TINY_LM_TEXT;
  bool own_text = false;  ///< the user named the text
  bool help = false;

  bool has_budget() const { return budget_share > 0.0 || budget_bytes > 0; }
};

namespace detail {

template <class Number>
Number whole_number(std::string const& flag, std::string const& value, Number least, Number most) {
  Number result{};
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
    char range[64];
    std::snprintf(range, sizeof range, "%g to %g", least, most);
    throw usage_error(flag + ": expected a number from " + range + ", got '" + value + "'");
  }
  return result;
}

inline backend place(std::string const& flag, std::string const& value) {
  if (value == "cpu") return backend::cpu;
  if (value == "cuda") return backend::cuda;
  throw usage_error(flag + ": expected cpu or cuda, got '" + value + "'");
}

}  // namespace detail

/// Reads `--flag value` and `--flag=value`. Throws usage_error.
inline options parse(int argc, char const* const* argv) {
  options result;
  unsigned const cores = std::thread::hardware_concurrency();
  result.threads = cores == 0 ? 1 : static_cast<int>(cores);
  bool own_weights = false;

  for (int i = 1; i < argc; ++i) {
    std::string flag = argv[i], value;
    if (flag == "--help" || flag == "-h") {
      result.help = true;
      continue;
    }
    auto const known = {"--prompt",  "--tokens", "--temperature", "--seed",    "--picture", "--threads",
                        "--backend", "--bytes",  "--model",       "--weights", "--text",    "--budget"};
    std::size_t const equals = flag.find('=');
    bool const joined = flag.starts_with("--") && equals != std::string::npos;
    if (joined) {
      value = flag.substr(equals + 1);
      flag.resize(equals);
    }
    bool found = false;
    for (std::string_view name : known) found = found || flag == name;
    if (!found) throw usage_error("unknown flag '" + flag + "'");
    if (!joined) {
      if (i + 1 == argc) throw usage_error(flag + " needs a value");
      value = argv[++i];
    }

    if (flag == "--prompt") result.prompt = value;
    if (flag == "--tokens") result.tokens = detail::whole_number(flag, value, 0, 1'000'000);
    if (flag == "--temperature") result.temperature = detail::number(flag, value, 0.0, 100.0);
    if (flag == "--seed") result.seed = detail::whole_number(flag, value, std::uint64_t{0}, ~std::uint64_t{0});
    if (flag == "--picture") result.picture = value;
    if (flag == "--threads") result.threads = detail::whole_number(flag, value, 1, 1024);
    if (flag == "--backend") result.backend = detail::place(flag, value);
    if (flag == "--budget" && value.ends_with('%')) {
      result.budget_share = detail::number(flag, value.substr(0, value.size() - 1), 1e-3, 100.0) / 100.0;
    } else if (flag == "--budget") {
      result.budget_bytes = detail::whole_number(flag, value, std::int64_t{1}, std::int64_t{1} << 50);
    }
    if (flag == "--bytes") result.bytes = detail::whole_number(flag, value, 1, 1'000'000'000);
    if (flag == "--model") result.model = value;
    if (flag == "--weights") {
      result.weights = value;
      own_weights = true;
    }
    if (flag == "--text") {
      result.text = value;
      result.own_text = true;
    }
  }
  if (result.has_budget() && (result.model != kinds::shipped::option || result.backend != backend::cpu)) {
    throw usage_error("--budget goes with --model shipped and --backend cpu");
  }
  if (!kinds::with(result.model, [&]<class Kind>() {
        if (!own_weights && result.model != kinds::shipped::option) {
          result.weights = std::string(TINY_LM_MODELS) + "/" + std::string(Kind::name) + ".safetensors";
        }
      })) {
    throw usage_error(
        "--model: expected shipped, dense, top2, switch, omni, ac, stratified, sigma, "
        "sigma_without_entropy, topk, pkm or relu, got '" +
        result.model + "'");
  }
  return result;
}

}  // namespace tiny_lm
