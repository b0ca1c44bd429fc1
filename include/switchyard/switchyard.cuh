#pragma once

/// Everything of Switchyard, with the GPU backends: for nvcc.

#include <switchyard/backend/cuda/clustering.cuh>
#include <switchyard/backend/cuda/cuda.cuh>
#include <switchyard/backend/cuda/strata.cuh>
#include <switchyard/backend/hopper/hopper.cuh>
#include <switchyard/switchyard.hpp>
