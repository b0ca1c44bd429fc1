// expect: switchyard: backend::expert_parallel has feed-forward experts with matrices of their own
#include <switchyard/parallel.hpp>

#include <memory>
#include <span>
#include <string_view>

namespace sy = switchyard;

struct no_transport {
  static constexpr std::string_view name = "none";
  static constexpr bool any_length = true, any_order = true, follows_streams = false;
  template <class T>
  using allocator = std::allocator<T>;
  int rank() const { return 0; }
  int ranks() const { return 1; }
  void start(int, std::span<sy::message const>, std::span<sy::message const>) {}
  bool done(int) { return true; }
  int missing(int) const { return -1; }
  void abandon() {}
  void tell_failure(std::string_view) {}
  sy::failure_notice failure() { return {}; }
};

using layer =
    sy::layer<sy::shape{.hidden = 32, .intermediate = 32, .experts = 3, .top_k = 1}, sy::router::softmax_top_k,
              sy::capacity::dropless, sy::expert::low_rank<sy::languages<3>, 4, sy::expert::mlp<sy::relu>>,
              sy::backend::expert_parallel<sy::backend::cpu, no_transport>>;

void run(layer::args const& args) { layer::forward(args); }
