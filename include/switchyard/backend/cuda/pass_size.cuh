#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace switchyard::cuda {

/// How many of a call's tokens a pass of a stratified layer has, which only the device knows. Launches are for all tokens
/// of the call; blocks past those of the pass have nothing to do.
struct pass_size {
  std::int64_t tokens;
};

/// The tokens of a call, or of one of its passes.
__device__ inline std::int64_t tokens_at_hand(std::int64_t tokens, pass_size const* pass) {
  return pass == nullptr ? tokens : pass->tokens;
}

}  // namespace switchyard::cuda
