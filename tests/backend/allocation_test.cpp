// Counts every allocation of the program, so it replaces the global operators new and delete.
#include <switchyard/offload/cache.hpp>
#include <switchyard/offload/host_store.hpp>
#include <switchyard/offload/packed_file.hpp>
#include <switchyard/sida/predictor.hpp>

#include <atomic>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "catch.hpp"
#include "support/any_layer.hpp"
#include "support/call.hpp"
#include "support/random_problem.hpp"
#include "support/temporary_folder.hpp"
#include "support/threads.hpp"

namespace {

std::atomic<long> allocations{0};

void* counted_allocation(std::size_t bytes, std::size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  std::size_t const whole = (bytes / alignment + 1) * alignment;
  if (void* const memory = std::aligned_alloc(alignment, whole)) return memory;
  throw std::bad_alloc();
}

constexpr std::size_t usual = alignof(std::max_align_t);

}  // namespace

void* operator new(std::size_t bytes) { return counted_allocation(bytes, usual); }
void* operator new[](std::size_t bytes) { return counted_allocation(bytes, usual); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted_allocation(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return counted_allocation(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, std::nothrow_t const&) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(bytes > 0 ? bytes : 1);
}
void* operator new[](std::size_t bytes, std::nothrow_t const& tag) noexcept { return operator new(bytes, tag); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

TEST_CASE("forward and workspace_bytes do not allocate", "[forward]") {
  using namespace support;
  for (any_layer const& layer : compiled_layers()) {
    INFO(layer.name);
    problem const p = random_problem(layer, 133, routing::free, 7);
    any_layer counting = layer;
    static long during;
    static void (*forward)(any_args const&, switchyard::cpu_context const&);
    forward = layer.forward;
    counting.forward = [](any_args const& args, switchyard::cpu_context const& context) {
      long const before = allocations.load();
      forward(args, context);
      during = allocations.load() - before;
    };
    problem counted = p;
    counted.layer = &counting;
    switchyard::thread_pool const pool = one_after_the_other::pool(3);
    for (switchyard::thread_pool const* plugged : {static_cast<switchyard::thread_pool const*>(nullptr), &pool}) {
      during = -1;
      run(counted, {.context = {.threads = plugged == nullptr ? 1 : 3, .pool = plugged}});
      CHECK(during == 0);
    }
    long const before = allocations.load();
    std::size_t const bytes = layer.workspace_bytes(1000);
    CHECK(allocations.load() == before);
    CHECK(bytes > 0);
  }
}

TEST_CASE("a cache serves calls, and is told of calls to come, without allocating", "[offload]") {
  namespace offload = switchyard::offload;
  constexpr int layers = 2, experts = 6;
  std::vector<std::byte> const pieces(layers * experts * 4096);
  offload::host_store const in_memory({pieces.data(), layers, experts, 1000});
  support::temporary_folder const folder;
  std::string const path = folder / "allocation_test.experts";
  offload::pack(path, in_memory);
  auto const serve = [](auto& store) {
    offload::expert_cache<std::remove_reference_t<decltype(store)>> cache(
        store, {.budget_bytes = 5 * 4096, .horizon = 8, .record_calls = 4});
    std::int32_t const needed[][3] = {{0, 2, 3}, {1, 4, 5}, {0, 1, 2}};
    std::int32_t batch[3], places[3];
    long const before = allocations.load();
    for (int i = 0; i < 30; ++i) {
      if (i % 2 == 0 && cache.room_to_expect() > 0) cache.expect(i % 4 / 2, needed[i % 3]);
      offload::resident_call call(cache.layer(i % layers), needed[(i + 1) % 3]);
      while (call.take(batch, places) > 0) {
      }
    }
    CHECK(allocations.load() == before);
  };
  serve(in_memory);
  {
    offload::file_store in_file = offload::open_packed(path);
    serve(in_file);
  }
}

TEST_CASE("a predictor of experts predicts without allocating", "[sida]") {
  namespace sida = switchyard::sida;
  std::vector<float> const zeros(32 * 8);
  sida::linear const map{zeros.data(), zeros.data()};
  sida::lstm const lstm[2] = {{zeros.data(), zeros.data(), zeros.data(), zeros.data()},
                              {zeros.data(), zeros.data(), zeros.data(), zeros.data()}};
  sida::predictor const by{.embedding = 8,
                           .hidden = 8,
                           .experts = 4,
                           .compress = map,
                           .lstm_layers = lstm,
                           .residual = map,
                           .heads = {&map, 1}};
  std::vector<float> logits(2 * 5 * 4, 1.0f);
  std::vector<std::byte> scratch(sida::predict_workspace_bytes(by, 2, 5));
  long const before = allocations.load();
  sida::predict(
      by, {.embeddings = zeros.data(), .sequences = 2, .length = 5, .logits = logits.data(), .workspace = scratch});
  CHECK(allocations.load() == before);
  CHECK(logits == std::vector<float>(logits.size()));
}

TEST_CASE("an allocation is noticed", "[forward]") {
  long const before = allocations.load();
  std::vector<int> const numbers(100);
  CHECK(allocations.load() == before + 1);
  CHECK(numbers.size() == 100);
}
