#include <switchyard/offload/host_store.hpp>
#include <switchyard/offload/packed_file.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "device.cuh"
#include "offloaded.cuh"
#include "support/compare.hpp"
#include "support/failing_store.hpp"
#include "support/said.hpp"
#include "support/temporary_folder.hpp"

/// Experts that a cache brings to the GPU.
using namespace support;

namespace {

// clang-format off
using kinds_of_layers = tested::on<std::tuple<
    tested::computed<tested::expert::with_bias<tested::top_k_units<tested::gated_mlp<sy::silu>, 30>>, 20, 71, tested::factor<1>, tested::on_input<tested::sigmoid_top_k>>,
    tested::computed<tested::expert::scaled<tested::with_null_experts<tested::mlp<sy::relu>, sy::null_experts{.constant = 1, .mixed_constant = 2, .identity = 1, .zero = 1}>, 4, 5>, 33, 40, tested::on_drop<tested::factor<1, 2>, sy::dropped::input>>,
    tested::stored<sy::bfloat16, 3, 2, tested::on_input<tested::sigmoid_top_k>, tested::factor<1>, tested::with_shared<tested::gated_mlp<sy::silu>, 17, sy::shared_gate::sigmoid>>,
    tested::stored<sy::half, 6, 2, tested::stratified<tested::softmax_top_k, 3, 3>, tested::dropless, tested::gated_mlp<sy::silu>>,
    tested::stored<sy::half, 3, 2, tested::softmax_top_k, tested::dropless, tested::top_k_units<tested::mlp<sy::relu>, 5, sy::unit_ranking::norm_compensated>>>, sy::backend::cuda>;
// clang-format on

// In a tuple, for nvcc 13.0 cannot name a layer outside of templates.
using usual_layer = tested::on<std::tuple<tested::routed<40, 8, tested::softmax_top_k, 48>>, sy::backend::cuda>;

template <class Resident>
void check_streams(std::tuple<Resident> const*) {
  using compared = offloaded_problem<Resident>;
  compared const p(30);
  sy::offload::host_store store = p.store();
  device_cache<sy::offload::host_store> cache(store, {.budget_bytes = 3 * compared::place});
  std::vector<float> const expected[] = {p.resident(0), p.resident(1)};
  stream const streams[2];
  std::vector<typename compared::call> calls;
  for (int c = 0; c < 4; ++c) calls.push_back(p.new_call());
  for (int c = 0; c < 4; ++c) p.forward(cache, c % 2, calls[c], streams[c / 2 % 2 ^ c % 2]);
  for (stream const& s : streams) s.wait();
  for (int c = 0; c < 4; ++c) CHECK(same_bits(calls[c].output.copy_out(), expected[c % 2]));
}

template <class Resident>
void check_reads_in_vain(std::tuple<Resident> const*) {
  using compared = offloaded_problem<Resident>;
  compared const p(1);
  auto store = p.store();
  device_cache<sy::offload::host_store> cache(store, {.budget_bytes = compared::place});
  std::vector<std::byte> got(compared::bytes);
  for (int turn = 0; turn < 8; ++turn) {
    for (std::int32_t e : {2 * turn, 2 * turn + 1}) {
      cache.expect(1, {&e, 1});
      while (!cache.is_resident(1, e)) std::this_thread::yield();
      cache.forget_expected();
    }
    check_cuda(cudaDeviceSynchronize());
    check_cuda(cudaMemcpy(got.data(), cache.memory().place(0), got.size(), cudaMemcpyDeviceToHost));
    CHECK(std::memcmp(got.data(), store.at(1, 2 * turn + 1), got.size()) == 0);
  }
}

template <class Resident>
void check_failing_store(std::tuple<Resident> const*) {
  using compared = offloaded_problem<Resident>;
  compared const p(30);
  sy::offload::host_store good = p.store();
  failing_store store(good);
  device_cache<decltype(store)> cache(store, {.budget_bytes = 20 * compared::place});
  std::vector<float> const poison(30 * compared::dims.hidden, 7.0f);
  typename compared::call call = p.new_call();
  call.output.copy_in(poison);
  stream const own;
  store.fail_piece(1, 11);
  CHECK(
      said([&] { p.forward(cache, 1, call, own); }) ==
      "switchyard: layer::forward, weights.experts: expected expert 11 of layer 1 from its store, got the store fails "
      "on request");
  own.wait();
  CHECK(same_bits(call.output.copy_out(), poison));
  store.heal();
  p.forward(cache, 1, call, own);
  own.wait();
  CHECK(same_bits(call.output.copy_out(), p.resident(1)));
}

template <class Resident>
void check_stores(std::tuple<Resident> const*) {
  using compared = offloaded_problem<Resident>;
  compared const p(6);
  std::vector<float> const expected = p.resident(1);
  auto const check = [&](auto& store) {
    device_cache<std::remove_reference_t<decltype(store)>> cache(store, {.budget_bytes = 7 * compared::place});
    typename compared::call const call = p.new_call();
    stream const own;
    p.forward(cache, 1, call, own);
    own.wait();
    CHECK(same_bits(call.output.copy_out(), expected));
  };
  std::vector<std::byte> pageable(p.pieces().data(), p.pieces().data() + p.pieces().size());
  sy::offload::host_store store = compared::store_in(pageable.data());
  check(store);
  {
    auto const pinned = sy::offload::pinned_memory::of(pageable);
    check(store);
  }
  temporary_folder const folder;
  std::string const path = folder / "experts.bin";
  CHECK(sy::offload::pack(path, store));
  sy::offload::file_store file = sy::offload::open_packed(path);
  check(file);
}

template <class Resident>
void check_calls(std::tuple<Resident> const*) {
  using compared = offloaded_problem<Resident>;
  compared const p(6);
  sy::offload::host_store good = p.store();
  failing_store store(good);
  device_cache<decltype(store)> cache(store, {.budget_bytes = 3 * compared::place});
  typename compared::call const call = p.new_call();
  stream const own;
  p.forward(cache, 0, call, own);
  own.wait();
  std::size_t before = 0, after = 0, all = 0;
  check_cuda(cudaMemGetInfo(&before, &all));
  p.forward(cache, 1, call, own);
  own.wait();
  check_cuda(cudaMemGetInfo(&after, &all));
  CHECK(after == before);
  CHECK(same_bits(call.output.copy_out(), p.resident(1)));

  using layer = typename compared::layer;
  auto args = p.template args_of<layer>(call);
  args.weights.experts = cache.layer(0);
  layer::backend::template route<layer>(args, {.stream = own});
  layer::backend::template plan<layer>(args, {.stream = own});
  layer::backend::template experts<layer>(args, {.stream = own});
  own.wait();
  CHECK(same_bits(call.output.copy_out(), p.resident(0)));

  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamBeginCapture(own, cudaStreamCaptureModeThreadLocal));
  CHECK(said([&] { p.forward(cache, 0, call, own); }) ==
        "switchyard: backend::offloaded: expected a stream that is not captured (which experts have to be fetched is "
        "known to no graph), got one that is");
  check_cuda(cudaStreamEndCapture(own, &graph));
  std::size_t nodes = 1;
  check_cuda(cudaGraphGetNodes(graph, nullptr, &nodes));
  CHECK(nodes == 0);
  cudaGraphDestroy(graph);
}

}  // namespace

