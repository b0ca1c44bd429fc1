// Adaptive clustering: a token's expert in the previous layer says which cluster it belongs to, and the features along
// which that cluster is tight count more when the next layer routes. Statistics need a batch; a table that was collected
// from batches keeps the method when tokens come one by one.
#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace sy = switchyard;

template <class Router>
using layer = sy::layer<sy::shape{.hidden = 32, .intermediate = 64, .experts = 4, .top_k = 2}, Router,
                        sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
using first_layer = layer<sy::router::top_k_softmax>;  // nothing before it has chosen
using next_layer = layer<sy::router::adaptive_clustering<sy::router::top_k_softmax>>;

std::vector<float> numbers(std::size_t count) {
  static std::minstd_rand random(1);
  std::vector<float> result(count);
  for (float& value : result) value = static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f;
  return result;
}

int main() {
  constexpr int tokens = 200, hidden = next_layer::dims.hidden, experts = next_layer::dims.experts, top_k = 2;
  auto const router = numbers(2 * experts * hidden), up = numbers(experts * 64 * hidden);
  auto const down = numbers(experts * hidden * 64), x = numbers(tokens * hidden);
  std::vector<float> h(tokens * hidden), y(tokens * hidden), spread(experts * hidden), logits(tokens * experts);
  std::vector<std::int32_t> before(tokens * top_k);
  std::vector<std::byte> scratch(next_layer::workspace_bytes(tokens));

  first_layer::forward({.tokens = first_layer::rows(x.data(), tokens),
                        .weights = {.router = {.weight = router.data()},
                                    .up_proj = first_layer::in_proj(up.data()),
                                    .down_proj = first_layer::out_proj(down.data())},
                        .output = first_layer::rows(h.data(), tokens),
                        .workspace = scratch,
                        .decisions = {.experts = before.data()}});

  next_layer::args args{.tokens = next_layer::rows(static_cast<float const*>(h.data()), tokens),
                        .weights = {.router = {.weight = router.data() + experts * hidden},
                                    .up_proj = next_layer::in_proj(up.data()),
                                    .down_proj = next_layer::out_proj(down.data())},
                        .output = next_layer::rows(y.data(), tokens),
                        .workspace = scratch,
                        .inputs = {.labels = before.data(), .choices = top_k}};
  args.report = {.logits = logits.data(), .dispersion = spread.data()};
  next_layer::forward(args);

  sy::feature_scale_calibration<next_layer> calibration;
  calibration.add(spread.data(), args.inputs, tokens);
  std::vector<float> const table = calibration.table();
  float least = table[0], most = table[0];
  for (float weight : table) least = weight < least ? weight : least, most = weight > most ? weight : most;
  std::printf("features count %.2f to %.2f times as much as without clusters\n", least, most);

  // One token, routed by the table as it was in its batch.
  std::vector<float> const together(logits.begin(), logits.begin() + experts);
  args.tokens = next_layer::rows(static_cast<float const*>(h.data()), 1);
  args.output = next_layer::rows(y.data(), 1);
  args.inputs.feature_scale = table.data();
  args.report.dispersion = nullptr;
  next_layer::forward(args);
  bool right = least < 0.95f && most > 1.05f;
  for (int e = 0; e < experts; ++e) {
    std::printf("expert %d: %.4f in the batch, %.4f alone\n", e, together[e], logits[e]);
    right = right && logits[e] - together[e] < 1e-4f && together[e] - logits[e] < 1e-4f;
  }
  return right ? 0 : 1;
}
