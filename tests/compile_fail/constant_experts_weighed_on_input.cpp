// expect: switchyard: router::on_input weighs what experts see, which a constant expert does not look at, and no publication says what its weight would do.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using wrong =
    layer<shape{.hidden = 16, .intermediate = 32, .experts = 8, .top_k = 2}, router::on_input<router::sigmoid_top_k>,
          capacity::dropless, expert::with_null_experts<expert::mlp<relu>, null_experts{.constant = 1}>>;
void use(wrong::args const& args) { wrong::forward(args); }
