#include "../lasting_json.hpp"
#include "device.hpp"
#include "methods/cpu.hpp"
#include "setup.hpp"
#include "table.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace {

namespace bench = switchyard::bench;

char const usage[] =
    "usage: switchyard_gpu_bench [--device | --check | --smoke] [--part=PART] [Google Benchmark's options]\n"
    "  --device     tells the name of the GPU\n"
    "  --check      compares every layer with float64 and times nothing\n"
    "  --smoke      a small layer, few tokens, checked and timed once: shows that everything runs\n"
    "  --part=PART  only the lines of layers, tilings, methods or quantised\n"
    "  --seconds=N  leaves out cases that would begin later, and says so\n"
    "  --benchmark_filter=<regex>                              only lines like this\n"
    "  --benchmark_out=<file> --benchmark_out_format=json      writes JSON beside the table, whole after every line\n";

std::string rounded(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

void add_context(bench::gpu_setup const& gpu) {
  cudaDeviceProp properties;
  int driver = 0, runtime = 0;
  bench::check_cuda(cudaGetDeviceProperties(&properties, 0));
  bench::check_cuda(cudaDriverGetVersion(&driver));
  bench::check_cuda(cudaRuntimeGetVersion(&runtime));
  std::pair<char const*, std::string> const context[] = {
      {"gpu", properties.name},
      {"compute_capability", std::to_string(properties.major) + "." + std::to_string(properties.minor)},
      {"multiprocessors", std::to_string(properties.multiProcessorCount)},
      {"l2_mebibytes", rounded(static_cast<double>(gpu.cache_bytes) / (1 << 20))},
      {"cuda_driver", version_text(driver)},
      {"cuda_runtime", version_text(runtime)},
      {"cublas", gpu.peer != nullptr ? std::to_string(gpu.peer->version()) : "does not start"},
      {"peak_gflops", rounded(gpu.machine.flops / 1e9)},
      {"memory_gigabytes_per_second", rounded(gpu.machine.bytes / 1e9)}};
  for (auto const& [key, value] : context) benchmark::AddCustomContext(key, value);
}

int run(int argc, char** argv) {
  bench::gpu_setup& gpu = bench::current_gpu();
  bool check = false, own_table = true, has_file = false, device_alone = false;
  std::string part;
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    std::string_view const option = argv[i];
    if (option == "--smoke") {
      gpu.smoke = true;
    } else if (option == "--check") {
      check = true;
    } else if (option == "--device") {
      device_alone = true;
    } else if (option.starts_with("--part=")) {
      part = option.substr(std::strlen("--part="));
    } else if (option.starts_with("--seconds=")) {
      gpu.deadline =
          std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[i] + std::strlen("--seconds=")));
    } else {
      if (option.starts_with("--benchmark_format") || option.starts_with("--benchmark_list")) own_table = false;
      if (option.starts_with("--benchmark_out=")) has_file = true;
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  benchmark::Initialize(&argc, argv);
  bool const part_known =
      part.empty() || part == "layers" || part == "tilings" || part == "methods" || part == "quantised";
  if (!part_known || benchmark::ReportUnrecognizedArguments(argc, argv)) {
    std::fputs(usage, stderr);
    return 1;
  }

  int devices = 0;
  if (cudaError_t const code = cudaGetDeviceCount(&devices); code != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device (%s)\n", code == cudaSuccess ? "none found" : cudaGetErrorString(code));
    return 0;
  }
  if (device_alone) {
    cudaDeviceProp properties;
    bench::check_cuda(cudaGetDeviceProperties(&properties, 0));
    std::printf("%s, compute capability %d.%d\n", properties.name, properties.major, properties.minor);
    return 0;
  }
  bench::check_cuda(cudaStreamCreate(&gpu.stream));
  gpu.cache_bytes = bench::attribute(cudaDevAttrL2CacheSize);
  auto& layers = bench::compiled_layers();
  std::sort(layers.begin(), layers.end(), [](auto const& a, auto const& b) { return a.first < b.first; });
  for (bench::gpu_methods& of : bench::compiled_methods()) bench::add_cpu_methods(of);

  bool const has_layers = part.empty() || part == "layers", has_methods = part.empty() || part == "methods";
  bool agrees = true;
  if (check || gpu.smoke) {
    std::printf("Against float64; error: relative Frobenius norm, at most 1e-2.\n");
    for (auto const& [place, layer] : layers) {
      if (has_layers && (place == 0) == gpu.smoke) agrees = bench::agrees_with_double(layer, place) && agrees;
    }
    for (bench::gpu_methods const& of : bench::compiled_methods()) {
      if (has_methods && of.small == gpu.smoke) agrees = bench::methods_agree(of) && agrees;
    }
    std::printf("%s\n", agrees ? "All layers agree with float64." : "FAILED: a layer does not agree with float64.");
    if (check) return agrees ? 0 : 1;
  }

  try {
    gpu.peer = std::make_unique<bench::cublas>(gpu.stream);
  } catch (std::exception const& e) {
    std::printf("No peers and no peak of products: %s.\n", e.what());
  }
  gpu.machine = bench::measure_gpu_ceilings(gpu);
  std::printf("Ceilings: %.1f TFLOP/s of bfloat16 products, %.1f GB/s of device memory\n", gpu.machine.flops / 1e12,
              gpu.machine.bytes / 1e9);
  add_context(gpu);
  if (has_layers) bench::add_layer_lines();
  if (part.empty() || part == "tilings") bench::add_tiling_lines();
  if (has_methods) bench::add_method_lines();
  if (part.empty() || part == "quantised") bench::add_quantised_lines();
  bench::gpu_table table;
  bench::lasting_json file;
  benchmark::RunSpecifiedBenchmarks(own_table ? &table : nullptr, has_file ? &file : nullptr);
  benchmark::Shutdown();
  if (!bench::all_lines_are_right()) std::printf("FAILED: a line of the table is wrong.\n");
  return agrees && bench::all_lines_are_right() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (std::exception const& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
