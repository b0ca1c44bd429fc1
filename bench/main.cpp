#include "ceilings.hpp"
#include "lasting_json.hpp"
#include "steps.hpp"
#include "table.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace {

namespace bench = switchyard::bench;

char const usage[] =
    "usage: switchyard_bench [--smoke] [--threads=N] [Google Benchmark's options]\n"
    "  --smoke      small layers and few tokens, under 30 seconds: shows that everything runs\n"
    "  --threads=N  threads of every call (or SWITCHYARD_BENCH_THREADS=N); default: all\n"
    "  --benchmark_filter=<regex>                              only lines like this\n"
    "  --benchmark_out=<file> --benchmark_out_format=json      writes JSON beside the table\n";

/// Takes our options out of the command line; false: one of them is wrong.
bool read_options(int& argc, char** argv, bench::settings& to) {
  char const* threads = std::getenv("SWITCHYARD_BENCH_THREADS");
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    std::string_view const option = argv[i];
    if (option == "--smoke") {
      to.smoke = true;
    } else if (option.starts_with("--threads=")) {
      threads = argv[i] + std::strlen("--threads=");
    } else {
      if (option.starts_with("--benchmark_min_time")) to.has_min_time = true;
      if (option.starts_with("--benchmark_repetitions")) to.has_repetitions = true;
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  to.threads = threads != nullptr ? std::atoi(threads) : switchyard::cpu::resolved({}).threads;
  return to.threads >= 1;
}

std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(": ") + 2);
  }
  return "unknown";
}

std::string one_decimal(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

std::string compiler_name() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

}  // namespace

int main(int argc, char** argv) {
  bench::settings& with = bench::current_settings();
  if (!read_options(argc, argv, with)) {
    std::fputs(usage, stderr);
    return 1;
  }
  bool wants_own_table = true, has_file = false;
  for (int i = 1; i < argc; ++i) {
    std::string_view const option = argv[i];
    if (option.starts_with("--benchmark_format") || option.starts_with("--benchmark_list")) wants_own_table = false;
    if (option.starts_with("--benchmark_out=")) has_file = true;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    std::fputs(usage, stderr);
    return 1;
  }

  with.machine = bench::measure_ceilings(with.threads, with.smoke ? 0.3 : 3.0);
  std::pair<char const*, std::string> const context[] = {
      {"cpu", cpu_model()},
      {"threads", std::to_string(with.threads)},
      {"instructions", std::string(switchyard::name_of(switchyard::cpu::resolved({}).instructions))},
      {"compiler", compiler_name()},
      {"peak_gflops", one_decimal(with.machine.flops / 1e9)},
      {"peak_tile_gflops", one_decimal(with.machine.tile_flops / 1e9)},
      {"read_gigabytes_per_second", one_decimal(with.machine.bytes / 1e9)}};
  for (auto const& [key, value] : context) benchmark::AddCustomContext(key, value);

  auto& layers = bench::compiled_layers();
  std::sort(layers.begin(), layers.end(), [](auto const& a, auto const& b) { return a.place < b.place; });
  for (bench::compiled_layer const& one : layers) {
    std::visit(
        [&](auto const& layer) {
          if (!with.smoke || bench::weight_bytes(layer) <= 64 * bench::mib) bench::add_lines(layer);
        },
        one.layer);
  }
  bench::table_reporter table;
  bench::lasting_json file;
  benchmark::RunSpecifiedBenchmarks(wants_own_table ? &table : nullptr, has_file ? &file : nullptr);
  benchmark::Shutdown();
}
