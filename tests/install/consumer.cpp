// Two experts: the first hands a token on, the second doubles it. Returns 0 when the layer does that.
#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdio>
#include <vector>

namespace sy = switchyard;

using two_experts = sy::layer<sy::shape{.hidden = 2, .intermediate = 2, .experts = 2, .top_k = 1},
                              sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::mlp<sy::relu>>;

int main() {
  std::vector<float> const router{1, 0, 0, 1};
  std::vector<float> const up{1, 0, 0, 1, 1, 0, 0, 1};
  std::vector<float> const down{1, 0, 0, 1, 2, 0, 0, 2};
  std::vector<float> const tokens{3, 0, 0, 5};
  std::vector<float> output(4);
  std::vector<std::byte> scratch(two_experts::workspace_bytes(2));

  two_experts::weights weights;
  weights.router.weight = router.data();
  weights.up_proj = sy::weight_view<float>::packed(up.data(), 2, 2);
  weights.down_proj = sy::weight_view<float>::packed(down.data(), 2, 2);
  two_experts::forward(
      {.tokens = {tokens.data(), 2, 2}, .weights = weights, .output = {output.data(), 2, 2}, .workspace = scratch});

  std::printf("Switchyard %d.%d: %g %g %g %g\n", SWITCHYARD_VERSION_MAJOR, SWITCHYARD_VERSION_MINOR,
              static_cast<double>(output[0]), static_cast<double>(output[1]), static_cast<double>(output[2]),
              static_cast<double>(output[3]));
  return output == std::vector<float>{3, 0, 0, 10} ? 0 : 1;
}
