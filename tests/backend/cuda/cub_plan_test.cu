#include <thrust/copy.h>
#include <thrust/device_vector.h>
#include <thrust/fill.h>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
#include <thrust/tabulate.h>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_reduce.cuh>
#include <cub/device/device_scan.cuh>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "device.cuh"
#include "support/compare.hpp"

using namespace support;

namespace {

/// An expert for every pair, some of them more popular than others.
struct popular_expert {
  int experts;
  __host__ __device__ std::int32_t operator()(std::int64_t pair) const {
    std::uint32_t const mixed = static_cast<std::uint32_t>(pair) * 2654435761u;
    return static_cast<std::int32_t>((mixed >> 20) % static_cast<unsigned>(experts) * (mixed >> 24) / 256);
  }
};

struct own_number {
  __host__ __device__ std::int32_t operator()(std::int64_t i) const { return static_cast<std::int32_t>(i); }
};

/// One for the pairs of one expert.
struct is_expert {
  std::int32_t const* experts;
  std::int32_t expert;
  __host__ __device__ std::int32_t operator()(std::int64_t pair) const { return experts[pair] == expert ? 1 : 0; }
};

/// Calls a function of CUB twice, as all of them want it: for the size of its memory, then to run.
template <class Function>
void run_cub(Function const& function) {
  std::size_t bytes = 0;
  check_cuda(function(nullptr, bytes));
  device_array<std::byte> const memory(bytes);
  check_cuda(function(memory.data(), bytes));
}

/// A plan in the words of CUB: pairs sorted by expert, stable, and sums of how many each expert has.
struct sorted_pairs {
  thrust::device_vector<std::int32_t> pair_of, offsets, counts;

  sorted_pairs(thrust::device_vector<std::int32_t> const& ids, int experts)
      : pair_of(ids.size()), offsets(experts + 1), counts(experts) {
    int const pairs = static_cast<int>(ids.size());
    thrust::device_vector<std::int32_t> sorted(ids.size()), numbers(ids.size());
    thrust::tabulate(numbers.begin(), numbers.end(), own_number{});
    auto const at = [](auto& values) { return thrust::raw_pointer_cast(values.data()); };
    run_cub([&](void* memory, std::size_t& bytes) {
      return cub::DeviceRadixSort::SortPairs(memory, bytes, at(ids), at(sorted), at(numbers), at(pair_of), pairs);
    });
    for (int e = 0; e < experts; ++e) {
      auto const ones =
          thrust::make_transform_iterator(thrust::counting_iterator<std::int64_t>(0), is_expert{at(ids), e});
      run_cub([&](void* memory, std::size_t& bytes) {
        return cub::DeviceReduce::Sum(memory, bytes, ones, at(counts) + e, pairs);
      });
    }
    thrust::fill(offsets.begin(), offsets.end(), 0);
    run_cub([&](void* memory, std::size_t& bytes) {
      return cub::DeviceScan::InclusiveSum(memory, bytes, at(counts), at(offsets) + 1, experts);
    });
  }
};

template <class T>
std::vector<T> on_host(thrust::device_vector<T> const& values) {
  std::vector<T> copy(values.size());
  thrust::copy(values.begin(), values.end(), copy.begin());
  return copy;
}

}  // namespace

TEST_CASE("the GPU's plan is a stable sort of the pairs by expert, as CUB makes it", "[gpu]") {
  if (!has_device()) return;
  using layer = sy::layer<sy::shape{.hidden = 4, .intermediate = 4, .experts = 5, .top_k = 3}, sy::router::precomputed,
                          sy::capacity::dropless, sy::expert::mlp<sy::relu>, sy::backend::cuda>;
  constexpr int experts = layer::dims.experts, top_k = layer::dims.top_k;
  for (int tokens : {1, 700, 3000}) {
    INFO(tokens << " tokens");
    thrust::device_vector<std::int32_t> ids(tokens * top_k);
    thrust::device_vector<float> weights(tokens * top_k, 0.25f), zeros(tokens * 4 + 80, 0.0f), output(tokens * 4);
    thrust::tabulate(ids.begin(), ids.end(), popular_expert{experts});
    device_array<std::byte> const workspace(layer::workspace_bytes(tokens));
    auto const at = [](auto& values) { return thrust::raw_pointer_cast(values.data()); };
    layer::args args{};
    args.tokens = layer::rows(static_cast<float const*>(at(zeros)), tokens);
    args.weights.up_proj = layer::in_proj(at(zeros));
    args.weights.down_proj = layer::out_proj(at(zeros));
    args.output = layer::rows(at(output), tokens);
    args.workspace = {workspace.data(), workspace.size()};
    args.inputs = {at(ids), at(weights)};
    stream const own;
    check_cuda(cudaDeviceSynchronize());
    sy::backend::cuda::route<layer>(args, {.stream = own});
    sy::backend::cuda::plan<layer>(args, {.stream = own});
    own.wait();

    sorted_pairs const expected(ids, experts);
    sy::dispatch_plan const plan = sy::backend::cuda::plan_of<layer>(args);
    auto const copy = [](std::int32_t const* from, std::int64_t count) {
      std::vector<std::int32_t> to(count);
      check_cuda(cudaMemcpy(to.data(), from, count * sizeof(*from), cudaMemcpyDeviceToHost));
      return to;
    };
    std::vector<std::int32_t> const pair_of = on_host(expected.pair_of);
    CHECK(same_bits(copy(plan.offsets, experts + 1), on_host(expected.offsets)));
    CHECK(same_bits(copy(plan.pair_of, tokens * top_k), pair_of));
    std::vector<std::int32_t> row_of(pair_of.size());
    for (std::size_t row = 0; row < pair_of.size(); ++row) row_of[pair_of[row]] = static_cast<std::int32_t>(row);
    CHECK(same_bits(copy(plan.row_of, tokens * top_k), row_of));
  }
}
