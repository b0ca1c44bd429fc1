// A product-key memory: a million rows, of which each token reads the 32 best of four heads. Two tables of 1024 half keys address them,
// so that no token looks at more than 2048 keys and a few hundred pairs of each head.
#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace sy = switchyard;

using memory = sy::layer<sy::shape{.hidden = 64, .intermediate = 1, .experts = 1024 * 1024, .top_k = 4 * 32},
                         sy::router::product_keys<1024, 4, sy::router::query::projected<32>>, sy::capacity::dropless,
                         sy::expert::value_row, sy::backend::cpu, sy::bfloat16>;

std::vector<float> numbers(std::size_t count) {
  static std::minstd_rand random(1);
  std::vector<float> result(count);
  for (float& value : result) value = static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f;
  return result;
}

int main() {
  constexpr int tokens = 3, hidden = memory::dims.hidden, top_k = memory::dims.top_k;
  auto const first_keys = numbers(4 * 1024 * 16), second_keys = numbers(4 * 1024 * 16),
             query = numbers(4 * 32 * hidden);
  std::vector<sy::bfloat16> table(static_cast<std::size_t>(memory::dims.experts) * hidden), x(tokens * hidden),
      y(tokens * hidden);
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = sy::bfloat16(static_cast<float>(i / hidden % 7) - 3.0f);
  auto const values = numbers(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = sy::bfloat16(values[i]);
  std::vector<std::int32_t> rows(tokens * top_k);
  std::vector<float> weights(tokens * top_k);
  std::vector<std::byte> scratch(memory::workspace_bytes(tokens));

  memory::args args;
  args.tokens = memory::rows(static_cast<sy::bfloat16 const*>(x.data()), tokens);
  args.weights.router = {first_keys.data(), second_keys.data(), query.data(), nullptr};
  args.weights.values = memory::table(table.data());
  args.output = memory::rows(y.data(), tokens);
  args.workspace = scratch;
  args.decisions.experts = rows.data();
  args.decisions.weights = weights.data();
  memory::forward(args);

  std::printf("%s\n", sy::describe<memory>().c_str());
  for (int t = 0; t < tokens; ++t) {
    std::printf("token %d:", t);
    for (int head = 0; head < 4; ++head) {
      auto const best = static_cast<std::size_t>(t * top_k + head * 32);
      std::printf(" row %7d with %.3f%s", rows[best], static_cast<double>(weights[best]), head < 3 ? "," : "\n");
    }
  }
}
