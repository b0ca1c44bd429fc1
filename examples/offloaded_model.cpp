// A model whose experts are five times what memory may hold: they lie in a file, a cache keeps a fifth of them, and every way to choose
// that fifth gives the bits of the model in memory. It prints what each way reads and how long it takes, and draws it.
//
//   offloaded_model [picture.svg]
#include <switchyard/offload.hpp>
#include <switchyard/offload/pack_experts.hpp>
#include <switchyard/offload/packed_file.hpp>
#include <switchyard/offload/predict.hpp>
#include <switchyard/offload/read_rate.hpp>
#include <switchyard/offload/simulate.hpp>
#include <switchyard/offload/trace.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tiny_lm/line_chart.hpp"

namespace {

namespace sy = switchyard;
namespace offload = sy::offload;

constexpr int layers = 8, texts = 4, words = 256, steps = 20;

template <class Backend>
using layer_on = sy::layer<sy::shape{.hidden = 256, .intermediate = 384, .experts = 16, .top_k = 2},
                           sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>, Backend>;
using resident = layer_on<sy::backend::cpu>;
using offloaded = layer_on<sy::backend::offloaded<sy::backend::cpu>>;
constexpr int hidden = resident::dims.hidden, inner = resident::dims.intermediate, experts = resident::dims.experts;

std::vector<float> numbers(std::size_t count, std::uint64_t seed, float scale) {
  std::vector<float> result(count);
  sy::counter_random const random{seed};
  for (std::size_t i = 0; i < count; ++i) result[i] = scale * (2.0f * random.uniform(i) - 1.0f);
  return result;
}

/// The weights of a model that has learnt nothing: it shows where experts come from, not what they say.
struct model {
  std::vector<float> embedding = numbers(std::size_t{words} * hidden, 1, 1.0f);
  std::vector<std::vector<float>> router, gate, up, down;  // of each layer
  std::vector<resident::weights> weights;

