#include <switchyard/offload.hpp>
#include <switchyard/offload/bounded_queue.hpp>
#include <switchyard/offload/host_store.hpp>
#include <switchyard/offload/pipeline.hpp>
#include <switchyard/sida/hash_table.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "support/random_numbers.hpp"
#include "support/said.hpp"

/// The two threads of SiDA: what one makes ahead of the other.
namespace {

namespace sy = switchyard;
using support::said;
using sy::offload::bounded_queue;
using sy::offload::pipeline;

/// Makes 0, 1, ... up to a number of items.
struct counting {
  int items, made = 0;
  std::optional<int> operator()() { return made < items ? std::optional(made++) : std::nullopt; }
};

std::vector<int> all_of(pipeline<int>& from) {
  std::vector<int> items;
  while (std::optional<int> const item = from.next()) items.push_back(*item);
  return items;
}

/// Waits for something that another thread does.
template <class Holds>
void wait_until(Holds const& holds) {
  while (!holds()) std::this_thread::yield();
}

}  // namespace

TEST_CASE("a queue hands over in order, however many items it takes", "[offload]") {
  for (std::size_t capacity : {1, 2, 16}) {
    bounded_queue<std::unique_ptr<int>> queue(capacity);
    std::atomic<bool> within = true;
    std::jthread const producer([&] {
      for (int i = 0; i < 100; ++i) {
        queue.push(std::make_unique<int>(i));
        if (queue.size() > capacity) within = false;
      }
      queue.close();
    });
    int next = 0;
    while (std::optional<std::unique_ptr<int>> const item = queue.pop()) CHECK(**item == next++);
    CHECK(next == 100);
    CHECK(within);
    CHECK_FALSE(queue.push(nullptr));
  }
}

TEST_CASE("a queue that is cancelled forgets its items and lets everybody go", "[offload]") {
  bounded_queue<int> full(2);
  CHECK(full.push(1));
  CHECK(full.push(2));
  std::optional<bool> pushed;
  {
    std::jthread const waits([&] { pushed = full.push(3); });
    full.cancel();
  }
  CHECK(pushed == false);
  CHECK(full.size() == 0);
  CHECK_FALSE(full.pop());

  bounded_queue<int> empty(2);
  std::optional<int> popped = 7;
  {
    std::jthread const waits([&] { popped = empty.pop(); });
    empty.cancel();
  }
  CHECK_FALSE(popped);
  CHECK(said([] { bounded_queue<int> none(0); }) ==
        "switchyard: offload::bounded_queue, capacity: expected at least 1, got 0");
}

TEST_CASE("a pipeline runs ahead by its capacity and one, and ends with its stream", "[offload]") {
  std::atomic<int> made = 0;
  pipeline<int> ahead(
      [&]() -> std::optional<int> {
        int const item = made++;
        return item < 30 ? std::optional(item) : std::nullopt;
      },
      4);
  CHECK(ahead.next() == 0);
  wait_until([&] { return made == 6; });  // 0 is taken, 1 to 4 wait, and 5 was made and waits for room
  CHECK(made == 6);
  CHECK(all_of(ahead).size() == 29);
  CHECK_FALSE(ahead.next());
  CHECK(made == 31);  // nobody asks again after the end

  pipeline<int> nothing(counting{0});
  CHECK_FALSE(nothing.next());
  pipeline<int> one(counting{1}, 1);
  CHECK(all_of(one) == std::vector{0});
  CHECK(said([] { pipeline<int> none(counting{1}, 0); }) ==
        "switchyard: offload::bounded_queue, capacity: expected at least 1, got 0");
}

TEST_CASE("what the thread throws arrives once, after the items before it", "[offload]") {
  for (std::size_t capacity : {1, 16}) {
    pipeline<int> broken(
        [made = 0]() mutable -> std::optional<int> {
          if (made == 5) sy::fail("a store", "a file", "none");
          return made++;
        },
        capacity);
    for (int i = 0; i < 5; ++i) CHECK(broken.next() == i);
    CHECK(said([&] { broken.next(); }) == "switchyard: a store: expected a file, got none");
    CHECK_FALSE(broken.next());
    CHECK_FALSE(broken.next());
  }
  // Any exception is handed over as it is; one that nobody asks for is forgotten.
  pipeline<int> at_once([]() -> std::optional<int> { throw std::runtime_error("no memory"); });
  CHECK_THROWS_AS(at_once.next(), std::runtime_error);
  pipeline<int> unasked([]() -> std::optional<int> { throw 1; });
}

TEST_CASE("a pipeline ends when its user does not want any more, wherever the thread is", "[offload]") {
  {
    pipeline<int> waits_for_room(counting{1000}, 1);
    CHECK(waits_for_room.next() == 0);
  }
  {
    std::atomic<bool> waits = false, seen = false;
    pipeline<int> makes_one([&, made = 0](std::stop_token stop) mutable -> std::optional<int> {
      if (made == 1) {
        waits = true;
        wait_until([&] { return stop.stop_requested(); });
        seen = true;
      }
      return made++;
    });
    CHECK(makes_one.next() == 0);
    wait_until([&] { return waits.load(); });
    makes_one.cancel();
    CHECK_FALSE(makes_one.next());
    wait_until([&] { return seen.load(); });
    CHECK_FALSE(makes_one.next());
  }
  {
    // An item that waits is thrown away, and so is what was thrown after it.
    std::atomic<bool> thrown = false;
    pipeline<int> broken([&, made = 0]() mutable -> std::optional<int> {
      if (made == 1) {
        thrown = true;
        throw 1;
      }
      return made++;
    });
    wait_until([&] { return thrown.load(); });
    broken.cancel();
    CHECK_FALSE(broken.next());
  }
  {
    // From another thread than the one that waits.
    pipeline<int> never([](std::stop_token stop) -> std::optional<int> {
      wait_until([&] { return stop.stop_requested(); });
      return std::nullopt;
    });
    std::jthread const cancels([&] { never.cancel(); });
    CHECK_FALSE(never.next());
  }
}

