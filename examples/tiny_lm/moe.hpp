#pragma once

#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "support/set_arguments.hpp"

/// The model's Mixture-of-Experts layers, as its readers call them: on whichever backend they run.
namespace tiny_lm {

namespace sy = switchyard;

inline constexpr int context = 256;  ///< bytes that the model sees at once
inline constexpr int blocks = 4;

/// The kinds of feed-forward block. A kind has the layer of the first block and that of the others, and two names: that
/// on the command line, and that in its weight file.
///
/// The files have the expert weights in bfloat16. They are widened to float on loading, for a layer of bfloat16
/// elements would round the activations too, and the recorded scores were computed with float activations.
namespace kinds {

template <class Backend, class Router, int TopK, int Intermediate = 64, int Experts = 8,
          class Expert = sy::expert::gated_mlp<sy::silu>>
using layer_of = sy::layer<sy::shape{.hidden = 128, .intermediate = Intermediate, .experts = Experts, .top_k = TopK},
                           Router, sy::capacity::dropless, Expert, Backend>;

/// Whether a layer is a product-key memory: its experts are the rows of a table.
template <class Layer>
inline constexpr bool is_memory = std::is_same_v<typename Layer::expert, sy::expert::value_row>;

/// The sizes that stand in a weight file.
struct written_sizes {
  int experts, top_k, intermediate;
};

/// A kind whose blocks are alike.
template <class Router, int TopK, int Intermediate = 64, int Experts = 8,
          class Expert = sy::expert::gated_mlp<sy::silu>>
struct uniform {
  static constexpr written_sizes sizes{Experts, TopK, Intermediate};
  template <class Backend>
  using first = layer_of<Backend, Router, TopK, Intermediate, Experts, Expert>;
  template <class Backend>
  using others = first<Backend>;
};

/// The model that is shipped.
struct shipped : uniform<sy::router::softmax_top_k, 2, 192> {
  static constexpr std::string_view option = "shipped", name = "moe";
};

// The models that are compared have smaller experts.
struct top2 : uniform<sy::router::softmax_top_k, 2> {
  static constexpr std::string_view option = "top2", name = "moe";
};
struct switch_top1 : uniform<sy::router::switch_top1, 1> {
  static constexpr std::string_view option = "switch", name = "switch";
};
struct omni : uniform<sy::router::shared<sy::router::switch_top1>, 1> {
  static constexpr std::string_view option = "omni", name = "omni";
};
struct sigma : uniform<sy::router::sigma_moe, 2> {
  static constexpr std::string_view option = "sigma", name = "sigma";
};
/// The same layers, trained without the entropy term.
struct sigma_without_entropy : uniform<sy::router::sigma_moe, 2> {
  static constexpr std::string_view option = "sigma_without_entropy", name = "sigma_without_entropy";
};
/// One expert for all, as wide as the two that a token of the others visits: no Mixture of Experts.
struct dense : uniform<sy::router::softmax_top_k, 1, 128, 1> {
  static constexpr std::string_view option = "dense", name = "dense";
  static constexpr written_sizes sizes{.experts = 8, .top_k = 2, .intermediate = 64};  // of the models beside it
};
/// Dense, of whose 128 inner values the 32 largest go on.
struct topk
    : uniform<sy::router::softmax_top_k, 1, 128, 1, sy::expert::top_k_units<sy::expert::gated_mlp<sy::silu>, 32>> {
  static constexpr std::string_view option = "topk", name = "topk";
  static constexpr written_sizes sizes = dense::sizes;
};
/// The plain block with ReLU that MoEfication was published for, four times as wide as the model.
struct relu : uniform<sy::router::softmax_top_k, 1, 512, 1, sy::expert::mlp<sy::relu>> {
  static constexpr std::string_view option = "relu", name = "relu";
  static constexpr written_sizes sizes{.experts = 8, .top_k = 2, .intermediate = 512};
};
/// A table of 36 x 36 rows in place of experts, of which 8 heads add the best 12 each.
struct pkm : uniform<sy::router::product_keys<36, 8, sy::router::query::token, sy::router::weighting::relu>, 8 * 12, 1,
                     36 * 36, sy::expert::value_row> {
  static constexpr std::string_view option = "pkm", name = "pkm";
};
/// Nothing has chosen before the first block. The others read tables that were collected on the training text.
struct ac {
  static constexpr std::string_view option = "ac", name = "ac";
  static constexpr written_sizes sizes{.experts = 8, .top_k = 2, .intermediate = 64};
  template <class Backend>
  using first = layer_of<Backend, sy::router::top_k_softmax, 2>;
  template <class Backend>
  using others = layer_of<Backend, sy::router::adaptive_clustering<sy::router::top_k_softmax>, 2>;
};

/// A byte goes up through two strata of experts. The layer adds the residual itself, and normalises.
struct stratified : uniform<sy::router::stratified<sy::router::softmax_top_k, 4, 4>, 2> {
  static constexpr std::string_view option = "stratified", name = "stratified";
};

/// Calls `body.template operator()<Kind>()` for the kind that the command line calls so. Whether there is one.
template <class Body>
bool with(std::string_view option, Body const& body) {
  bool found = false;
  auto const offer = [&]<class Kind>() {
    if (Kind::option != option) return;
    found = true;
    body.template operator()<Kind>();
  };
  offer.template operator()<shipped>();
  offer.template operator()<dense>();
  offer.template operator()<top2>();
  offer.template operator()<switch_top1>();
  offer.template operator()<omni>();
  offer.template operator()<ac>();
  offer.template operator()<stratified>();
  offer.template operator()<sigma>();
  offer.template operator()<sigma_without_entropy>();
  offer.template operator()<topk>();
  offer.template operator()<pkm>();
  offer.template operator()<relu>();
  return found;
}

}  // namespace kinds

/// The weights of one block's layer.
struct moe_weights {
  std::vector<float> router;              ///< [experts, hidden]; empty where the model owns it; all gates of all strata
  std::vector<float> norm;                ///< [strata, 2, hidden] weight and bias; only where the router has strata
  std::vector<float> feature_scale;       ///< [experts, hidden]; only where the router has clusters
  std::vector<float> gate_proj, up_proj;  ///< [experts, intermediate, hidden]
  std::vector<float> down_proj;           ///< [experts, hidden, intermediate]

