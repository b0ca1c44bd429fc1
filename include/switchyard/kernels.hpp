#pragma once

#include <switchyard/core/language.hpp>

#include <switchyard/backend/cpu/kernels.hpp>
#include <switchyard/switchyard.hpp>

/// Compiles the kernels of `backend::cpu`, for the other units of a program whose units all define SWITCHYARD_EXTERN_KERNELS.
/// Include it in one unit.
namespace switchyard::cpu {

SWITCHYARD_KERNELS()

}  // namespace switchyard::cpu
