#pragma once

#include <nlohmann/json.hpp>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "backend/cuda/device.cuh"
#include "support/random_numbers.hpp"
#include "support/set_arguments.hpp"

/// What an emulator that stands in for the CUDA runtime counts: one JSON object per launch, in the file that PTXEMU_STATS
/// names.
namespace support {

/// Bytes between global memory and a kernel.
struct traffic {
  std::int64_t loads = 0, stores = 0;
  std::int64_t all() const { return loads + stores; }
};

/// The launches that were added to the file since the last call.
class counters {
 public:
  /// Ends the program where there are none.
  counters() {
    char const* const file = std::getenv("PTXEMU_STATS");
    if (file == nullptr) {
      std::printf("skipped: no counters: PTXEMU_STATS names no file for them\n");
      std::exit(0);
    }
    if (!has_device()) std::exit(0);
    std::remove(file);  // of an earlier run
    file_ = file;
  }

  std::vector<nlohmann::json> next() {
    std::vector<nlohmann::json> launches;
    std::ifstream in(file_);
    in.seekg(read_);
    while (in >> std::ws && in.peek() != EOF) {
      in >> launches.emplace_back();
      read_ = in.tellg();
    }
    return launches;
  }

 private:
  std::string file_;
  std::streamoff read_ = 0;
};

/// A request moves whole sectors of 32 bytes, each once: what threads have in common is no traffic, and what lies apart is
/// more of it.
inline traffic moved_by(nlohmann::json const& launch) {
  return {32 * launch["global_load"]["sectors"].get<std::int64_t>(),
          32 * launch["global_store"]["sectors"].get<std::int64_t>()};
}

/// A call, and what was counted.
struct counted_call {
  std::int64_t tokens;
  std::vector<nlohmann::json> launches;
  std::vector<std::int64_t> counts;    ///< rows of each expert
  std::vector<std::int32_t> clusters;  ///< [tokens, top_k]: the labels of the tokens
  int enqueued;                        ///< what the layer says that it enqueues
};

/// Runs a layer on random tokens, so many rows per expert, with so many elements between tokens.
template <class Layer>
counted_call count(counters& from, int rows, int apart = 0) {
  using element = typename Layer::element;
  constexpr sy::shape dims = Layer::dims;
  constexpr int shared = Layer::expert_traits.shared_intermediate;
  std::int64_t const tokens = std::int64_t{rows} * dims.experts / dims.top_k;
  random_numbers random(1);
  auto const values = [&](auto kind, std::int64_t count) {
    std::vector<decltype(kind)> made(count);
    for (auto& value : made) value = decltype(kind)(static_cast<float>(2 * random.uniform() - 1));
    return made;
  };
  std::int64_t const matrices = std::int64_t{dims.experts} * dims.hidden * dims.intermediate;
  device_array<element> const x(values(element{}, tokens * (dims.hidden + apart))), y(tokens * dims.hidden);
  device_array<element> const weight(values(element{}, matrices)),
      shared_weight(values(element{}, dims.hidden * shared));
  device_array<float> const router(values(float{}, dims.experts * dims.hidden));
  device_array<std::int64_t> const counts(dims.experts);
  device_array<std::byte> const workspace(Layer::workspace_bytes(tokens));

  typename Layer::args args{};
  args.tokens = {x.data(), tokens, dims.hidden, dims.hidden + apart};
  args.output = Layer::rows(y.data(), tokens);
  args.workspace = {workspace.data(), workspace.size()};
  device_array<float> const ones(std::vector<float>(dims.hidden, 1.0f));
  std::vector<std::int32_t> chosen(tokens * dims.top_k);
  for (std::int32_t& label : chosen) label = random.below(dims.experts);
  device_array<std::int32_t> const labels(chosen);
  args.weights.up_proj = Layer::in_proj(weight.data());
  args.weights.down_proj = Layer::out_proj(weight.data());
  auto const shared_in = Layer::shared_in_proj(shared_weight.data());
  set_arguments(args, {.residual = args.tokens,
                       .router = {{router.data()}},
                       .norm = {{ones.data(), ones.data()}},
                       .gate_proj = args.weights.up_proj,
                       .shared = {shared_in, shared_in, Layer::shared_out_proj(shared_weight.data())},
                       .clusters = {labels.data(), dims.top_k}});
  args.decisions.counts = counts.data();
  stream own;
  Layer::forward(args, {.stream = own});
  own.wait();

  counted_call call{tokens, from.next(), counts.copy_out(), chosen, Layer::backend::template launches<Layer>(args)};
  if (call.launches.empty()) {
    std::printf("skipped: no counters: this CUDA runtime is no emulator that writes them\n");
    std::exit(0);
  }
  std::printf("\n%s, %lld tokens\n", sy::describe<Layer>().c_str(), static_cast<long long>(tokens));
  return call;
}

}  // namespace support
