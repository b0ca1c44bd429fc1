#pragma once

#include "methods.hpp"

#include "../erase.cuh"

namespace switchyard::bench {

/// Compiles the layers of a shape: for the initialiser of a static object.
template <shape Dims>
bool compile_methods(bool small = false) {
  using of = methods<Dims, gpu_backend>;
  gpu_methods result;
  result.small = small;
  result.base = erase_whole<typename of::base>();
  result.shared = erase_whole<typename of::shared>();
  result.clustered = erase_whole<typename of::clustered>();
  result.stratified = erase_whole<typename of::stratified>();
  compiled_methods().push_back(result);
  return true;
}

}  // namespace switchyard::bench
