// expect: switchyard: capacity::counting_padding in a layer of router::stratified: a pass has no padding that it could count. Take the wrapper away.
#include <switchyard/switchyard.hpp>

using namespace switchyard;

using model = layer<shape{4, 4, 4, 2}, router::stratified<router::softmax_top_k, 2, 2>,
                    capacity::counting_padding<capacity::factor<1>>, expert::mlp<relu>>;

static_assert(model::workspace_bytes(1) > 0);
