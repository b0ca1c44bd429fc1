#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "catch.hpp"

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace sy = switchyard;

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#if !defined(__has_feature)
#define __has_feature(name) 0
#endif
#if !__has_feature(address_sanitizer)
namespace {

/// Runs `work` on a thread whose stack is filled with a pattern beforehand. Returns how many bytes of it `work` has used.
class measured_stack {
 public:
  measured_stack()
      : first_(static_cast<unsigned char*>(
            mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0))) {
    std::memset(first_, pattern, bytes);
  }
  measured_stack(measured_stack const&) = delete;
  ~measured_stack() { munmap(first_, bytes); }

  template <class Work>
  void run(Work& work) {
    job j{[](void* w) { (*static_cast<Work*>(w))(); }, &work, nullptr};
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, first_, bytes);
    pthread_t thread;
    REQUIRE(pthread_create(&thread, &attributes, &job::start, &j) == 0);
    pthread_join(thread, nullptr);
    pthread_attr_destroy(&attributes);
    unsigned char const* lowest = first_;
    while (lowest < first_ + bytes && *lowest == pattern) ++lowest;
    used_ = std::max(used_, static_cast<std::size_t>(j.began_at - lowest));
  }
  std::size_t used() const { return used_; }

 private:
  static constexpr std::size_t bytes = 1 << 20;
  static constexpr unsigned char pattern = 0xa5;
  struct job {
    void (*work)(void*);
    void* argument;
    unsigned char const* began_at;

    static void* start(void* self) {
      unsigned char here = 0;
      job& j = *static_cast<job*>(self);
      j.began_at = &here;
      j.work(j.argument);
      return nullptr;
    }
  };
  unsigned char* first_;
  std::size_t used_ = 0;
};

/// A pool whose workers are such threads.
struct measured_pool {
  measured_stack stacks[2];

  static void run(void* self, int workers, void (*body)(void* argument, int worker), void* argument) {
    for (int w = 0; w < workers; ++w) {
      auto work = [&] { body(argument, w); };
      static_cast<measured_pool*>(self)->stacks[w].run(work);
    }
  }
};

/// The most stack that a thread of a call takes, the caller's and the workers'.
template <class Layer>
std::size_t stack_of(int tokens, bool transposed, sy::instruction_set set) {
  using element = typename Layer::element;
  constexpr int hidden = Layer::dims.hidden, inner = Layer::dims.intermediate, experts = Layer::dims.experts;
  std::vector<element> const matrix(std::size_t{experts} * hidden * inner, element(0.01f));
  std::vector<element> const x(std::size_t(tokens) * hidden, element(0.5f));
  std::vector<element> y(x.size());
  std::vector<float> router(experts * hidden);
  for (std::size_t i = 0; i < router.size(); ++i) router[i] = static_cast<float>(i % 7) * 0.01f;
  std::vector<std::byte> scratch(Layer::workspace_bytes(tokens));
  sy::auxiliary_values auxiliary;
  using matrices = sy::weight_view<element>;
  typename Layer::args args{};
  args.tokens = Layer::rows(x.data(), tokens);
  args.weights.router.weight = router.data();
  args.weights.gate_proj = args.weights.up_proj =
      transposed ? matrices::transposed(matrix.data(), inner, hidden) : matrices(Layer::in_proj(matrix.data()));
  args.weights.down_proj =
      transposed ? matrices::transposed(matrix.data(), hidden, inner) : matrices(Layer::out_proj(matrix.data()));
  args.output = Layer::rows(y.data(), tokens);
  args.workspace = scratch;
  args.auxiliary = &auxiliary;
  measured_pool workers;
  sy::thread_pool const pool{&workers, 2, &measured_pool::run};
  measured_stack caller;
  auto work = [&] { Layer::forward(args, {.threads = 2, .pool = &pool, .instructions = set}); };
  caller.run(work);
  sy::cpu_context const alone{.threads = 1, .instructions = set};
  auto work_alone = [&] { Layer::forward(args, alone); };
  caller.run(work_alone);
  return std::max({caller.used(), workers.stacks[0].used(), workers.stacks[1].used()});
}

template <class Element, int Experts>
using stacked =
    sy::layer<sy::shape{.hidden = 520, .intermediate = 136, .experts = Experts, .top_k = 2}, sy::router::softmax_top_k,
              sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>, sy::backend::cpu, Element>;

}  // namespace

TEMPLATE_TEST_CASE("a call needs at most 64 KB of stack on any thread", "[layer]", float, sy::bfloat16, sy::half) {
  for (int set = 1; set <= static_cast<int>(sy::best_instruction_set()); ++set) {
    for (int tokens : {1, 40, 600}) {
      for (bool transposed : {false, true}) {
        CAPTURE(set, tokens, transposed);
        CHECK(stack_of<stacked<TestType, 4>>(tokens, transposed, static_cast<sy::instruction_set>(set)) <= 64 * 1024);
      }
    }
  }
}

TEST_CASE("terms of low rank need at most 64 KB of stack on any thread", "[layer]") {
  using layer = sy::layer<sy::shape{520, 136, 2, 2}, sy::router::precomputed, sy::capacity::dropless,
                          sy::expert::adapters<2, 70, sy::expert::gated_mlp<sy::silu>>>;
  std::vector<float> const numbers(2 * 2 * 520 * 136, 0.01f);
  for (int set = 1; set <= static_cast<int>(sy::best_instruction_set()); ++set) {
    for (int tokens : {1, 40, 300}) {
      std::vector<float> y(std::size_t(tokens) * 520);
      std::vector<std::int32_t> const ones(y.size(), 1);
      std::vector<std::byte> scratch(layer::workspace_bytes(tokens));
      layer::args args{};
      args.tokens = layer::rows(numbers.data(), tokens);
      args.weights.gate_proj = layer::in_proj(numbers.data(), numbers.data(), numbers.data());
      args.weights.up_proj = args.weights.gate_proj;
      args.weights.down_proj = layer::out_proj(numbers.data(), numbers.data(), numbers.data());
      args.output = layer::rows(y.data(), tokens);
      args.workspace = scratch;
      args.inputs = {ones.data(), numbers.data()};
      args.expert_inputs.adapter = ones.data();
      measured_pool workers;
      sy::thread_pool const pool{&workers, 2, &measured_pool::run};
      measured_stack caller;
      auto work = [&] {
        layer::forward(args, {.threads = 2, .pool = &pool, .instructions = static_cast<sy::instruction_set>(set)});
      };
      caller.run(work);
      CAPTURE(set, tokens);
      CHECK(std::max({caller.used(), workers.stacks[0].used(), workers.stacks[1].used()}) <= 64 * 1024);
    }
  }
}

TEST_CASE("experts of few units need at most 64 KB of stack on any thread", "[layer]") {
  using layer = sy::layer<sy::shape{512, 64, 4, 2}, sy::router::softmax_top_k, sy::capacity::dropless,
                          sy::expert::gated_mlp<sy::silu>>;
  for (int set = 1; set <= static_cast<int>(sy::best_instruction_set()); ++set) {
    CAPTURE(set);
    for (int tokens : {1, 600}) {
      CHECK(stack_of<layer>(tokens, true, static_cast<sy::instruction_set>(set)) <= 64 * 1024);
    }
  }
}

TEST_CASE("a call with many experts needs at most 64 KB of stack", "[layer]") {
  CHECK(stack_of<stacked<float, 2048>>(3, false, sy::instruction_set::portable) <= 64 * 1024);
}
#endif
#endif