  // Of a product-key memory, which has nothing else.
  std::vector<float> first_keys, second_keys;  ///< [heads, keys, hidden / 2]
  std::vector<float> values;                   ///< [experts, hidden], the rows
};

/// One reader's way to the layers, with the memory that its calls need. Not to be used by two threads at a time.
class moe_worker {
 public:
  virtual ~moe_worker() = default;

  /// Runs the layer of `block` on at most `context` rows. `tokens`, `residual` and `output` are [rows, hidden] in host
  /// memory; `residual` is read by layers with strata, whose output is the block's. Adds to `used`, [experts], how many
  /// tokens chose each expert.
  virtual void forward(int block, float const* tokens, float const* residual, int rows, float* output,
                       std::int64_t* used) = 0;
};

/// The layers of all blocks on one backend. Any number of readers share them; they outlive their workers.
class moe_layers {
 public:
  virtual ~moe_layers() = default;
  virtual std::string describe() const = 0;
  virtual std::unique_ptr<moe_worker> worker() const = 0;
};

/// What a call of one block's layer takes beside its tokens, wherever the pointers lead.
struct moe_pointers {
  float const *router, *feature_scale, *norm, *gate_proj, *up_proj, *down_proj;
  float const *first_keys, *second_keys, *values;
};

/// The arguments of one call. `before` are the choices of the block before, [rows, top_k].
template <class Layer>
typename Layer::args arguments(moe_pointers const& w, float const* tokens, float const* residual, int rows,
                               float* output, std::span<std::byte> workspace, std::int32_t const* before) {
  typename Layer::args args{};
  args.tokens = Layer::rows(tokens, rows);
  if constexpr (kinds::is_memory<Layer>) {
    args.weights.router = {w.first_keys, w.second_keys};
    args.weights.values = Layer::table(w.values);
  } else {
    args.weights.up_proj = Layer::in_proj(w.up_proj);
    args.weights.down_proj = Layer::out_proj(w.down_proj);
    support::optional_arguments<float> optional{
        .residual = Layer::rows(residual, rows),
        .router = {{w.router}},
        .gate_proj = Layer::in_proj(w.gate_proj),
        .clusters = {.labels = before, .choices = Layer::dims.top_k, .feature_scale = w.feature_scale}};
    if constexpr (sy::router::climbs<typename Layer::router::schedule>) {
      std::int64_t row = 0;
      for (int i = 0; i < Layer::router::schedule::passes; ++i) {
        optional.router[i].weight = w.router + row * Layer::dims.hidden;
        row += Layer::dims.experts - Layer::router::schedule::first_expert(i);
        float const* const norm = w.norm + std::int64_t{2} * i * Layer::dims.hidden;
        optional.norm[i] = {norm, norm + Layer::dims.hidden};
      }
    }
    support::set_arguments(args, optional);
  }
  args.output = Layer::rows(output, rows);
  args.workspace = workspace;
  return args;
}

/// The layers on the CPU, where they read the weights in place.
template <class Kind>
class cpu_layers final : public moe_layers {
  using first = typename Kind::template first<sy::backend::cpu>;
  using others = typename Kind::template others<sy::backend::cpu>;

