#pragma once

#include <switchyard/backend/cuda/cuda.cuh>
#include <switchyard/backend/cuda/keep_largest.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/products.cuh>
#include <switchyard/backend/cuda/steps.cuh>
#include <switchyard/backend/cuda/temporaries.cuh>
#include <switchyard/backend/offloaded.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/expert/feed_forward.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/offload/cache.hpp>
#include <switchyard/offload/device_memory.cuh>
#include <switchyard/offload/piece.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

/// Step 3 of `backend::cuda` and `backend::hopper` where the experts come from a cache on the device: those that are ready are computed by
/// one launch of each product, then those that have come meanwhile, until there are no more. A row stands where the plan has put it, an
/// expert's weights in the place that it has in the cache, and the kernels and their tiles are those of the layer with its experts in
/// memory, so that every sum is the same.
namespace switchyard {

namespace offload {

template <class Local>
requires std::is_same_v<typename Local::context, cuda_context>
struct memory_of<Local> {
  using type = device_memory;
};

}  // namespace offload

namespace cuda {

template <class Products>
struct experts_step<offload::from_cache<expert::two_products>, Products> {
  using in_memory = experts_step<expert::two_products, Products>;

  /// `numbers` are those of all batches of a call: `device_call::take_numbers`.
  template <class Layer>
  struct memory : in_memory::template memory<Layer> {
    std::int32_t* numbers;

    constexpr memory(carver& from, std::int64_t tokens) : in_memory::template memory<Layer>(from, tokens) {
      numbers = from.take<std::int32_t>(offload::device_call::numbers_of_batches * Layer::dims.experts);
    }
  };

  /// The host waits twice: for the plan, to know which experts have rows, and for reads of experts that are not resident. Throws `error`
  /// where one cannot be read, or the cache is cancelled: decisions may be written then, the output is not.
  template <class Layer>
  static expert_results<typename Layer::element> enqueue(forward_args<Layer> const& args, launch_queue const& queue,
                                                         view<typename Layer::element const> const& tokens,
                                                         plan_memory const& plan, memory<Layer> const& m,
                                                         pass_size const*) {
    auto const& of_layer = args.weights.experts;
    offload::device_memory& places = of_layer.cache->memory();
    check_not_captured(queue.stream());
    offload::device_call on_device(places, queue.stream());
    std::int32_t const* const offsets = on_device.read_back(plan.plan.offsets, Layer::dims.experts + 1);
    std::size_t needed = 0;
    for (int e = 0; e < Layer::dims.experts; ++e) {
      if (offsets[e] < offsets[e + 1]) on_device.experts()[needed++] = of_layer.first + e;
    }
    offload::resident_call call(of_layer, {on_device.experts(), needed});

    offload::placed_weights<Layer> const placed(places.place(0), of_layer.cache->bytes_of_place());
    auto both =
        in_memory::products_of(args, placed, tokens, plan, m, [](auto const& operand) { return as_operand(operand); });
    bool has_shared = Layer::expert_traits.shared_intermediate > 0;
    std::int32_t* numbers = m.numbers;
    for (;;) {
      int const count = call.take(on_device.experts(), on_device.places());
      if (count == 0 && !has_shared) break;
      for (int i = 0; i < count; ++i) on_device.experts()[i] -= of_layer.first;
      numbers = enqueue_batch<Layer>(args, queue, both, m, on_device, offsets, count, numbers);
      // The shared expert is in the first batch.
      has_shared = false;
      both.in.shared.features = both.out.shared.features = 0;
    }
    return in_memory::template results_of<Layer>(args, m);
  }

 private:
  /// The products of some experts. Returns where the numbers of the next batch stand.
  template <class Layer>
  static std::int32_t* enqueue_batch(forward_args<Layer> const& args, launch_queue const& queue,
                                     both_products<operand_of<Layer>>& both, memory<Layer> const& m,
                                     offload::device_call& on_device, std::int32_t const* offsets, int count,
                                     std::int32_t* numbers) {
    constexpr bool lists_rows = Layer::expert_traits.kept_units > 0;
    int const taken = count * (lists_rows ? 5 : 3) + (lists_rows ? 1 : 0);
    std::int32_t* const written = on_device.take_numbers(taken);
    std::int32_t *const begin = written, *const end = begin + count, *const place = end + count,
                        *const id = place + count, *const before = id + count;
    std::int32_t rows = 0;
    for (int i = 0; i < count; ++i) {
      int const e = on_device.experts()[i];
      begin[i] = offsets[e];
      end[i] = offsets[e + 1];
      place[i] = on_device.places()[i];
      if constexpr (lists_rows) {
        id[i] = e;
        before[i] = rows;
      }
      rows += end[i] - begin[i];
    }
    if constexpr (lists_rows) before[count] = rows;
    check("cudaMemcpyAsync", cudaMemcpyAsync(numbers, written, static_cast<std::size_t>(taken) * sizeof *numbers,
                                             cudaMemcpyHostToDevice, queue.stream()));
    both.in.experts = both.out.experts = {.count = count,
                                          .begin = numbers,
                                          .end = numbers + count,
                                          .matrix_of = numbers + 2 * count,
                                          .matrices = on_device.all_places(),
                                          .most = rows};
    offload::device_call::batch const in_use(on_device, count);
    Products::template enqueue<Layer>(queue, both.in, both.out, [&] {
      in_memory::template enqueue_between<Layer>(
          args, queue, m,
          {.experts = count, .offsets = numbers + 4 * count, .begin = numbers, .expert_of = numbers + 3 * count}, rows);
    });
    return numbers + taken;
  }
};

}  // namespace cuda
}  // namespace switchyard