  model() {
    for (int l = 0; l < layers; ++l) {
      std::uint64_t const seed = 10 + 4 * static_cast<std::uint64_t>(l);
      router.push_back(numbers(experts * hidden, seed, 1.0f));
      gate.push_back(numbers(std::size_t{experts} * inner * hidden, seed + 1, 0.1f));
      up.push_back(numbers(gate.back().size(), seed + 2, 0.1f));
      down.push_back(numbers(gate.back().size(), seed + 3, 0.02f));
      weights.push_back({.router = {.weight = router.back().data()},
                         .gate_proj = resident::in_proj(gate.back().data()),
                         .up_proj = resident::in_proj(up.back().data()),
                         .down_proj = resident::out_proj(down.back().data())});
    }
  }
};

/// What one way gave.
struct outcome {
  std::string name;
  std::vector<float> states;  // after each step, [steps, texts, hidden]
  double seconds = 0;
  offload::cache_measures measures = {};
};

/// Reads a word of each text in each step, each through all layers. `set(weights, layer)` says where a layer's experts are, `before(args, call)` is
/// called before each call.
template <class Layer, class Set, class Before>
outcome run(std::string const& name, model const& of, offload::trace* recorded, Set const& set, Before const& before) {
  outcome result{.name = name, .states = {}};
  std::vector<float> x(texts * hidden), normed(x.size()), y(x.size());
  std::vector<std::byte> workspace(Layer::workspace_bytes(texts));
  std::vector<std::int64_t> counts(experts);
  sy::counter_random const random{5};
  auto const begin = std::chrono::steady_clock::now();
  for (int step = 0; step < steps; ++step) {
    for (int t = 0; t < texts; ++t) {
      // Few words make up most of a text.
      double const u = random.uniform(static_cast<std::uint64_t>(step * texts + t));
      std::copy_n(of.embedding.data() + static_cast<int>(std::pow(words, u)) % words * hidden, hidden,
                  x.data() + t * hidden);
    }
    for (int l = 0; l < layers; ++l) {
      for (int t = 0; t < texts; ++t) {
        float const* const row = x.data() + t * hidden;
        float sum = 1e-6f;
        for (int i = 0; i < hidden; ++i) sum += row[i] * row[i];
        for (int i = 0; i < hidden; ++i) normed[t * hidden + i] = row[i] / std::sqrt(sum / hidden);
      }
      typename Layer::args args{};
      args.tokens = Layer::rows(static_cast<float const*>(normed.data()), texts);
      args.output = Layer::rows(y.data(), texts);
      args.workspace = workspace;
      args.decisions.counts = counts.data();
      args.weights.router = {.weight = of.router[static_cast<std::size_t>(l)].data()};
      set(args.weights, l);
      before(args, step * layers + l);
      Layer::forward(args);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
      if (recorded != nullptr) recorded->record(l, counts);
    }
    result.states.insert(result.states.end(), x.begin(), x.end());
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

/// With a cache of a policy. `expect(cache, args, call)` says what calls to come will need.
template <class Policy, class Expect>
outcome run_offloaded(std::string const& name, model const& of, offload::file_store& store, std::int64_t budget,
                      Expect const& expect) {
  offload::expert_cache<offload::file_store, Policy> cache(
      store, {.budget_bytes = budget, .horizon = layers * steps + 1, .record_calls = layers * steps});
  outcome result = run<offloaded>(
      name, of, nullptr, [&](offloaded::weights& weights, int layer) { weights.experts = cache.layer(layer); },
      [&](offloaded::args const& args, int call) { expect(cache, args, call); });
  result.measures = cache.measure();
  return result;
}

void print_table(std::vector<outcome> const& all, std::int64_t least_bytes, double bytes_per_second) {
  std::printf("%-22s %8s %9s %8s %9s %7s %7s %6s\n", "experts", "MB read", "/ Belady", "ms", "/ bound", "hits", "waits",
              "bits");
  for (outcome const& o : all) {
    auto const sum = o.measures.all();
    double const bytes = static_cast<double>(o.measures.moved_bytes), needed = static_cast<double>(sum.needed);
    std::printf("%-22s", o.name.c_str());
    if (sum.calls == 0) {
      std::printf(" %8s %9s %8.0f\n", "", "", 1e3 * o.seconds);
      continue;
    }
    std::printf(" %8.0f %9.2f %8.0f %9.2f %5.0f %% %5.0f %% %6s\n", 1e-6 * bytes,
                bytes / static_cast<double>(least_bytes), 1e3 * o.seconds,
                o.seconds / std::max(all[0].seconds, bytes / bytes_per_second),
                100.0 * static_cast<double>(sum.hits) / needed, 100.0 * sum.waiting_seconds / o.seconds,
                o.states == all[0].states ? "same" : "OTHER");
  }
}

void draw(std::vector<outcome> const& all, std::string const& path) {
  tiny_lm::chart picture{.title = "What is read while a fifth of the experts is in memory",
                         .subtitle = "8 layers of 16 experts, 2 for each token; 20 steps of 4 tokens",
                         .x_name = "calls of a layer",
                         .y_name = "MB read",
                         .series = {},
                         .level_name = {}};
  char const* const colours[] = {"#7b8794", "#c03221", "#e08e0b", "#8e5bb5", "#2f7ed8", "#0d7a4f"};
  for (std::size_t i = 1; i < all.size(); ++i) {
    tiny_lm::chart_series line{.name = all[i].name, .colour = colours[i - 1], .points = {}};
    for (std::size_t call = 0; call < all[i].measures.calls.size(); call += 8) {
      line.points.push_back(
          {static_cast<double>(call), 1e-6 * static_cast<double>(all[i].measures.calls[call].moved_bytes), {}});
    }
    picture.series.push_back(std::move(line));
  }
  std::ofstream out(path, std::ios::binary);
  if (!(out << tiny_lm::svg(picture)).flush()) sy::fail("offloaded_model", "a picture that can be written", path);
  std::printf("\nAs a picture: %s\n", std::filesystem::absolute(path).string().c_str());
}

void run_all(std::string const& picture) {
  std::string const path = "offloaded_model.experts";
  struct remover {
    std::string const& path;
    ~remover() { std::remove(path.c_str()); }
  } const remove_at_the_end{path};

  model const of;
  offload::pack(path, offload::weights_store<resident>(of.weights));
  offload::file_store store = offload::open_packed<offloaded>(path);
  std::int64_t const place = offload::place_bytes(store.piece_bytes()), all_bytes = layers * experts * place,
                     budget = all_bytes / 5;
  std::printf("%d layers of %d experts, %.0f MB in %s, of which %.0f MB may be in memory\n", layers, experts,
              1e-6 * static_cast<double>(all_bytes), path.c_str(), 1e-6 * static_cast<double>(budget));
  double const rate = offload::measured_read_rate(store, {.seconds = 0.2});
  std::printf("read %s at %.2f GB/s\n\n",
              store.direct() ? "past the page cache (O_DIRECT)" : "through the page cache, which is told to forget it",
              1e-9 * rate);

  std::vector<outcome> all;
  offload::trace recorded(layers, experts);
  auto const in_memory = [&](resident::weights& weights, int layer) {
    weights = of.weights[static_cast<std::size_t>(layer)];
  };
  auto const nothing = [](auto const&...) {};
  run<resident>("", of, nullptr, in_memory, nothing);  // threads and memory are there then
  all.push_back(run<resident>("all in memory", of, &recorded, in_memory, nothing));
  all.push_back(run_offloaded<offload::exact>("exact", of, store, budget, nothing));
  all.push_back(run_offloaded<offload::lru>("least recently used", of, store, budget, nothing));
  all.push_back(run_offloaded<offload::by_next_use>("next use, estimated", of, store, budget, nothing));
  offload::by_next_router<offloaded> next(texts);
  all.push_back(run_offloaded<offload::by_next_use>(
      "next layer's router", of, store, budget, [&](auto& cache, offloaded::args args, int call) {
        int const layer = call % layers + 1;
        if (layer == layers) return;
        args.weights.router = {.weight = of.router[static_cast<std::size_t>(layer)].data()};
        cache.expect(layer, next.expected(args));
      }));
  offload::oracle known(recorded, layers * steps);
  all.push_back(run_offloaded<offload::by_next_use>(
      "all calls known", of, store, budget, [&](auto& cache, auto const&, int call) { known.tell(cache, call); }));
  std::int64_t const least = offload::belady_loads(recorded, budget / place) * store.piece_bytes();
  print_table(all, least, rate);
  std::printf("\nBelady: %.0f MB, the least that can be read (computed, with all calls known).\n",
              1e-6 * static_cast<double>(least));
  std::printf("The bound is the time in memory, or that of reading the same bytes, whichever is longer.\n");
  draw(all, picture);
  for (outcome const& o : all) {
    if (o.states != all[0].states) sy::fail("offloaded_model, " + o.name, "the bits of the model in memory", "others");
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run_all(argc > 1 ? argv[1] : "offloaded_model.svg");
    return 0;
  } catch (std::exception const& wrong) {
    std::fprintf(stderr, "%s\n", wrong.what());
    return 1;
  }
}
