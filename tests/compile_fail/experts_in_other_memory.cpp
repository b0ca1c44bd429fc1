// expect: switchyard: this cache has its places in other memory than the layer's backend reads.
#include <switchyard/offload.hpp>

namespace sy = switchyard;
class memory_of_a_device;
sy::offload::layer_experts<memory_of_a_device> wrong(
    sy::offload::layer_experts<sy::offload::host_memory> const& experts) {
  return experts;
}
