// Stratified MoE: the experts stand in strata, and each token climbs through them by its own choices, so that some tokens
// make one pass and others several. Residuals and norms are inside: the output is the block's, nothing is added to it.
#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace sy = switchyard;

using climbing = sy::layer<sy::shape{.hidden = 32, .intermediate = 64, .experts = 8, .top_k = 2},
                           sy::router::stratified<sy::router::softmax_top_k, 4, 2, 2>,
                           sy::capacity::share_of_tokens<1, 2>, sy::expert::mlp<sy::relu>>;

std::vector<float> numbers(std::size_t count) {
  static std::minstd_rand random(1);
  std::vector<float> result(count);
  for (float& value : result) value = static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f;
  return result;
}

int main() {
  constexpr int strata = 3, tokens = 12, hidden = climbing::dims.hidden, experts = climbing::dims.experts, top_k = 2;
  // A gate for each stratum: it may choose the experts of that stratum and all higher ones.
  std::vector<float> const gates[strata] = {numbers(8 * hidden), numbers(4 * hidden), numbers(2 * hidden)};
  auto const up = numbers(experts * 64 * hidden), down = numbers(experts * hidden * 64);
  std::vector<float> const ones(hidden, 1.0f), zeros(hidden, 0.0f);
  auto const residual = numbers(tokens * hidden);  // the block's input; here its norm has left it as it is
  std::vector<float> output(tokens * hidden);
  std::vector<std::int32_t> chosen(strata * tokens * top_k);
  std::vector<std::uint8_t> passes(tokens);
  std::vector<std::byte> scratch(climbing::workspace_bytes(tokens));

  climbing::args args{
      .tokens = climbing::rows(residual.data(), tokens),
      .weights = {.up_proj = climbing::in_proj(up.data()), .down_proj = climbing::out_proj(down.data())},
      .output = climbing::rows(output.data(), tokens),
      .workspace = scratch,
      .inputs = {.residual = climbing::rows(static_cast<float const*>(residual.data()), tokens), .norm = {}}};
  for (int i = 0; i < strata; ++i) {
    args.weights.router.stratum[i].weight = gates[i].data();
    args.inputs.norm.after[i] = {.weight = ones.data(), .bias = zeros.data()};
  }
  args.decisions.experts = chosen.data();
  args.report.passes = passes.data();
  climbing::forward(args);

  bool right = true;
  for (int t = 0; t < tokens; ++t) {
    std::printf("token %2d, %d passes:", t, passes[t]);
    int made = 0;
    for (int i = 0; i < strata; ++i) {
      std::int32_t const* const experts_of_pass = chosen.data() + (i * tokens + t) * top_k;
      if (experts_of_pass[0] < 0) continue;  // skipped, or above where it left
      std::printf("  experts %d and %d", experts_of_pass[0], experts_of_pass[1]);
      right = right && experts_of_pass[0] >= climbing::router::schedule::first_expert(i);
      ++made;
    }
    std::printf("\n");
    // The last norm leaves rows with a mean of 0.
    float sum = 0.0f;
    for (int i = 0; i < hidden; ++i) sum += output[t * hidden + i];
    right = right && made == passes[t] && made >= 1 && sum < 1e-4f && sum > -1e-4f;
  }
  return right ? 0 : 1;
}
