#pragma once

#include <switchyard/backend/backend_policy.hpp>
#include <switchyard/capacity/dropless.hpp>
#include <switchyard/capacity/factor.hpp>
#include <switchyard/capacity/fixed.hpp>
#include <switchyard/capacity/wrappers.hpp>
#include <switchyard/expert/gated_mlp.hpp>
#include <switchyard/expert/mlp.hpp>
#include <switchyard/expert/null_experts.hpp>
#include <switchyard/expert/wrappers.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/router/sparsemixer.hpp>
#include <switchyard/router/switch_top1.hpp>
#include <switchyard/router/top_k.hpp>
#include <switchyard/router/wrappers.hpp>

/// The Mixture-of-Experts layers of published models, by their published shapes: `presets::mixtral_8x7b<>`, or
/// with another element type or backend, `presets::mixtral_8x7b<float>`.
namespace switchyard::presets {

/// Switch Transformers in evaluation: capacity factor 2 with Mesh-TensorFlow's rounding and its minimum of 4.
template <class Element = bfloat16, class Backend = backend::cpu>
using switch_base_8 = layer<shape{.hidden = 768, .intermediate = 3072, .experts = 8, .top_k = 1}, router::switch_top1,
                            capacity::factor<2, 1, capacity::rounding::mesh, 4>, expert::mlp<relu>, Backend, Element>;

template <class Element = bfloat16, class Backend = backend::cpu>
using switch_base_128 =
    layer<shape{.hidden = 768, .intermediate = 3072, .experts = 128, .top_k = 1}, router::switch_top1,
          capacity::factor<2, 1, capacity::rounding::mesh, 4>, expert::mlp<relu>, Backend, Element>;

template <class Element = bfloat16, class Backend = backend::cpu>
using mixtral_8x7b = layer<shape{.hidden = 4096, .intermediate = 14336, .experts = 8, .top_k = 2},
                           router::softmax_top_k, capacity::dropless, expert::gated_mlp<silu>, Backend, Element>;

/// The first model with the Qwen2-MoE layer.
template <class Element = bfloat16, class Backend = backend::cpu>
using qwen1_5_moe_a2_7b =
    layer<shape{.hidden = 2048, .intermediate = 1408, .experts = 60, .top_k = 4}, router::softmax_top_k_raw,
          capacity::dropless, expert::with_shared<expert::gated_mlp<silu>, 5632, shared_gate::sigmoid>, Backend,
          Element>;

template <class Element = bfloat16, class Backend = backend::cpu>
using qwen2_57b_a14b =
    layer<shape{.hidden = 3584, .intermediate = 2560, .experts = 64, .top_k = 8}, router::softmax_top_k_raw,
          capacity::dropless, expert::with_shared<expert::gated_mlp<silu>, 20480, shared_gate::sigmoid>, Backend,
          Element>;

template <class Element = bfloat16, class Backend = backend::cpu>
using qwen3_30b_a3b = layer<shape{.hidden = 2048, .intermediate = 768, .experts = 128, .top_k = 8},
                            router::softmax_top_k, capacity::dropless, expert::gated_mlp<silu>, Backend, Element>;

template <class Element = bfloat16, class Backend = backend::cpu>
using olmoe_1b_7b = layer<shape{.hidden = 2048, .intermediate = 1024, .experts = 64, .top_k = 8},
                          router::softmax_top_k_raw, capacity::dropless, expert::gated_mlp<silu>, Backend, Element>;

/// Two shared experts of width 1408, computed as one.
template <class Element = bfloat16, class Backend = backend::cpu>
using deepseek_v2_lite =
    layer<shape{.hidden = 2048, .intermediate = 1408, .experts = 64, .top_k = 6}, router::softmax_top_k_raw,
          capacity::dropless, expert::with_shared<expert::gated_mlp<silu>, 2816>, Backend, Element>;

template <class Element = bfloat16, class Backend = backend::cpu>
using deepseek_v3 =
    layer<shape{.hidden = 7168, .intermediate = 2048, .experts = 256, .top_k = 8},
          router::scaled<router::top_k<router::scores::sigmoid,
                                       router::selection::grouped<8, 4, router::selection::group_score::top2_sum,
                                                                  router::selection::corrected>,
                                       router::weighting::sum>,
                         5, 2>,
          capacity::dropless, expert::with_shared<expert::gated_mlp<silu>, 2048>, Backend, Element>;

/// LongCat-Flash-Lite: of 384 experts that a token may choose, 128 hand it through.
template <class Element = bfloat16, class Backend = backend::cpu>
using longcat_flash_lite =
    layer<shape{.hidden = 3072, .intermediate = 1024, .experts = 256, .top_k = 12},
          router::scaled<
              router::top_k<router::scores::softmax, router::selection::corrected, router::weighting::as_scored>, 6>,
          capacity::dropless, expert::with_null_experts<expert::gated_mlp<silu>, null_experts{.identity = 128}>,
          Backend, Element>;

template <class Element = bfloat16, class Backend = backend::cpu>
using gpt_oss_20b = layer<shape{.hidden = 2880, .intermediate = 2880, .experts = 32, .top_k = 4},
                          router::with_bias<router::top_k_softmax>, capacity::dropless,
                          expert::with_bias<expert::gated_mlp<clamped_swiglu<>>>, Backend, Element>;

/// Granite 3.0 1B-A400M.
template <class Element = bfloat16, class Backend = backend::cpu>
using granite_1b_a400m = layer<shape{.hidden = 1024, .intermediate = 512, .experts = 32, .top_k = 8},
                               router::top_k_softmax, capacity::dropless, expert::gated_mlp<silu>, Backend, Element>;

/// Granite 3.0 3B-A800M.
template <class Element = bfloat16, class Backend = backend::cpu>
using granite_3b_a800m = layer<shape{.hidden = 1536, .intermediate = 512, .experts = 40, .top_k = 8},
                               router::top_k_softmax, capacity::dropless, expert::gated_mlp<silu>, Backend, Element>;

/// Llama 4 Scout.
template <class Element = bfloat16, class Backend = backend::cpu>
using llama4_scout = layer<shape{.hidden = 5120, .intermediate = 8192, .experts = 16, .top_k = 1},
                           router::on_input<router::sigmoid_top_k>, capacity::dropless,
                           expert::with_shared<expert::gated_mlp<silu>, 8192>, Backend, Element>;

/// Llama 4 Maverick.
template <class Element = bfloat16, class Backend = backend::cpu>
using llama4_maverick = layer<shape{.hidden = 5120, .intermediate = 8192, .experts = 128, .top_k = 1},
                              router::on_input<router::sigmoid_top_k>, capacity::dropless,
                              expert::with_shared<expert::gated_mlp<silu>, 8192>, Backend, Element>;

/// Phi-3.5-MoE.
template <class Element = bfloat16, class Backend = backend::cpu>
using phi3_5_moe = layer<shape{.hidden = 4096, .intermediate = 6400, .experts = 16, .top_k = 2},
                         router::sparsemixer<1, 100>, capacity::dropless, expert::gated_mlp<silu>, Backend, Element>;

template <class Element = bfloat16, class Backend = backend::cpu>
using dbrx = layer<shape{.hidden = 6144, .intermediate = 10752, .experts = 16, .top_k = 4}, router::softmax_top_k,
                   capacity::dropless, expert::gated_mlp<silu>, Backend, Element>;

/// sigma-MoE's language models: 47 million parameters on WikiText-103, 262 million there, 41 million on EnWik8.
template <class Element = bfloat16, class Backend = backend::cpu>
using sigma_moe_wikitext103_small = layer<shape{.hidden = 412, .intermediate = 128, .experts = 16, .top_k = 4},
                                          router::sigma_moe, capacity::dropless, expert::mlp<relu>, Backend, Element>;

template <class Element = bfloat16, class Backend = backend::cpu>
using sigma_moe_wikitext103_big = layer<shape{.hidden = 1024, .intermediate = 128, .experts = 32, .top_k = 4},
                                        router::sigma_moe, capacity::dropless, expert::mlp<relu>, Backend, Element>;

template <class Element = bfloat16, class Backend = backend::cpu>
using sigma_moe_enwik8 = layer<shape{.hidden = 512, .intermediate = 128, .experts = 16, .top_k = 4}, router::sigma_moe,
                               capacity::dropless, expert::mlp<relu>, Backend, Element>;

/// NLLB-MoE in evaluation: capacity for every token, weights renormalised after dropping, and the results scaled
/// by 0.8 for its expert output masking.
template <class Element = bfloat16, class Backend = backend::cpu>
using nllb_moe_54b = layer<shape{.hidden = 2048, .intermediate = 8192, .experts = 128, .top_k = 2},
                           router::softmax_top_k_raw, capacity::renormalised<capacity::share_of_tokens<1, 1>>,
                           expert::scaled<expert::with_bias<expert::mlp<relu>>, 4, 5>, Backend, Element>;

}  // namespace switchyard::presets
