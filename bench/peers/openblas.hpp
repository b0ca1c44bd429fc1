#pragma once

#include <cstdint>
#include <vector>

/// The layer that a user of OpenBLAS writes: a loop over experts, each three products, on given routes.
namespace switchyard::bench::openblas {

/// How threads share the work.
enum class threading {
  one_expert_each,  ///< OpenMP over experts, OpenBLAS on one thread in each
  inside_products   ///< experts one after the other, OpenBLAS on all threads
};

struct problem {
  std::int64_t tokens = 0;
  int hidden = 0, intermediate = 0, experts = 0, top_k = 0;
  float const* input = nullptr;          ///< [tokens, hidden]
  float const* gate_proj = nullptr;      ///< [experts, intermediate, hidden]
  float const* up_proj = nullptr;        ///< [experts, intermediate, hidden]
  float const* down_proj = nullptr;      ///< [experts, hidden, intermediate]
  std::int32_t const* routes = nullptr;  ///< [tokens, top_k] expert ids
  float const* weights = nullptr;        ///< [tokens, top_k] combine weights
  float* output = nullptr;               ///< [tokens, hidden]
};

/// Temporaries, kept between calls.
struct scratch {
  explicit scratch(problem const& largest);

  std::vector<std::int32_t> offsets, next, pair_of, row_of;
  std::vector<float> gathered, gate, up, outer;
};

/// One silu-gated layer.
void forward(problem const& p, threading how, int threads, scratch& s);

/// Version and kernels of the library that is loaded.
char const* version();

}  // namespace switchyard::bench::openblas
