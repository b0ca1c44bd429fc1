// Compresses the routed experts of a checkpoint by ResMoE, and restores them: safetensors in, safetensors out.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include "compress.hpp"
#include "options.hpp"
#include "report.hpp"
#include "restore.hpp"

#if defined(COMPRESS_EXPERTS_WITH_LAPACK)
#include <switchyard/compression/lapack_svd.hpp>
#endif

namespace {

using namespace compress_experts;

std::sig_atomic_t volatile interrupted = 0;
extern "C" void interrupt(int) { interrupted = 1; }

std::string duration(double seconds) {
  if (seconds < 100.0) return detail::format("%.0f s", seconds);
  if (seconds < 6000.0) return detail::format("%.0f min", seconds / 60.0);
  return detail::format("%.1f h", seconds / 3600.0);
}

/// Prints how far a run is: in place on a terminal, else a line every half minute.
class progress_line {
 public:
  ~progress_line() { clear(); }

  bool operator()(step const& s) {
    auto const now = std::chrono::steady_clock::now();
    if (s.layer != layer_) {
      layer_ = s.layer;
      if (first_layer_ < 0) first_layer_ = layer_;
      layer_began_ = now;
    }
    double const since = std::chrono::duration<double>(now - printed_).count();
    if (since < (to_terminal() ? 0.2 : 30.0)) return interrupted == 0;
    printed_ = now;
    std::string const text = line(s, now);
    if (to_terminal()) {
      std::printf("\r\033[K%s", text.c_str());
    } else {
      std::printf("%s\n", text.c_str());
    }
    std::fflush(stdout);
    drawn_ = true;
    return interrupted == 0;
  }
  void clear() {
    if (drawn_ && to_terminal()) std::printf("\r\033[K");
    drawn_ = false;
  }

 private:
  static bool to_terminal() {
#if __has_include(<unistd.h>)
    return isatty(STDOUT_FILENO) != 0;
#else
    return false;
#endif
  }

  std::string line(step const& s, std::chrono::steady_clock::time_point now) const {
    compression::progress const& p = s.of_layer;
    if (s.name.empty()) return detail::format("writing the output: %.0f %%", 100.0 * p.done);
    std::string text = detail::format("layer %d of %d: ", s.layer + 1, s.layers);
    switch (p.phase) {
      case compression::phase::matching:
        text += detail::format("start %d, iteration %d, expert %d", p.start, p.iteration, p.expert);
        break;
      case compression::phase::comparing: text += detail::format("comparing, expert %d", p.expert); break;
      case compression::phase::compressing: text += detail::format("compressing, expert %d", p.expert); break;
    }
    text += detail::format("; %.0f %% of this", 100.0 * p.done);
    if (p.seconds_left >= 0.0) text += ", " + duration(p.seconds_left) + " left";
    if (layer_ > first_layer_) {
      double const each = std::chrono::duration<double>(layer_began_ - began_).count() / (layer_ - first_layer_);
      double const now_in_layer = std::chrono::duration<double>(now - layer_began_).count();
      text += "; about " + duration(std::max(each - now_in_layer, 0.0) + each * (s.layers - s.layer - 1)) + " for all";
    }
    return text;
  }

  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now(), layer_began_ = began_,
                                        printed_ = began_ - std::chrono::hours(1);
  int layer_ = -1, first_layer_ = -1;
  bool drawn_ = false;
};

compression::truncated_svd svd() {
#if defined(COMPRESS_EXPERTS_WITH_LAPACK)
  return compression::lapack_svd;
#else
  return {};
#endif
}

}  // namespace

int main(int argc, char** argv) {
  try {
    options const wanted = parse({argv + 1, argv + argc});
    if (wanted.help) {
      std::printf("%s", usage_text.data());
      return 0;
    }
    std::signal(SIGINT, interrupt);
    std::signal(SIGTERM, interrupt);
    progress_line line;
    auto const watch = [&](step const& s) { return line(s); };
    if (wanted.restore) {
      restore(wanted, watch);
      line.clear();
    } else {
      std::vector<layer_report> const reports = compress(wanted, svd(), watch);
      line.clear();
      std::printf("%s", table(reports).c_str());
    }
    std::printf("%s is written\n", wanted.output.c_str());
    return 0;
  } catch (usage_error const& wrong) {
    std::fprintf(stderr, "compress_experts: %s\n\n%s", wrong.what(), usage_text.data());
    return 2;
  } catch (stopped const& where) {
    std::fflush(stdout);
    std::fprintf(stderr, "\ncompress_experts: %s\n", where.what());
    return 130;
  } catch (std::exception const& wrong) {
    std::fflush(stdout);
    std::fprintf(stderr, "compress_experts: %s\n", wrong.what());
    return 1;
  }
}
