#pragma once

#include <switchyard/backend/cpu/clustering.hpp>
#include <switchyard/backend/cpu/combine.hpp>
#include <switchyard/backend/cpu/experts.hpp>
#include <switchyard/backend/cpu/narrow_experts.hpp>
#include <switchyard/backend/cpu/panels.hpp>
#include <switchyard/backend/cpu/product.hpp>
#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/core/bfloat16.hpp>
#include <switchyard/core/half.hpp>
#include <switchyard/expert/activation.hpp>

/// The functions of `backend::cpu` that depend on an element or an activation alone. Every unit with a layer compiles what it
/// uses of them, which is most of what a layer costs the compiler. A program with many such units defines
/// SWITCHYARD_EXTERN_KERNELS in all of them and includes `switchyard/kernels.hpp` in one; the functions are the same.
#define SWITCHYARD_KERNELS_OF_ELEMENT(how, Element)                                                                    \
  how template row_kernels<weight_view<Element>> row_kernels_of<weight_view<Element>>(instruction_set);                \
  how template panel_kernels<weight_view<Element>> panel_kernels_of<weight_view<Element>>(instruction_set,             \
                                                                                          float_products);             \
  how template void run_products<weight_view<Element>>(                                                                \
      cpu_context const&, row_ranges const&, token_rows<Element> const&, expert_activation const&,                     \
      expert_weights<weight_view<Element>> const&, products_memory const&, no_terms const&);                           \
  how template void run_products<weight_view<Element>, low_rank_terms<Element>>(                                       \
      cpu_context const&, row_ranges const&, token_rows<Element> const&, expert_activation const&,                     \
      expert_weights<weight_view<Element>> const&, products_memory const&, low_rank_terms<Element> const&);            \
  how template narrow_kernels<Element> narrow_kernels_of<Element>(instruction_set, int);                               \
  how template void run_narrow_products<Element>(narrow_products<Element> const&, narrow_kernels<Element> const&,      \
                                                 narrow_kernels<Element> const&, cpu_context const&,                   \
                                                 narrow_memory const&);                                                \
  how template void make_logits<Element>(router_product<Element> const&, cpu_context const&, float*);                  \
  how template void combine<Element>(combination<Element> const&, cpu_context const&);                                 \
  how template void scale_tokens<Element>(view<Element const> const&, feature_weights const&, int, cpu_context const&, \
                                          Element*);
#define SWITCHYARD_KERNELS_OF_ACTIVATION(how, Activation)                             \
  how template expert_activation activation_with<Activation, false>(instruction_set); \
  how template expert_activation activation_with<Activation, true>(instruction_set);
#define SWITCHYARD_KERNELS(how)                       \
  SWITCHYARD_KERNELS_OF_ELEMENT(how, float)           \
  SWITCHYARD_KERNELS_OF_ELEMENT(how, bfloat16)        \
  SWITCHYARD_KERNELS_OF_ELEMENT(how, half)            \
  SWITCHYARD_KERNELS_OF_ACTIVATION(how, relu)         \
  SWITCHYARD_KERNELS_OF_ACTIVATION(how, relu_squared) \
  SWITCHYARD_KERNELS_OF_ACTIVATION(how, gelu)         \
  SWITCHYARD_KERNELS_OF_ACTIVATION(how, gelu_tanh)    \
  SWITCHYARD_KERNELS_OF_ACTIVATION(how, silu)

namespace switchyard::cpu {

#if defined(SWITCHYARD_EXTERN_KERNELS)
SWITCHYARD_KERNELS(extern)
#endif

}  // namespace switchyard::cpu
