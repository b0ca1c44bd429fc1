#include "device.cuh"
#include "setup.hpp"
#include "table.hpp"

#include <benchmark/benchmark.h>

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
    "usage: switchyard_gpu_bench [--check | --smoke] [Google Benchmark's options]\n"
    "  --check      compares every layer with float64 and times nothing\n"
    "  --smoke      a small layer, few tokens, checked and timed once: shows that everything runs\n"
    "  --seconds=N  leaves out, as failed, cases that would begin later\n"
    "  --benchmark_filter=<regex>                              only lines like this\n"
    "  --benchmark_out=<file> --benchmark_out_format=json      writes JSON beside the table\n";

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
  bool check = false, own_table = true;
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    std::string_view const option = argv[i];
    if (option == "--smoke") {
      gpu.smoke = true;
    } else if (option == "--check") {
      check = true;
    } else if (option.starts_with("--seconds=")) {
      gpu.deadline =
          std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[i] + std::strlen("--seconds=")));
    } else {
      if (option.starts_with("--benchmark_format") || option.starts_with("--benchmark_list")) own_table = false;
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    std::fputs(usage, stderr);
    return 1;
  }

  int devices = 0;
  if (cudaError_t const code = cudaGetDeviceCount(&devices); code != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device (%s)\n", code == cudaSuccess ? "none found" : cudaGetErrorString(code));
    return 0;
  }
  bench::check_cuda(cudaStreamCreate(&gpu.stream));
  gpu.cache_bytes = bench::attribute(cudaDevAttrL2CacheSize);

  bool agrees = true;
  if (check || gpu.smoke) {
    std::printf("Against float64; error: relative Frobenius norm, at most 1e-2.\n");
    for (bench::bench_layer const& layer : bench::bench_layers()) {
      if (layer.small == gpu.smoke) agrees = layer.agrees() && agrees;
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
  for (bench::bench_layer const& layer : bench::bench_layers()) {
    if (layer.small == gpu.smoke) layer.add_lines();
  }
  bench::gpu_table table;
  benchmark::RunSpecifiedBenchmarks(own_table ? &table : nullptr);
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
