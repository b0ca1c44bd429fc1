// Takes the place of moe_on_cuda.cu where there is no nvcc.
#include <memory>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "moe.hpp"

namespace tiny_lm {

std::unique_ptr<moe_layers> layers_on_cuda(std::string_view, std::span<moe_weights const>, std::vector<float> const&) {
  throw std::runtime_error(
      "--backend cuda: this program was built without nvcc. Put nvcc on the PATH or set CUDACXX to it, and configure "
      "and build again in an empty folder.");
}

}  // namespace tiny_lm
