#pragma once

#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

/// The model's Mixture-of-Experts layers, as its readers call them: on whichever backend they run.
namespace tiny_lm {

namespace sy = switchyard;

inline constexpr int context = 256;  ///< bytes that the model sees at once
inline constexpr int blocks = 4;

/// The feed-forward layer of the shipped model.
///
/// The file has the expert weights in bfloat16. They are widened to float on loading, for a layer of bfloat16
/// elements would round the activations too, and the recorded score was computed with float activations.
template <class Backend>
using moe_layer_on =
    sy::layer<sy::shape{.hidden = 128, .intermediate = 192, .experts = 8, .top_k = 2}, sy::router::softmax_top_k,
              sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>, Backend>;
using moe_layer = moe_layer_on<sy::backend::cpu>;

/// The weights of one block's layer.
struct moe_weights {
  std::vector<float> router;              ///< [experts, hidden]
  std::vector<float> gate_proj, up_proj;  ///< [experts, intermediate, hidden]
  std::vector<float> down_proj;           ///< [experts, hidden, intermediate]
};

/// One reader's way to the layers, with the memory that its calls need. Not to be used by two threads at a time.
class moe_worker {
 public:
  virtual ~moe_worker() = default;

  /// Runs the layer of `block` on at most `context` rows. `tokens` and `output` are [rows, hidden] in host memory.
  /// Adds to `used`, [experts], how many tokens chose each expert.
  virtual void forward(int block, float const* tokens, int rows, float* output, std::int64_t* used) = 0;
};

/// The layers of all blocks on one backend. Any number of readers share them; they outlive their workers.
class moe_layers {
 public:
  virtual ~moe_layers() = default;
  virtual std::string describe() const = 0;
  virtual std::unique_ptr<moe_worker> worker() const = 0;
};

/// The layers on the CPU, where they read the weights in place.
template <class Layer>
class cpu_layers final : public moe_layers {
 public:
  explicit cpu_layers(std::span<moe_weights const> weights) : weights_(weights) {}
  std::string describe() const override { return sy::describe<Layer>(); }
  std::unique_ptr<moe_worker> worker() const override { return std::make_unique<cpu_worker>(weights_); }

 private:
  class cpu_worker final : public moe_worker {
   public:
    explicit cpu_worker(std::span<moe_weights const> weights)
        : weights_(weights), workspace_(Layer::workspace_bytes(context)) {}

    void forward(int block, float const* tokens, int rows, float* output, std::int64_t* used) override {
      moe_weights const& w = weights_[block];
      std::int64_t load[Layer::dims.experts];
      // One thread: whoever has many texts to read gives each thread a reader, and one byte is too little to share.
      Layer::forward({.tokens = Layer::rows(tokens, rows),
                      .weights = {.router = {.weight = w.router.data()},
                                  .gate_proj = Layer::in_proj(w.gate_proj.data()),
                                  .up_proj = Layer::in_proj(w.up_proj.data()),
                                  .down_proj = Layer::out_proj(w.down_proj.data())},
                      .output = Layer::rows(output, rows),
                      .workspace = workspace_,
                      .decisions = {.load = load}},
                     {.threads = 1});
      for (int e = 0; e < Layer::dims.experts; ++e) used[e] += load[e];
    }

   private:
    std::span<moe_weights const> weights_;
    std::vector<std::byte> workspace_;
  };

  std::span<moe_weights const> weights_;
};

/// The same layers on the GPU, with a copy of the weights there.
///
/// Throws `sy::cuda_error` where there is no device, and std::runtime_error in a program that was built without nvcc.
std::unique_ptr<moe_layers> layers_on_cuda(std::span<moe_weights const> weights);

}  // namespace tiny_lm
