#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <tuple>

#include "catch.hpp"

namespace sy = switchyard;
namespace presets = switchyard::presets;

namespace {

template <class Layer>
std::int64_t parameters() {
  return sy::costs<Layer>(0).parameters;
}

using all = std::tuple<presets::switch_base_8<>, presets::switch_base_128<>, presets::mixtral_8x7b<>,
                       presets::qwen1_5_moe_a2_7b<>, presets::qwen2_57b_a14b<>, presets::qwen3_30b_a3b<>,
                       presets::olmoe_1b_7b<>, presets::deepseek_v2_lite<>, presets::deepseek_v3<>,
                       presets::longcat_flash_lite<>, presets::gpt_oss_20b<>, presets::granite_1b_a400m<>,
                       presets::granite_3b_a800m<>, presets::llama4_scout<>, presets::llama4_maverick<>,
                       presets::phi3_5_moe<>, presets::dbrx<>, presets::sigma_moe_wikitext103_small<>,
                       presets::sigma_moe_wikitext103_big<>, presets::sigma_moe_enwik8<>, presets::nllb_moe_54b<>>;

template <class... Layers>
bool all_have_forward(std::tuple<Layers...>*) {
  void (*const volatile forward[])() = {reinterpret_cast<void (*)()>(&Layers::forward)...};
  return std::none_of(std::begin(forward), std::end(forward), [](auto pointer) { return pointer == nullptr; });
}

}  // namespace

TEST_CASE("presets are the layers of the published models", "[presets]") {
  CHECK(sy::describe<presets::switch_base_8<>>() ==
        "switch_top1:1of8/factor<2,mesh,4>/mlp<relu>/768x3072/cpu/bfloat16");
  CHECK(sy::describe<presets::switch_base_128<>>() ==
        "switch_top1:1of128/factor<2,mesh,4>/mlp<relu>/768x3072/cpu/bfloat16");
  CHECK(sy::describe<presets::mixtral_8x7b<>>() ==
        "softmax_top_k:2of8/dropless/gated_mlp<silu>/4096x14336/cpu/bfloat16");
  CHECK(sy::describe<presets::qwen1_5_moe_a2_7b<>>() ==
        "softmax_top_k_raw:4of60/dropless/with_shared<gated_mlp<silu>,5632,sigmoid>/2048x1408/cpu/bfloat16");
  CHECK(sy::describe<presets::qwen2_57b_a14b<>>() ==
        "softmax_top_k_raw:8of64/dropless/with_shared<gated_mlp<silu>,20480,sigmoid>/3584x2560/cpu/bfloat16");
  CHECK(sy::describe<presets::qwen3_30b_a3b<>>() ==
        "softmax_top_k:8of128/dropless/gated_mlp<silu>/2048x768/cpu/bfloat16");
  CHECK(sy::describe<presets::olmoe_1b_7b<>>() ==
        "softmax_top_k_raw:8of64/dropless/gated_mlp<silu>/2048x1024/cpu/bfloat16");
  CHECK(sy::describe<presets::deepseek_v2_lite<>>() ==
        "softmax_top_k_raw:6of64/dropless/with_shared<gated_mlp<silu>,2816>/2048x1408/cpu/bfloat16");
  CHECK(sy::describe<presets::deepseek_v3<>>() ==
        "scaled<top_k(sigmoid,grouped<8,4,top2_sum,corrected>,sum),5:2>:8of256/dropless/"
        "with_shared<gated_mlp<silu>,2048>/7168x2048/cpu/bfloat16");
  CHECK(sy::describe<presets::longcat_flash_lite<>>() ==
        "scaled<top_k(softmax,corrected,as_scored),6>:12of256/dropless/"
        "with_null_experts<gated_mlp<silu>,identity:128>/3072x1024/cpu/bfloat16");
  CHECK(
      sy::describe<presets::gpt_oss_20b<>>() ==
      "with_bias<top_k_softmax>:4of32/dropless/with_bias<gated_mlp<clamped_swiglu<7,851:500>>>/2880x2880/cpu/bfloat16");
  CHECK(sy::describe<presets::granite_1b_a400m<>>() ==
        "top_k_softmax:8of32/dropless/gated_mlp<silu>/1024x512/cpu/bfloat16");
  CHECK(sy::describe<presets::granite_3b_a800m<>>() ==
        "top_k_softmax:8of40/dropless/gated_mlp<silu>/1536x512/cpu/bfloat16");
  CHECK(sy::describe<presets::llama4_scout<>>() ==
        "on_input<sigmoid_top_k>:1of16/dropless/with_shared<gated_mlp<silu>,8192>/5120x8192/cpu/bfloat16");
  CHECK(sy::describe<presets::llama4_maverick<>>() ==
        "on_input<sigmoid_top_k>:1of128/dropless/with_shared<gated_mlp<silu>,8192>/5120x8192/cpu/bfloat16");
  CHECK(sy::describe<presets::phi3_5_moe<>>() ==
        "sparsemixer<1:100>:2of16/dropless/gated_mlp<silu>/4096x6400/cpu/bfloat16");
  CHECK(sy::describe<presets::dbrx<>>() == "softmax_top_k:4of16/dropless/gated_mlp<silu>/6144x10752/cpu/bfloat16");
  CHECK(sy::describe<presets::sigma_moe_wikitext103_small<>>() ==
        "sigma_moe:4of16/dropless/mlp<relu>/412x128/cpu/bfloat16");
  CHECK(sy::describe<presets::sigma_moe_wikitext103_big<>>() ==
        "sigma_moe:4of32/dropless/mlp<relu>/1024x128/cpu/bfloat16");
  CHECK(sy::describe<presets::sigma_moe_enwik8<>>() == "sigma_moe:4of16/dropless/mlp<relu>/512x128/cpu/bfloat16");
  CHECK(sy::describe<presets::nllb_moe_54b<>>() ==
        "softmax_top_k_raw:2of128/renormalised<share_of_tokens<1>>/scaled<with_bias<mlp<relu>>,4:5>/2048x8192/cpu/"
        "bfloat16");
}

