#pragma once

#include "peer.hpp"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace switchyard::bench::peers {

/// A layer of silu-gated experts whose matrices are stored in a format of GGUF files, experts and rows back to back.
struct stored_problem {
  int hidden, intermediate, experts, top_k;
  std::string format;         ///< the file's name of it, such as q4_K
  std::int64_t matrix_bytes;  ///< of one projection of all experts
  struct weights {
    void const *gate_proj, *up_proj, *down_proj;
  };
  std::vector<weights> copies;
};

/// A library that computes whole layers, on given routes.
class whole_layer {
 public:
  virtual ~whole_layer() = default;
  virtual void prepare(std::int64_t tokens) = 0;  ///< before the first call with so many
  virtual void forward(call<float> const& c) = 0;
};

// Whatever they throw means that the library does not have such a layer here.
std::string ggml_name();
/// `repacked`: weights in the order that the library likes best, where it has one for the format. Packing them is not timed.
std::unique_ptr<whole_layer> ggml(stored_problem const& of, bool repacked, int threads);

/// Signed bytes with a scale for each row, as `quantised::int8_channel` has them.
struct int8_problem {
  int hidden, intermediate, experts, top_k;
  struct matrix {
    std::int8_t const* weight;
    float const* scale;
  };
  struct weights {
    matrix gate_proj, up_proj, down_proj;
  };
  std::vector<weights> copies;
};
/// Products of integers: rows of tokens are rounded to bytes with a scale each.
std::unique_ptr<products<float>> onednn_int8(int8_problem const& of, int threads);

}  // namespace switchyard::bench::peers