TEST_CASE("on the GPU offloaded experts give the bits of those in memory", "[gpu][offload]") {
  if (!has_device()) return;
  check_all_offloaded(static_cast<kinds_of_layers*>(nullptr));
}

TEST_CASE("on the GPU calls with one cache may follow each other on several streams", "[gpu][offload]") {
  if (!has_device()) return;
  check_streams(static_cast<usual_layer*>(nullptr));
}

TEST_CASE("on the GPU what was read ahead in vain is not written over what was read after it", "[gpu][offload]") {
  if (!has_device()) return;
  check_reads_in_vain(static_cast<usual_layer*>(nullptr));
}

TEST_CASE("on the GPU an expert that cannot be read is an error of its call alone", "[gpu][offload]") {
  if (!has_device()) return;
  check_failing_store(static_cast<usual_layer*>(nullptr));
}

TEST_CASE("on the GPU a store may be a file, or memory that is pageable or pinned", "[gpu][offload]") {
  if (!has_device()) return;
  check_stores(static_cast<usual_layer*>(nullptr));
}

TEST_CASE("on the GPU calls with offloaded experts have steps, allocate nothing, and refuse a capture",
          "[gpu][offload]") {
  if (!has_device()) return;
  check_calls(static_cast<usual_layer*>(nullptr));
}

TEST_CASE("a cache that finds no room on the device says what to lower", "[gpu][offload]") {
  if (!has_device()) return;
  std::byte const nothing{};
  sy::offload::host_store store(
      {.pieces = &nothing, .layers = 16, .experts = 64, .piece_bytes = std::int64_t{1} << 41});
  CHECK(
      said([&] { device_cache<sy::offload::host_store> cache(store, {.budget_bytes = std::int64_t{1} << 51}); })
          .find(
              "switchyard: offload::expert_cache, budget_bytes: expected 2251799813685248 bytes of free device memory "
              "(lower budget_bytes), got cudaErrorMemoryAllocation") == 0);
}
