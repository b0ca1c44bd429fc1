#pragma once

#include <switchyard/core/language.hpp>

#if !defined(__CUDACC__)
#error \
    "switchyard: switchyard.cuh has code for GPUs, which nvcc compiles. Name the file .cu, or include switchyard/switchyard.hpp for the CPU."
#include <switchyard/the sentence above says what to change>
#endif

/// Everything of Switchyard, with the GPU backends: for nvcc.

#include <switchyard/backend/cuda/clustering.cuh>
#include <switchyard/backend/cuda/cuda.cuh>
#include <switchyard/backend/cuda/low_rank.cuh>
#include <switchyard/backend/cuda/product_keys.cuh>
#include <switchyard/backend/cuda/rows.cuh>
#include <switchyard/backend/cuda/selectors.cuh>
#include <switchyard/backend/cuda/sinkhorn.cuh>
#include <switchyard/backend/cuda/strata.cuh>
#include <switchyard/backend/hopper/hopper.cuh>
#include <switchyard/switchyard.hpp>
