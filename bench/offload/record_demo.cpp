#include <switchyard/offload/predict.hpp>
#include <switchyard/offload/trace.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "../../examples/tiny_lm/file.hpp"
#include "../../examples/tiny_lm/model.hpp"

// Records which experts the demo's model uses on its held-out text, and which ones the router of the next layer expects when it sees
// what the present layer gets:
//
//   demo_tokens.trace            a byte at a time, as when text is made: the first 512 bytes, 4 calls each
//   demo_tokens_expected.trace   of each of these calls what was expected one call before; of a first layer nothing is
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

    std::int64_t right = 0, needed = 0;
    for (std::int64_t i = 0; i < tokens.used.calls(); ++i) {
      if (tokens.used[i].layer == 0) continue;
      for (std::int32_t e : tokens.used[i].experts) {
        auto const guess = tokens.expected[i].experts;
        right += std::find(guess.begin(), guess.end(), e) != guess.end();
        ++needed;
      }
    }
    std::printf("%lld of %lld experts were expected by the next layer's router, a byte at a time\n",
                static_cast<long long>(right), static_cast<long long>(needed));
  } catch (std::exception const& wrong) {
    std::fprintf(stderr, "offload_record_demo: %s\n", wrong.what());
    return 1;
  }
  return 0;
}
