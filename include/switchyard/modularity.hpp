#pragma once

/// What the units and experts of a trained model do: measures, on arrays in host memory. `switchyard.hpp` has none of it.
///
/// A unit is an element of an expert's inner values, an expert is a group of units; a sub-function is a question with two answers about
/// a text, such as what a word means there, and a function has several of them. Everything is deterministic and computed on the calling
/// thread, in double but for activations. Functions throw `error` where sizes do not fit.
/// Source: Zhang et al. 2023, Emergent Modularity in Pre-trained Transformers, with its code.
#include <switchyard/modularity/functional_experts.hpp>
#include <switchyard/modularity/perturbation.hpp>
#include <switchyard/modularity/predictivity.hpp>
#include <switchyard/modularity/similarity.hpp>
