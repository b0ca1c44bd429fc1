#pragma once

/// What the units and experts of a trained model do: measures, on arrays in host memory. `switchyard.hpp` has none of it.
///
/// A unit is an element of an expert's inner values, an expert is a group of units; a sub-function is a question with two answers about
/// a text, such as what a word means there, and a function has several of them. Everything is deterministic and computed on the calling
/// thread, in double but for activations. Functions throw `error` where sizes do not fit.
///
/// ```cpp
/// namespace measures = switchyard::modularity;
/// std::vector<double> const all = measures::predictivity({activations, samples, units}, {labels, sub_functions, samples});
/// std::span<double const> const first(all.data(), units);  // of the first sub-function
/// measures::functional_experts const found = measures::functional_experts_of(first, {expert_of_unit, 16});
/// measures::partition_baseline const chance = measures::random_partitions(first, {expert_of_unit, 16}, {.seed = 1});
/// args.inputs = {.allowed = found.is_functional.data()};  // of a layer with router::restricted<router::switch_top1>
/// ```
/// Source: Zhang et al. 2023, Emergent Modularity in Pre-trained Transformers, with its code.
#include <switchyard/modularity/functional_experts.hpp>
#include <switchyard/modularity/perturbation.hpp>
#include <switchyard/modularity/predictivity.hpp>
#include <switchyard/modularity/similarity.hpp>