TEST_CASE("tables of groups, of which the last has fewer tokens, come as they are built alone", "[offload][sida]") {
  constexpr std::int64_t tokens = 10;
  constexpr int experts = 6, layers = 2, top_k = 2;
  std::vector<float> logits;  // [tokens, layers, experts]
  for (int i = 0; i < tokens * layers * experts; ++i) logits.push_back(static_cast<float>(i * 7 % 11));
  auto const table_of = [&](std::int64_t first, std::int64_t count) {
    std::vector<float> of_group;  // [layers, tokens, experts]
    for (int layer = 0; layer < layers; ++layer) {
      for (std::int64_t t = first; t < first + count; ++t) {
        auto const at = logits.begin() + (t * layers + layer) * experts;
        of_group.insert(of_group.end(), at, at + experts);
      }
    }
    sy::sida::hash_table table;
    sy::sida::build_hash_table(of_group.data(), layers, count, experts, top_k, table);
    return table;
  };
  // Groups of one, of some, and one group of all; with one place, and with more than there are groups.
  for (std::int64_t group : {1, 4, 10, 64}) {
    for (std::size_t capacity : {1, 16}) {
      pipeline<sy::sida::hash_table> tables(
          [&, first = std::int64_t{0}]() mutable -> std::optional<sy::sida::hash_table> {
            if (first == tokens) return std::nullopt;
            std::int64_t const begin = first, count = std::min(group, tokens - first);
            first += count;
            return table_of(begin, count);
          },
          capacity);
      std::int64_t seen = 0;
      while (std::optional<sy::sida::hash_table> const table = tables.next()) {
        sy::sida::hash_table const alone = table_of(seen, std::min(group, tokens - seen));
        CHECK(table->tokens == alone.tokens);
        CHECK(table->ids == alone.ids);
        CHECK(table->probabilities == alone.probabilities);
        CHECK(table->needed_ids == alone.needed_ids);
        seen += table->tokens;
      }
      CHECK(seen == tokens);
    }
  }
}

namespace {

constexpr int layers = 2, experts = 6, top_k = 2;
template <class Backend>
using driven = sy::layer<sy::shape{.hidden = 16, .intermediate = 8, .experts = experts, .top_k = top_k},
                         sy::router::predicted<>, sy::capacity::dropless, sy::expert::mlp<sy::relu>, Backend>;
using resident = driven<sy::backend::cpu>;
using offloaded = driven<sy::backend::offloaded<sy::backend::cpu>>;
using piece = sy::offload::piece<resident>;

/// What the layer makes of a group's tokens with its table.
template <class Layer, class SetExperts>
std::vector<float> run(std::vector<float> const& x, sy::sida::hash_table const& table, int layer,
                       SetExperts const& set_experts) {
  std::vector<float> y(x.size());
  std::vector<std::byte> scratch(Layer::workspace_bytes(table.tokens));
  typename Layer::args args{};
  args.tokens = Layer::rows(x.data(), table.tokens);
  args.output = Layer::rows(y.data(), table.tokens);
  args.workspace = scratch;
  args.inputs = table.routes(layer);
  set_experts(args.weights);
  Layer::forward(args, {.threads = 1});
  return y;
}

}  // namespace

TEST_CASE("a thread's tables drive a cache, and the output is that of resident experts", "[offload][sida]") {
  support::random_numbers random(6);
  auto const drawn = [&](std::size_t count) {
    std::vector<float> values(count);
    for (float& v : values) v = static_cast<float>(random.normal());
    return values;
  };
  constexpr std::int64_t groups = 5, group = 4, place = sy::offload::place_bytes(piece::bytes);
  std::vector<float> const pieces = drawn(layers * experts * place / sizeof(float)), x = drawn(group * 16);
  std::vector<float> const logits = drawn(groups * layers * group * experts);
  sy::offload::host_store store({reinterpret_cast<std::byte const*>(pieces.data()), layers, experts, piece::bytes});
  for (std::size_t depth : {1, 16}) {
    // Less than a group needs, so that experts come one after the other.
    sy::offload::expert_cache<sy::offload::host_store, sy::offload::exact> cache(store, {.budget_bytes = 2 * place});
    pipeline<sy::sida::hash_table> tables(
        [&, made = 0]() mutable -> std::optional<sy::sida::hash_table> {
          if (made == groups) return std::nullopt;
          sy::sida::hash_table table;  // the last group has one token less
          sy::sida::build_hash_table(logits.data() + made * layers * group * experts, layers,
                                     made + 1 == groups ? group - 1 : group, experts, top_k, table);
          ++made;
          return table;
        },
        depth);
    int count = 0;
    for (; std::optional<sy::sida::hash_table> const table = tables.next(); ++count) {
      for (int layer = 0; layer < layers; ++layer) cache.expect(layer, table->needed(layer));
      for (int layer = 0; layer < layers; ++layer) {
        auto const got = run<offloaded>(x, *table, layer, [&](auto& w) { w.experts = cache.layer(layer); });
        sy::offload::placed_weights<resident> const placed(store.at(layer, 0), place);
        auto const expected = run<resident>(x, *table, layer, [&](auto& w) {
          w.up_proj = placed.up_proj;
          w.down_proj = placed.down_proj;
        });
        CHECK(got == expected);
      }
    }
    CHECK(count == groups);
    CHECK(cache.measure().peak_bytes <= 2 * place);
  }
}
