#pragma once

#include <switchyard/core/language.hpp>

/// Everything of Switchyard that needs no CUDA.

// -Wsign-conversion reports every bound of an array that is an int parameter of a template.
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
#endif

#include <switchyard/auxiliary.hpp>
#include <switchyard/backend/cpu/clustering.hpp>
#include <switchyard/backend/cpu/cpu.hpp>
#include <switchyard/backend/cpu/low_rank.hpp>
#include <switchyard/backend/cpu/product_keys.hpp>
#include <switchyard/backend/cpu/rows.hpp>
#include <switchyard/backend/cpu/selectors.hpp>
#include <switchyard/backend/cpu/sinkhorn.hpp>
#include <switchyard/backend/cpu/strata.hpp>
#include <switchyard/calibration.hpp>
#include <switchyard/capacity/dropless.hpp>
#include <switchyard/capacity/factor.hpp>
#include <switchyard/capacity/fixed.hpp>
#include <switchyard/capacity/wrappers.hpp>
#include <switchyard/core/counter_random.hpp>
#include <switchyard/core/operand.hpp>
#include <switchyard/costs.hpp>
#include <switchyard/expert/adapters.hpp>
#include <switchyard/expert/gated_mlp.hpp>
#include <switchyard/expert/low_rank.hpp>
#include <switchyard/expert/mlp.hpp>
#include <switchyard/expert/null_experts.hpp>
#include <switchyard/expert/residual.hpp>
#include <switchyard/expert/rows.hpp>
#include <switchyard/expert/top_k_units.hpp>
#include <switchyard/expert/wrappers.hpp>
#include <switchyard/fuse_distillation.hpp>
#include <switchyard/initialise.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/presets.hpp>
#include <switchyard/router/adaptive_clustering.hpp>
#include <switchyard/router/by_inputs.hpp>
#include <switchyard/router/by_language.hpp>
#include <switchyard/router/by_logits.hpp>
#include <switchyard/router/expert_dropout.hpp>
#include <switchyard/router/hash_layer.hpp>
#include <switchyard/router/precomputed.hpp>
#include <switchyard/router/predicted.hpp>
#include <switchyard/router/product_keys.hpp>
#include <switchyard/router/replayed.hpp>
#include <switchyard/router/restricted.hpp>
#include <switchyard/router/s_base.hpp>
#include <switchyard/router/selectors.hpp>
#include <switchyard/router/shared.hpp>
#include <switchyard/router/sparsemixer.hpp>
#include <switchyard/router/stratified.hpp>
#include <switchyard/router/switch_top1.hpp>
#include <switchyard/router/top_k.hpp>
#include <switchyard/router/weight_element.hpp>
#include <switchyard/router/with_router_input.hpp>
#include <switchyard/router/wrappers.hpp>
#include <switchyard/version.hpp>

#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
