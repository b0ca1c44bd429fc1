#include "memory.hpp"
#include "setup.hpp"
#include "timing.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace switchyard::bench {

ceilings measure_gpu_ceilings(gpu_setup const& gpu) {
  schedule const with = gpu.smoke ? once(1) : schedule{.seconds = 0.4, .sample_seconds = 1e-2};
  ceilings result;
  {
    std::int64_t const bytes = gpu.smoke ? 1 << 16 : std::int64_t{2} << 30;
    auto const from = device_noise<bfloat16>(bytes / 2, 1, 1.0f);
    auto const to = device_noise<bfloat16>(bytes / 4, 2, 1.0f);
    device_memory<unsigned> const sink(1);
    int const blocks = gpu.smoke ? 2 : 8 * attribute(cudaDevAttrMultiProcessorCount);
    auto const times = take_turns(
        {{"read", [&](int) { read_all(from.data(), bytes, sink.data(), blocks, gpu.stream); }},
         {"copy",
          [&](int) {
            check_cuda(cudaMemcpyAsync(to.data(), from.data(), bytes / 2, cudaMemcpyDeviceToDevice, gpu.stream));
          }}},
        with, gpu.stream);
    // The copy reads as much as it writes.
    result.bytes = static_cast<double>(bytes) / std::min(times[0].median(), times[1].median());
  }
  if (gpu.peer != nullptr) {
    int const size = gpu.smoke ? 256 : 8192;
    auto const a = device_noise<bfloat16>(std::int64_t{size} * size, 3, 1.0f);
    auto const b = device_noise<bfloat16>(std::int64_t{size} * size, 4, 1.0f);
    device_memory<bfloat16> const c(std::int64_t{size} * size);
    cublas_product const product{size, size, size, a.data(), b.data(), c.data()};
    auto const times = take_turns({{"product", [&](int) { gpu.peer->multiply(product); }}}, with, gpu.stream);
    result.flops = 2.0 * size * static_cast<double>(size) * size / times[0].median();
  }
  return result;
}

}  // namespace switchyard::bench
