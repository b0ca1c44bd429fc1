// expect: switchyard: a router that inherits router::by_logits needs template <int TopK, int Experts, class Lanes> static route<TopK> select
#include <switchyard/switchyard.hpp>

using namespace switchyard;
struct silent : router::by_logits {
  static constexpr std::string_view name = "silent";
};
using model = layer<shape{8, 8, 4, 2}, silent, capacity::dropless, expert::mlp<relu>>;

void run(model::args const& args) { model::forward(args); }
