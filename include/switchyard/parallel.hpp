#pragma once

/// Layers whose experts are on several ranks, on the CPU. It stands beside switchyard.hpp, which does not include it, and includes no
/// transport: those are transport/mpi.hpp and others.
#include <switchyard/backend/cpu/expert_parallel.hpp>
#include <switchyard/backend/expert_parallel.hpp>
#include <switchyard/parallel/group.hpp>
#include <switchyard/parallel/placement.hpp>
#include <switchyard/switchyard.hpp>
