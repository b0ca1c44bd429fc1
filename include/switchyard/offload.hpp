#pragma once

/// Layers with more experts than memory holds, on the CPU. It stands beside switchyard.hpp, which does not include it.
#include <switchyard/backend/cpu/offloaded.hpp>
#include <switchyard/backend/offloaded.hpp>
#include <switchyard/offload/cache.hpp>
#include <switchyard/offload/measures.hpp>
#include <switchyard/offload/piece.hpp>
#include <switchyard/offload/policies.hpp>
#include <switchyard/offload/store.hpp>
#include <switchyard/switchyard.hpp>