TEST_CASE("a preset takes another element type", "[presets]") {
  CHECK(sy::describe<presets::mixtral_8x7b<float>>() ==
        "softmax_top_k:2of8/dropless/gated_mlp<silu>/4096x14336/cpu/float");
  CHECK(sy::describe<presets::switch_base_128<sy::half>>() ==
        "switch_top1:1of128/factor<2,mesh,4>/mlp<relu>/768x3072/cpu/half");
}

TEST_CASE("every preset compiles", "[presets]") { CHECK(all_have_forward(static_cast<all*>(nullptr))); }

TEST_CASE("presets have the published shapes: parameters of one layer by hand", "[presets]") {
  CHECK(parameters<presets::switch_base_8<>>() == 8 * (2 * 768 * 3072) + 8 * 768);
  CHECK(parameters<presets::switch_base_128<>>() == 604'078'080);       // 128 * 4718592 + 98304
  CHECK(parameters<presets::mixtral_8x7b<>>() == 1'409'318'912);        // 8 * 176160768 + 32768
  CHECK(parameters<presets::qwen1_5_moe_a2_7b<>>() == 553'773'056);     // 60 * 8650752 + 122880 + 34603008 + 2048
  CHECK(parameters<presets::qwen2_57b_a14b<>>() == 1'982'041'600);      // 64 * 27525120 + 229376 + 220200960 + 3584
  CHECK(parameters<presets::qwen3_30b_a3b<>>() == 604'241'920);         // 128 * 4718592 + 262144
  CHECK(parameters<presets::olmoe_1b_7b<>>() == 402'784'256);           // 64 * 6291456 + 131072
  CHECK(parameters<presets::deepseek_v2_lite<>>() == 571'080'704);      // 64 * 8650752 + 131072 + 2 * 8650752
  CHECK(parameters<presets::deepseek_v3<>>() == 11'320'164'608);        // 257 * 44040192 + 1835008 + 256
  CHECK(parameters<presets::longcat_flash_lite<>>() == 2'417'099'136);  // 256 * 9437184 + 384 * 3073
  CHECK(parameters<presets::gpt_oss_20b<>>() == 796'631'072);           // 32 * (24883200 + 8640) + 92160 + 32
  CHECK(parameters<presets::granite_1b_a400m<>>() == 50'364'416);       // 32 * 1572864 + 32768
  CHECK(parameters<presets::granite_3b_a800m<>>() == 94'433'280);       // 40 * 2359296 + 61440
  CHECK(parameters<presets::llama4_scout<>>() == 2'139'176'960);        // 17 * 125829120 + 81920
  CHECK(parameters<presets::llama4_maverick<>>() == 16'232'611'840);    // 129 * 125829120 + 655360
  CHECK(parameters<presets::phi3_5_moe<>>() == 1'258'356'736);          // 16 * 78643200 + 65536
  CHECK(parameters<presets::dbrx<>>() == 3'170'992'128);                // 16 * 198180864 + 98304
  CHECK(parameters<presets::sigma_moe_wikitext103_small<>>() == 1'694'144);  // 16 * 105472 + 6592
  CHECK(parameters<presets::sigma_moe_wikitext103_big<>>() == 8'421'376);    // 32 * 262144 + 32768
  CHECK(parameters<presets::sigma_moe_enwik8<>>() == 2'105'344);             // 16 * 131072 + 8192
  CHECK(parameters<presets::nllb_moe_54b<>>() == 4'296'540'160);             // 128 * (33554432 + 8192 + 2048) + 262144
}

TEST_CASE("with attention and embeddings, layers add up to the published sizes of models", "[presets]") {
  // Mixtral-8x7B, 46.7 B: attention 4096 x (4096 + 1024 + 1024 + 4096), two norms, 32000 words in and out.
  CHECK(32 * (parameters<presets::mixtral_8x7b<>>() + 4096 * 10240 + 2 * 4096) + 2 * 32000 * 4096 + 4096 ==
        46'702'792'704);
  // OLMoE-1B-7B, 6.9 B: attention 4 * 2048 x 2048, four norms, 50304 words in and out.
  CHECK(16 * (parameters<presets::olmoe_1b_7b<>>() + 4 * 2048 * 2048 + 4 * 2048) + 2 * 50304 * 2048 + 2048 ==
        6'919'161'856);
  // Qwen3-30B-A3B, 30.5 B: attention 2048 x (4096 + 512 + 512 + 4096), norms of 2048 and of 128, 151936 words.
  CHECK(48 * (parameters<presets::qwen3_30b_a3b<>>() + 2048 * 9216 + 2 * 2048 + 2 * 128) + 2LL * 151936 * 2048 + 2048 ==
        30'532'122'624);
  // gpt-oss-20b, 20.9 B: attention 2880 x (4096 + 512 + 512 + 4096) with biases and 64 sinks, 201088 words.
  CHECK(24 * (parameters<presets::gpt_oss_20b<>>() + 2880 * 9216 + 4096 + 512 + 512 + 2880 + 64 + 2 * 2880) +
            2LL * 201088 * 2880 + 2880 ==
        20'914'757'184);
}
