// expect: switchyard: backend::expert_parallel on GPUs routes each token by itself, once
// expect: switchyard: backend::expert_parallel on GPUs does not scale features by what all tokens are
// expect: switchyard: backend::expert_parallel on GPUs has messages in device memory, behind kernels of a stream. Take transport::nccl.
#include <switchyard/parallel.cuh>

#include <memory>

using namespace switchyard;

/// Messages in memory of the host.
struct of_the_host {
  static constexpr std::string_view name = "of_the_host";
  static constexpr bool any_length = true, any_order = true, follows_streams = false;
  template <class T>
  using allocator = std::allocator<T>;
  int rank() const;
  int ranks() const;
  void start(int, std::span<message const>, std::span<message const>);
  bool done(int);
  int missing(int) const;
  void abandon();
  void tell_failure(std::string_view);
  failure_notice failure();
};

template <class Router>
using on_ranks = layer<shape{.hidden = 16, .intermediate = 32, .experts = 8, .top_k = 2}, Router, capacity::dropless,
                       expert::mlp<relu>, backend::expert_parallel<backend::cuda, of_the_host>>;
using stratified = on_ranks<router::stratified<router::softmax_top_k, 4, 4>>;
using clustered = on_ranks<router::adaptive_clustering<router::softmax_top_k>>;
using plain = on_ranks<router::softmax_top_k>;
std::size_t wrong() { return stratified::workspace_bytes(1) + clustered::workspace_bytes(1); }
void call(plain::args const& args, plain::context const& context) { plain::forward(args, context); }
