#pragma once

/// Layers whose experts are on several GPUs. It stands beside switchyard.cuh, which does not include it, and includes no transport: that is
/// transport/nccl.hpp.
#include <switchyard/backend/cuda/expert_parallel.cuh>
#include <switchyard/backend/expert_parallel.hpp>
#include <switchyard/parallel/group.hpp>
#include <switchyard/parallel/placement.hpp>
#include <switchyard/switchyard.cuh>
