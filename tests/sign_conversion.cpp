// options: -Wsign-conversion
// A user's own warnings, with headers that are no system headers.
#include <switchyard/offload/pack_experts.hpp>
#include <switchyard/offload/packed_file.hpp>
#include <switchyard/offload/read_rate.hpp>
#include <switchyard/switchyard.hpp>

using namespace switchyard;
template <class Router, class Expert = expert::gated_mlp<silu>>
using model = layer<shape{.hidden = 16, .intermediate = 32, .experts = 4, .top_k = 2}, Router,
                    capacity::renormalised<capacity::factor<5, 4>>, Expert>;
using plain = model<router::softmax_top_k, expert::with_shared<expert::with_bias<expert::gated_mlp<silu>>, 8>>;
using strata = model<router::stratified<router::shared<router::sigmoid_top_k>, 2, 2>>;
using clusters = model<router::adaptive_clustering<router::top_k_softmax>>;
using routes = model<router::precomputed>;

void run(plain::args const& a, strata::args const& b, clusters::args const& c, routes::args const& d) {
  plain::forward(a);
  strata::forward(b);
  clusters::forward(c);
  routes::forward(d);
}
double cost() { return costs<plain>(4).flops + load_importance_loss<4, 2>({nullptr, 0, 4}); }
double packed(plain::weights const& weights) {
  offload::weights_store<plain> store({&weights, 1});
  offload::pack("", store);
  return offload::measured_read_rate(store) + static_cast<double>(offload::verify("").size());
}