 public:
  /// `shared_router` is the model's, for kinds whose model owns it.
  cpu_layers(std::span<moe_weights const> weights, std::vector<float> const& shared_router)
      : weights_(weights), shared_router_(shared_router.data()) {}
  std::string describe() const override { return sy::describe<others>(); }
  std::unique_ptr<moe_worker> worker() const override { return std::make_unique<cpu_worker>(weights_, shared_router_); }

 private:
  class cpu_worker final : public moe_worker {
   public:
    cpu_worker(std::span<moe_weights const> weights, float const* shared_router)
        : weights_(weights),
          shared_router_(shared_router),
          workspace_(std::max(first::workspace_bytes(context), others::workspace_bytes(context))) {}

    void forward(int block, float const* tokens, float const* residual, int rows, float* output,
                 std::int64_t* used) override {
      if (block == 0) {
        call<first>(block, tokens, residual, rows, output, used);
      } else {
        call<others>(block, tokens, residual, rows, output, used);
      }
    }

   private:
    template <class Layer>
    void call(int block, float const* tokens, float const* residual, int rows, float* output, std::int64_t* used) {
      moe_weights const& w = weights_[block];
      std::int64_t load[Layer::dims.experts];
      typename Layer::args args =
          arguments<Layer>({w.router.empty() ? shared_router_ : w.router.data(), w.feature_scale.data(), w.norm.data(),
                            w.gate_proj.data(), w.up_proj.data(), w.down_proj.data(), w.first_keys.data(),
                            w.second_keys.data(), w.values.data()},
                           tokens, residual, rows, output, workspace_, chosen_.data());
      args.decisions.experts = chosen_.data();  // read before it is written
      args.decisions.load = load;
      // One thread: whoever has many texts to read gives each thread a reader, and one byte is too little to share.
      Layer::forward(args, {.threads = 1});
      for (int e = 0; e < Layer::dims.experts; ++e) used[e] += load[e];
    }

    std::span<moe_weights const> weights_;
    float const* shared_router_;
    std::vector<std::byte> workspace_;
    std::vector<std::int32_t> chosen_ =
        std::vector<std::int32_t>(context * first::dims.top_k * first::router::schedule::passes);
  };

  std::span<moe_weights const> weights_;
  float const* shared_router_;
};

/// The same layers on the GPU, with a copy of the weights there.
///
/// Throws `sy::cuda_error` where there is no device, and std::runtime_error in a program that was built without nvcc.
std::unique_ptr<moe_layers> layers_on_cuda(std::string_view kind, std::span<moe_weights const> weights,
                                           std::vector<float> const& shared_router);

}  // namespace tiny_lm
