// expect: switchyard: the weights of this expert are no operand. An operand has element, in_place, granule, read, from and name_arrays
#include <switchyard/switchyard.hpp>

using namespace switchyard;
struct codes {
  using element = float;
  unsigned char const* first = nullptr;
};
struct coded : expert::mlp<relu> {
  static constexpr std::string_view name = "coded";
  template <class Element, projection Role>
  using operand = codes;
};
using model = layer<shape{8, 8, 4, 2}, router::softmax_top_k, capacity::dropless, coded>;

void run(model::args const& args) { model::forward(args); }
