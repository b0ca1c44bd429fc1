// expect: switchyard: expert::gated_mlp needs a gated activation: a struct with a name and
#include <switchyard/switchyard.hpp>

namespace sy = switchyard;

struct cube {
  static constexpr std::string_view name = "cube";
  static float apply(float x) { return x * x * x; }
};

auto const wrong = sy::expert::gated_mlp<cube>::name;
