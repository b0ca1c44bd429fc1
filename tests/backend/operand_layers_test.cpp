#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <tuple>
#include <utility>

#include "layers.hpp"
#include "support/operands.hpp"

/// Routers and capacities of layers.hpp, every other one, in front of weights that are no dense matrices. They do not see the weights: one
/// format each.
using namespace support;

#if defined(SWITCHYARD_MORE_LAYERS)
namespace {

template <class Layer, template <class> class Format>
struct with_format;
template <sy::shape Dims, class Router, class Capacity, class Expert, class Backend, class Element,
          template <class> class Format>
struct with_format<sy::layer<Dims, Router, Capacity, Expert, Backend, Element>, Format> {
  // Words of eight weights.
  static constexpr sy::shape dims{24, 16, Dims.experts, Dims.top_k};
  using type = sy::layer<dims, Router, Capacity, stored_as<Expert, Format>, Backend, Element>;
};

template <class List>
void check_list() {
  sy::cpu_context const context{.threads = 2, .least_panel_rows = 1'000'000};
  auto const same = [](auto const& got, auto const& expected, auto const&) {
    CHECK(relative_error(got, expected) <= 1e-6);
  };
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    auto const check = [&]<std::size_t Place>() {
      using layer = std::tuple_element_t<Place, List>;
      if constexpr (Place % 6 == 0) check_operand<typename with_format<layer, four_bits>::type>(40, context, same);
      if constexpr (Place % 6 == 2)
        check_operand<typename with_format<layer, pruned_residual>::type>(40, context, same);
      if constexpr (Place % 6 == 4)
        check_operand<typename with_format<layer, low_rank_residual>::type>(40, context, same);
    };
    (check.template operator()<I>(), ...);
  }
  (std::make_index_sequence<std::tuple_size_v<List>>{});
}

}  // namespace

TEST_CASE("routers go with weights that are restored", "[operand]") {
  check_list<tested::routers>();
  check_list<tested::clustered_routers>();
  check_list<tested::stratified_routers>();
}

TEST_CASE("capacities go with weights that are restored", "[operand]") { check_list<tested::capacities>(); }
#endif
