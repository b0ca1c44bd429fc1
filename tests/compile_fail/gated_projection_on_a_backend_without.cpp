// expect: switchyard: this layer's backend does not run expert::with_gated_projection. Take backend::cpu, or compute the two linear maps around a layer without them.
#include <switchyard/switchyard.hpp>

using namespace switchyard;

struct other {
  static constexpr std::string_view name = "other";
  using context = cpu_context;
  template <class Layer>
  static constexpr std::string_view name_for() {
    return name;
  }
  template <class Layer>
  static constexpr std::size_t workspace_bytes(std::int64_t) {
    return 0;
  }
  template <class Layer>
  static void forward(forward_args<Layer> const&, context const&) {}
};
using model = layer<shape{8, 1, 9, 2}, router::product_keys<3>, capacity::dropless,
                    expert::with_gated_projection<expert::value_row>, other>;

void wrong(model::args const& args) { model::forward(args); }
