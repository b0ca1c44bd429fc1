// expect: switchyard: feature_scale_calibration is for layers of router::adaptive_clustering.
#include <switchyard/switchyard.hpp>

using namespace switchyard;
using plain = layer<shape{8, 8, 4, 2}, router::softmax_top_k, capacity::dropless, expert::mlp<relu>>;
feature_scale_calibration<plain> calibration;
