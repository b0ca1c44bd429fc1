#pragma once

/// Layers with more experts than the memory of a GPU holds. It stands beside switchyard.cuh, which does not include it.
#include <switchyard/backend/cuda/offloaded.cuh>
#include <switchyard/offload.hpp>
#include <switchyard/offload/device_memory.cuh>
#include <switchyard/switchyard.cuh>
