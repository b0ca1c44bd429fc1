#include <switchyard/offload/predict.hpp>
#include <switchyard/offload/trace.hpp>
#include <switchyard/sida/hash_table.hpp>
#include <switchyard/sida/predictor.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "../../examples/tiny_lm/file.hpp"
#include "../../examples/tiny_lm/model.hpp"
#include "../../examples/tiny_lm/predictor.hpp"

// Records which experts the demo's model uses on its held-out text, and which ones the router of the next layer expects when it sees
// what the present layer gets:
//
//   demo_tokens.trace            a byte at a time, as when text is made: the first 512 bytes, 4 calls each
//   demo_tokens_expected.trace   of each of these calls what was expected one call before; of a first layer nothing is
//   demo_tokens_sida.trace       of each of these calls the best two experts by SiDA's predictor, which has read the whole window before
//   demo_windows.trace           256 bytes at a time: 64 windows
namespace {

namespace sy = switchyard;
using kind = tiny_lm::kinds::shipped;
using layer = kind::first<sy::backend::cpu>;

struct recording {
  sy::offload::trace used{tiny_lm::blocks, layer::dims.experts};
  sy::offload::trace expected{tiny_lm::blocks, layer::dims.experts};
};

/// Runs another's layers, and records.
class recorded_layers final : public tiny_lm::moe_layers {
 public:
  recorded_layers(tiny_lm::moe_layers const& of, std::span<tiny_lm::moe_weights const> weights, recording& to)
      : of_(of), weights_(weights), to_(to) {}
  std::string describe() const override { return of_.describe(); }
  std::unique_ptr<tiny_lm::moe_worker> worker() const override {
    return std::make_unique<recorder>(of_.worker(), weights_, to_);
  }

 private:
  class recorder final : public tiny_lm::moe_worker {
   public:
    recorder(std::unique_ptr<tiny_lm::moe_worker> of, std::span<tiny_lm::moe_weights const> weights, recording& to)
        : of_(std::move(of)), weights_(weights), to_(to) {}

    void forward(int block, float const* tokens, float const* residual, int rows, float* output,
                 std::int64_t* used) override {
      std::vector<std::int64_t> counts(layer::dims.experts);
      of_->forward(block, tokens, residual, rows, output, counts.data());
      for (int e = 0; e < layer::dims.experts; ++e) used[e] += counts[e];
      to_.used.record(block, counts);
      if (block == 0) to_.expected.record(0, std::vector<std::int64_t>(counts.size()));
      if (block + 1 == tiny_lm::blocks) return;
      std::fill(counts.begin(), counts.end(), 0);
      layer::args next{};
      next.tokens = layer::rows(tokens, rows);
      next.weights.router.weight = weights_[static_cast<std::size_t>(block) + 1].router.data();
      for (std::int32_t e : guess_.expected(next, {.threads = 1})) counts[e] = 1;
      to_.expected.record(block + 1, counts);
    }

   private:
    std::unique_ptr<tiny_lm::moe_worker> of_;
    std::span<tiny_lm::moe_weights const> weights_;
    recording& to_;
    sy::offload::by_next_router<layer> guess_{tiny_lm::context};
  };

  tiny_lm::moe_layers const& of_;
  std::span<tiny_lm::moe_weights const> weights_;
  recording& to_;
};

/// What SiDA's predictor says of each byte and layer, from whole windows.
sy::offload::trace predicted_by_sida(tiny_lm::model<kind> const& weights, std::span<unsigned char const> text) {
  tiny_lm::expert_predictor const predictor(tiny_lm::safetensors::load(SIDA_PREDICTOR));
  sy::sida::predictor const& network = predictor.network();
  constexpr int length = tiny_lm::context, experts = layer::dims.experts, hidden = layer::dims.hidden;
  std::vector<float> rows(static_cast<std::size_t>(length) * hidden);
  std::vector<float> logits(static_cast<std::size_t>(tiny_lm::blocks) * length * experts);
  std::vector<std::byte> workspace(sy::sida::predict_workspace_bytes(network, 1, length));
  sy::sida::hash_table table;
  sy::offload::trace result(tiny_lm::blocks, experts);
  for (std::size_t begin = 0; begin + length <= text.size(); begin += length) {
    for (int t = 0; t < length; ++t) {
      std::copy_n(weights.embedding.data() + text[begin + static_cast<std::size_t>(t)] * hidden, hidden,
                  rows.data() + t * hidden);
    }
    sy::sida::predict(
        network,
        {.embeddings = rows.data(), .sequences = 1, .length = length, .logits = logits.data(), .workspace = workspace});
    sy::sida::build_hash_table(logits.data(), tiny_lm::blocks, length, experts, layer::dims.top_k, table);
    for (int t = 0; t < length; ++t) {
      for (int b = 0; b < tiny_lm::blocks; ++b) {
        std::vector<std::int64_t> counts(experts);
        for (int k = 0; k < layer::dims.top_k; ++k) {
          counts[static_cast<std::size_t>(
              table.ids[static_cast<std::size_t>((b * length + t) * layer::dims.top_k + k)])] = 1;
        }
        result.record(b, counts);
      }
    }
  }
  return result;
}

/// Prints how much of what was needed a prediction had named.
void compare(char const* whose, sy::offload::trace const& used, sy::offload::trace const& expected, int first_layer) {
  std::int64_t right = 0, needed = 0;
  for (std::int64_t i = 0; i < used.calls(); ++i) {
    if (used[i].layer < first_layer) continue;
    for (std::int32_t e : used[i].experts) {
      auto const guess = expected[i].experts;
      right += std::find(guess.begin(), guess.end(), e) != guess.end();
      ++needed;
    }
  }
  std::printf("%lld of %lld experts were expected by %s, a byte at a time\n", static_cast<long long>(right),
              static_cast<long long>(needed), whose);
}

}  // namespace

int main(int argc, char** argv) {
  std::string const folder = argc > 1 ? argv[1] : ".";
  try {
    tiny_lm::model<kind> const weights(tiny_lm::safetensors::load(TINY_LM_WEIGHTS));
    std::vector<char> const bytes = tiny_lm::read_file(TINY_LM_TEXT);
    std::vector<unsigned char> const text(bytes.begin(), bytes.end());
    tiny_lm::cpu_layers<kind> const layers(weights.moe, weights.router);
    auto const record = [&](int count, int at_a_time) {
      recording to;
      recorded_layers const recorded(layers, weights.moe, to);
      tiny_lm::reader<kind> read(weights, recorded);
      for (int i = 0; i < count; i += at_a_time) {
        if (read.room() < at_a_time) read.forget();
        read.read({text.data() + i, static_cast<std::size_t>(at_a_time)});
      }
      return to;
    };
    recording const tokens = record(512, 1);
    tokens.used.write(folder + "/demo_tokens.trace");
    tokens.expected.write(folder + "/demo_tokens_expected.trace");
    record(64 * tiny_lm::context, tiny_lm::context).used.write(folder + "/demo_windows.trace");

    sy::offload::trace const sida = predicted_by_sida(weights, std::span(text).first(512));
    sida.write(folder + "/demo_tokens_sida.trace");
    compare("the next layer's router", tokens.used, tokens.expected, 1);
    compare("SiDA's predictor", tokens.used, sida, 0);
  } catch (std::exception const& wrong) {
    std::fprintf(stderr, "offload_record_demo: %s\n", wrong.what());
    return 1;
  }
  return 0;
}
