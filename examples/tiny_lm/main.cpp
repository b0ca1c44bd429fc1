// A small language model whose feed-forward blocks are Switchyard layers: scores a text, shows which experts were
// used, and goes on writing after a prompt.
#include <switchyard/switchyard.hpp>

#include <cctype>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include "evaluate.hpp"
#include "file.hpp"
#include "generate.hpp"
#include "model.hpp"
#include "moe.hpp"
#include "offloaded.hpp"
#include "options.hpp"
#include "picture.hpp"
#include "safetensors.hpp"
#include "sha256.hpp"

namespace {

using namespace tiny_lm;

long process_number() {
#if __has_include(<unistd.h>)
  return static_cast<long>(getpid());
#else
  return 0;
#endif
}

bool to_terminal() {
#if __has_include(<unistd.h>)
  return isatty(STDOUT_FILENO) != 0;
#else
  return false;
#endif
}

/// A score that training wrote down, in bits per byte.
double recorded(safetensors const& file, std::string const& key) {
  std::string const& value = file.metadata(key);
  char* end = nullptr;
  double const result = std::strtod(value.c_str(), &end);
  if (*end != '\0' || !(result > 0.0)) file.refuse("has no number in '" + key + "': '" + value + "'");
  return result;
}

/// Prints the score that was expected. Throws when it is not the one that came.
void compare(double score, double expected, std::string const& whose, std::string const& cause) {
  double const apart = std::abs(score - expected) / expected;
  std::printf("  %.6f %s: %.4f %% apart\n", expected, whose.c_str(), 100.0 * apart);
  if (!(apart <= 0.002)) {
    throw std::runtime_error("expected the score " + whose + ", " + std::to_string(expected) +
                             " bits per byte, within 0.2 %, got " + std::to_string(score) + ". " + cause);
  }
}

void compare_with_dense(double score, double dense) {
  double const saved = (dense - score) / dense;
  std::printf("  %.6f by the dense model with as many active weights: the experts are %.2f %% %s\n", dense,
              100.0 * std::abs(saved), saved > 0.0 ? "better" : "worse");
}

template <class Kind>
evaluation<Kind> evaluate_with_progress(model<Kind> const& weights, moe_layers const& layers,
                                        std::span<unsigned char const> text, int threads) {
  bool const draws = to_terminal();
  evaluation<Kind> const result = evaluate(weights, layers, text, threads, [&](long long done, long long windows) {
    if (!draws) return;
    std::printf("\r  %lld of %lld windows", done, windows);
    std::fflush(stdout);
  });
  if (draws) std::printf("\r\033[K");
  return result;
}

template <class Kind>
void report_usage(evaluation<Kind> const& score, std::string const& picture) {
  shares const all = shares_of(score.used);
  if constexpr (model<Kind>::is_memory) {
    std::printf("\nUse of the rows\n%s", row_use(all).c_str());
    return;
  }
  std::printf("\nShare of each expert\n%s", bars(all).c_str());
  std::string const subtitle = "Top " + std::to_string(model<Kind>::dims.top_k) + " of " +
                               std::to_string(model<Kind>::experts) + " experts for each of " +
                               std::to_string(score.bytes) + " bytes of text";
  std::ofstream out(picture, std::ios::binary);
  if constexpr (model<Kind>::strata > 0) {
    std::int64_t visits = 0;
    for (auto const& block : score.used) {
      for (std::int64_t count : block) visits += count;
    }
    std::printf("  %.2f passes through the strata for each byte and block\n",
                static_cast<double>(visits) / model<Kind>::dims.top_k / blocks / static_cast<double>(score.bytes));
  }
  if (!(out << svg(all, subtitle)).flush()) throw std::runtime_error(picture + ": the picture cannot be written.");
  std::printf("  as a picture: %s\n", std::filesystem::absolute(picture).string().c_str());
}

template <class Kind>
void write_continuation(model<Kind> const& weights, moe_layers const& layers, options const& wanted) {
  std::printf("%s", wanted.prompt.c_str());
  std::fflush(stdout);
  auto const start = std::chrono::steady_clock::now();
  generate(weights, layers, wanted.prompt, wanted.tokens, wanted.temperature, wanted.seed, [](unsigned char byte) {
    // The shipped text is ASCII; a control byte could do things to the terminal.
    std::putchar(std::isprint(byte) || byte == '\n' ? byte : '?');
    std::fflush(stdout);
  });
  double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("\n\n  %d bytes, %.0f tokens/s\n", wanted.tokens, wanted.tokens / seconds);
}

std::unique_ptr<offloaded_layers<kinds::shipped> const> offloaded_with(std::vector<moe_weights>& weights,
                                                                       options const& wanted) {
  using layers = offloaded_layers<kinds::shipped>;
  std::int64_t const budget =
      wanted.budget_bytes > 0
          ? wanted.budget_bytes
          : static_cast<std::int64_t>(wanted.budget_share * static_cast<double>(layers::all_bytes()) + 0.5);
  if (budget < layers::expert_bytes()) {
    throw usage_error(
        "--budget: expected at least one expert, " + std::to_string(layers::expert_bytes()) + " bytes or " +
        std::to_string(100.0 * static_cast<double>(layers::expert_bytes()) / static_cast<double>(layers::all_bytes())) +
        "%, got " + std::to_string(budget) + " bytes");
  }
  return std::make_unique<layers const>(weights, budget, "tiny_lm." + std::to_string(process_number()) + ".experts");
}

void report_offloading(offloaded_layers<kinds::shipped> const& layers) {
  auto const m = layers.measure();
  auto const all = m.all();
  auto const percent = [](double part, double whole) { return whole > 0 ? 100.0 * part / whole : 0.0; };
  double seconds = 0;
  for (auto const& call : m.calls) seconds += call.seconds;
  std::printf("\nExperts in memory: at most %lld of %lld bytes, %lld was the most\n",
              static_cast<long long>(m.budget_bytes), static_cast<long long>(layers.all_bytes()),
              static_cast<long long>(m.peak_bytes));
  std::printf("  %lld needed by %lld calls: %.1f %% were there, %.1f %% on their way\n",
              static_cast<long long>(all.needed), static_cast<long long>(all.calls),
              percent(static_cast<double>(all.hits), static_cast<double>(all.needed)),
              percent(static_cast<double>(all.on_the_way), static_cast<double>(all.needed)));
  std::printf("  %lld read, %.1f MB %s; calls waited %.1f %% of their time\n", static_cast<long long>(all.loads),
              static_cast<double>(m.moved_bytes) * 1e-6,
              layers.reads_direct() ? "past the page cache" : "through the page cache",
              percent(all.waiting_seconds, seconds));
}

template <class Kind>
void run(options const& wanted) {
  safetensors const file = safetensors::load(wanted.weights);
  model<Kind> weights(file);
  cpu_layers<Kind> const on_cpu(weights.moe, weights.router);
  std::unique_ptr<moe_layers const> const on_cuda =
      wanted.backend == backend::cuda ? layers_on_cuda(Kind::option, weights.moe, weights.router) : nullptr;
  std::unique_ptr<offloaded_layers<kinds::shipped> const> offloaded;
  if constexpr (Kind::option == kinds::shipped::option) {
    if (wanted.has_budget()) offloaded = offloaded_with(weights.moe, wanted);
  }
  moe_layers const& layers = offloaded ? static_cast<moe_layers const&>(*offloaded) : on_cuda ? *on_cuda : on_cpu;
  std::printf("Model: %s\n", wanted.weights.c_str());
  std::printf("  %d blocks with %s\n", blocks, layers.describe().c_str());
  std::printf("  %s weights, of which one byte meets %s\n", file.metadata("parameters").c_str(),
              file.metadata("active_parameters").c_str());

  double const right_score = recorded(file, "bits_per_byte");
  std::vector<char> const bytes = read_file(wanted.text);
  std::vector<unsigned char> const whole(bytes.begin(), bytes.end());
  std::span<unsigned char const> text(whole);
  if (text.size() < 2) throw std::runtime_error(wanted.text + ": expected a text of at least 2 bytes.");
  bool recorded_text = sha256(text) == file.metadata("held_out_sha256");
  if (!recorded_text && !wanted.own_text) {
    throw std::runtime_error(wanted.text + ": this is not the text that the weights' score was recorded for.");
  }
  std::size_t const read = static_cast<std::size_t>(wanted.bytes) + 1;  // the first byte is read, not scored
  if (wanted.bytes > 0 && read < text.size()) {
    text = text.first(read);
    recorded_text = false;
  }
  std::printf("\nScore on %s, %d windows at a time\n", wanted.text.c_str(), wanted.threads);
  evaluation<Kind> const score = evaluate_with_progress(weights, layers, text, wanted.threads);
  std::printf("  %.6f bits per byte over %lld bytes\n", score.bits_per_byte, static_cast<long long>(score.bytes));
  if (recorded_text) {
    compare(score.bits_per_byte, right_score, "recorded after training",
            "The header of the weight file is damaged or this program has a fault.");
    if constexpr (Kind::option == kinds::shipped::option) {
      compare_with_dense(score.bits_per_byte, recorded(file, "dense_bits_per_byte"));
    }
  } else if (on_cuda) {
    compare(score.bits_per_byte, evaluate_with_progress(weights, on_cpu, text, wanted.threads).bits_per_byte,
            "of the same bytes on the CPU", "One of the two backends has a fault.");
  } else {
    std::printf("  not compared: the recorded score is for the whole held-out text\n");
  }
  if (offloaded) {
    model<Kind> const again(file);
    cpu_layers<Kind> const in_memory(again.moe, again.router);
    double const expected = evaluate_with_progress(again, in_memory, text, wanted.threads).bits_per_byte;
    if (score.bits_per_byte != expected)
      throw std::runtime_error("expected the bits of experts in memory. This is a fault.");
    std::printf("  the same bits as with all experts in memory\n");
  }
  std::printf("  %.1f s, %.0f bytes/s\n", score.seconds, static_cast<double>(score.bytes) / score.seconds);

  report_usage(score, wanted.picture);
  if (offloaded) report_offloading(*offloaded);

  std::printf("\nContinuation, temperature %g, seed %llu\n\n", wanted.temperature,
              static_cast<unsigned long long>(wanted.seed));
  write_continuation(weights, layers, wanted);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    options const wanted = parse(argc, argv);
    if (wanted.help) {
      std::printf("%s", usage_text.data());
    } else {
      kinds::with(wanted.model, [&]<class Kind>() { run<Kind>(wanted); });
    }
    return 0;
  } catch (usage_error const& wrong) {
    std::fprintf(stderr, "tiny_lm: %s\n\n%s", wrong.what(), usage_text.data());
    return 2;
  } catch (std::exception const& wrong) {
    std::fflush(stdout);
    std::fprintf(stderr, "tiny_lm: %s\n", wrong.what());
    return 1;
  }
}
