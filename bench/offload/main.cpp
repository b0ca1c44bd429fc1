#include <switchyard/offload.hpp>
#include <switchyard/offload/block_memory.hpp>
#include <switchyard/offload/file_store.hpp>
#include <switchyard/offload/predict.hpp>
#include <switchyard/offload/read_rate.hpp>
#include <switchyard/offload/simulate.hpp>
#include <switchyard/offload/trace.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "../samples.hpp"
#include "../skew.hpp"
#include "memory_group.hpp"
#include "pictures.hpp"
#include "traces.hpp"

// What it costs to keep a part of the experts in memory: the same calls with all experts resident, with the system's paging, and with
// caches of the library, at several budgets. See ../README.md.
namespace {

namespace sy = switchyard;
namespace bench = switchyard::bench;
namespace offload = switchyard::offload;
using clock_type = std::chrono::steady_clock;

struct settings {
  bool smoke = false;
  sy::cpu_context where;
  int readers = offload::default_readers;
  std::string file = "offload_bench.experts", json, pictures, only;
  // As the child that is measured in a memory group:
  std::string group;
  int experiment = -1;
  std::int64_t budget_bytes = 0;
};

double seconds_since(clock_type::time_point begin) {
  return std::chrono::duration<double>(clock_type::now() - begin).count();
}

/// What the calls of a trace are, and what predictions know of it.
struct experiment {
  std::string name;
  int top_k;
  std::int64_t tokens;      ///< of each call
  offload::trace calls;     ///< that are run
  offload::trace earlier;   ///< another recording of the same model, which frequencies are of
  offload::trace expected;  ///< of each call what the router of its layer made of the input of the layer before; no calls: not known
};

/// Layers of the shape that made traces have, and of that of the demo's.
constexpr sy::shape made_dims{.hidden = 512, .intermediate = 768, .experts = 16, .top_k = 2};
constexpr sy::shape demo_dims{.hidden = 512, .intermediate = 768, .experts = 8, .top_k = 2};
constexpr sy::shape smoke_dims{.hidden = 64, .intermediate = 64, .experts = 8, .top_k = 2};

experiment made(std::string const& name, double skew, sy::shape dims, int layers, std::int64_t tokens, std::int64_t calls) {
  bench::trace_shape const of{layers, dims.experts, dims.top_k, tokens, calls};
  return {name, dims.top_k, tokens, bench::made_trace(of, skew, 1, 2), bench::made_trace(of, skew, 1, 3), {1, 1}};
}

experiment demo(std::string const& name, char const* file, char const* expected, std::int64_t tokens, std::int64_t calls) {
  std::string const folder = SWITCHYARD_BENCH_TRACES "/";
  offload::trace const all = offload::trace::read(folder + file);
  return {name,
          demo_dims.top_k,
          tokens,
          bench::part_of(all, 0, calls),
          bench::part_of(all, calls, all.calls()),
          expected == nullptr ? offload::trace(1, 1)
                              : bench::part_of(offload::trace::read(folder + expected), 0, calls)};
}

std::vector<experiment> experiments_of(settings const& of) {
  std::vector<experiment> result;
  if (of.smoke) {
    result.push_back(made("Zipf, 4 tokens", 1.0, smoke_dims, 3, 4, 24));
    result.push_back(demo("demo, 1 token", "demo_tokens.trace", "demo_tokens_expected.trace", 1, 24));
    return result;
  }
  result.push_back(made("uniform, 1 token", 0.0, made_dims, 6, 1, 240));
  result.push_back(made("Zipf, 1 token", 1.0, made_dims, 6, 1, 240));
  result.push_back(demo("demo, 1 token", "demo_tokens.trace", "demo_tokens_expected.trace", 1, 240));
  result.push_back(made("uniform, 512 tokens", 0.0, made_dims, 6, 512, 36));
  result.push_back(made("Zipf, 512 tokens", 1.0, made_dims, 6, 512, 36));
  result.push_back(demo("demo, 256 tokens", "demo_windows.trace", nullptr, 256, 48));
  return result;
}

/// One contender's calls.
struct outcome {
  std::string contender;
  double seconds = 0.0;
  std::int64_t bytes = 0;  ///< read
  std::int64_t needed = 0, hits = 0, on_the_way = 0, unused = 0;
  double waiting = 0.0;
  std::int64_t peak_bytes = 0;
  std::uint64_t hash = 0;  ///< of all outputs
  bool measured = true;    ///< or simulated: then there is neither time nor output
};

std::uint64_t hash_of(std::uint64_t hash, float const* numbers, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint32_t word;
    std::memcpy(&word, numbers + i, sizeof word);
    hash = (hash ^ word) * 0x100000001b3u;
  }
  return hash;
}

/// The calls of an experiment on layers of one shape, however their experts come.
template <sy::shape Dims>
class calls {
 public:
  template <class Backend>
  using layer_on = sy::layer<Dims, sy::router::precomputed, sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>,
                             Backend, float>;
  using resident = layer_on<sy::backend::cpu>;
  using offloaded = layer_on<sy::backend::offloaded<sy::backend::cpu>>;
  static constexpr std::int64_t piece_bytes = offload::piece<resident>::bytes;
  static constexpr std::int64_t stride = offload::place_bytes(piece_bytes);

  calls(experiment const& of, sy::cpu_context const& where)
      : of_(of),
        where_(where),
        x_(static_cast<std::size_t>(of.tokens * Dims.hidden)),
        y_(x_.size()),
        weights_(static_cast<std::size_t>(of.tokens * Dims.top_k), 1.0f / Dims.top_k),
        workspace_(std::max(resident::workspace_bytes(of.tokens), offloaded::workspace_bytes(of.tokens))) {
    for (std::size_t i = 0; i < x_.size(); ++i) x_[i] = bench::noise(static_cast<std::int64_t>(i), 11);
    for (std::int64_t i = 0; i < of.calls.calls(); ++i) routes_.push_back(bench::routes_of(of.calls[i], Dims.top_k));
  }

  /// Runs them in order. `put(args, call)` sets the weights, and is a part of what is timed.
  template <class Layer, class Put>
  outcome run(std::string const& contender, Put const& put) {
    outcome result{.contender = contender};
    std::uint64_t hash = 0xcbf29ce484222325u;
    clock_type::time_point const begin = clock_type::now();
    for (std::int64_t i = 0; i < of_.calls.calls(); ++i) {
      typename Layer::args args{};
      args.tokens = Layer::rows(x_.data(), of_.tokens);
      args.output = Layer::rows(y_.data(), of_.tokens);
      args.workspace = workspace_;
      args.inputs = {routes_[static_cast<std::size_t>(i)].data(), weights_.data()};
      put(args, i);
      Layer::forward(args, where_);
      hash = hash_of(hash, y_.data(), of_.tokens * Dims.hidden);
    }
    result.seconds = seconds_since(begin);
    result.hash = hash;
    for (std::int64_t i = 0; i < of_.calls.calls(); ++i) {
      result.needed += static_cast<std::int64_t>(of_.calls[i].experts.size());
    }
    return result;
  }

  /// With the pieces of all layers one after the other in memory.
  outcome run_resident(std::string const& contender, std::byte const* pieces) {
    return run<resident>(contender, [&](typename resident::args& args, std::int64_t i) {
      put(args, pieces + of_.calls[i].layer * std::int64_t{Dims.experts} * stride, stride);
    });
  }

  /// A call whose weights are all zeros, so that threads and workspace are there.
  void warm_up() {
    std::vector<std::byte> const piece(static_cast<std::size_t>(stride) + 64);
    std::byte const* const first = piece.data() + (64 - reinterpret_cast<std::uintptr_t>(piece.data()) % 64);
    typename resident::args args{};
    args.tokens = resident::rows(x_.data(), of_.tokens);
    args.output = resident::rows(y_.data(), of_.tokens);
    args.workspace = workspace_;
    args.inputs = {routes_[0].data(), weights_.data()};
    put(args, first, 0);
    resident::forward(args, where_);
  }

  static void put(typename resident::args& args, std::byte const* pieces, std::int64_t stride_of_pieces) {
    offload::placed_weights<resident> const placed(pieces, stride_of_pieces);
    args.weights.gate_proj = placed.gate_proj;
    args.weights.up_proj = placed.up_proj;
    args.weights.down_proj = placed.down_proj;
  }

 private:
  experiment const& of_;
  sy::cpu_context where_;
  std::vector<float> x_, y_, weights_;
  std::vector<std::vector<std::int32_t>> routes_;
  std::vector<std::byte> workspace_;
};

/// What a budget's contenders gave.
struct budget_results {
  double share;
  std::int64_t places, belady_bytes;
  double bytes_per_second, resident_seconds;
  std::vector<outcome> outcomes;
};
struct results {
  std::string name;
  std::int64_t calls, tokens, pieces, piece_bytes;
  std::vector<budget_results> budgets;
};

template <sy::shape Dims>
class problem {
  using runs = calls<Dims>;
  static constexpr std::int64_t stride = runs::stride;

 public:
  problem(experiment const& of, int number, settings const& how) : of_(of), number_(number), how_(how), run_(of, how.where) {
    std::int64_t const pieces = std::int64_t{of.calls.layers()} * Dims.experts;
    write_file(pieces);
    offload::file_store_args args{.files = {how.file},
                                  .layers = of.calls.layers(),
                                  .experts = Dims.experts,
                                  .piece_bytes = runs::piece_bytes,
                                  .pieces = {}};
    for (std::int64_t p = 0; p < pieces; ++p) args.pieces.push_back({{0, p * stride, runs::piece_bytes, 0}});
    store_.emplace_back(std::move(args));
    memory_ = offload::take_blocks(pieces * stride);
    for (std::int64_t p = 0; p < pieces; ++p) {
      std::string const wrong = store().read(static_cast<int>(p / Dims.experts), static_cast<int>(p % Dims.experts),
                                             memory_.get() + p * stride);
      if (!wrong.empty()) sy::fail("offload_bench", "its file", wrong);
    }
  }
  ~problem() { ::unlink(how_.file.c_str()); }

  bool direct() { return store().direct(); }

  results measure(std::vector<double> const& shares, std::string const& group) {
    std::int64_t const pieces = std::int64_t{of_.calls.layers()} * Dims.experts;
    results result{of_.name, of_.calls.calls(), of_.tokens, pieces, runs::piece_bytes, {}};
    run_.warm_up();
    for (double share : shares) {
      std::int64_t const places = std::max<std::int64_t>(1, static_cast<std::int64_t>(share * static_cast<double>(pieces)));
      std::int64_t const budget = places * stride;
      budget_results b{.share = share,
                       .places = places,
                       .belady_bytes = offload::belady_loads(of_.calls, places) * runs::piece_bytes,
                       .bytes_per_second = 0.0,
                       .resident_seconds = 0.0,
                       .outcomes = {}};
      double const rate_before = read_rate();
      b.outcomes.push_back(run_.run_resident("all resident", memory_.get()));
      b.outcomes.back().hits = b.outcomes.back().needed;
      b.outcomes.push_back(on_demand());
      if (!group.empty()) b.outcomes.push_back(paged(budget, group));
      b.outcomes.push_back(cached<offload::exact>("exact", budget, [](auto&, std::int64_t) {}));
      b.outcomes.push_back(cached<offload::lru>("lru", budget, [](auto&, std::int64_t) {}));
      using ours = offload::lru_with_lookahead;
      int const usual = std::min<int>(Dims.experts, static_cast<int>(of_.tokens * Dims.top_k));
      offload::most_frequent const frequent(of_.earlier, usual);
      b.outcomes.push_back(cached<ours>("ours, frequencies", budget, [&](auto& cache, std::int64_t i) {
        // What the layer to come needs most often.
        if (i + 1 == of_.calls.calls()) return;
        int const next = of_.calls[i + 1].layer;
        cache.expect(next, frequent.expected(next));
      }));
      if (of_.expected.calls() > 0) {
        b.outcomes.push_back(cached<ours>("ours, next router", budget, [&](auto& cache, std::int64_t i) {
          if (i + 1 == of_.calls.calls()) return;
          offload::traced_call const next = of_.expected[i + 1];
          if (!next.experts.empty()) cache.expect(next.layer, next.experts);
        }));
      }
      offload::oracle all(of_.calls, of_.calls.calls());
      b.outcomes.push_back(cached<ours>("ours, oracle", budget, [&](auto& cache, std::int64_t i) { all.tell(cache, i); }));
      b.resident_seconds = std::min(b.outcomes[0].seconds, run_.run_resident("all resident", memory_.get()).seconds);
      b.bytes_per_second = 0.5 * (rate_before + read_rate());
      b.outcomes.push_back({.contender = "Belady, simulated", .bytes = b.belady_bytes, .measured = false});
      print(result, b);
      result.budgets.push_back(std::move(b));
    }
    return result;
  }

  /// The cache of the last contender that knew all calls, call by call.
  offload::cache_measures const& over_time() const { return over_time_; }

 private:
  offload::file_store& store() { return store_.front(); }

  void write_file(std::int64_t pieces) {
    std::FILE* const file = std::fopen(how_.file.c_str(), "wb");
    std::vector<float> piece(static_cast<std::size_t>(stride) / sizeof(float));
    bool written = file != nullptr;
    float const scale = 1.7f / std::sqrt(static_cast<float>(Dims.hidden));
    for (std::int64_t p = 0; written && p < pieces; ++p) {
      sy::cpu::parallel_for(how_.where, static_cast<std::int64_t>(piece.size()) / 4096 + 1, [&](std::int64_t part) {
        std::int64_t const end = std::min<std::int64_t>((part + 1) * 4096, static_cast<std::int64_t>(piece.size()));
        for (std::int64_t i = part * 4096; i < end; ++i) {
          piece[static_cast<std::size_t>(i)] = scale * bench::noise(i, static_cast<std::uint32_t>(p));
        }
      });
      written = std::fwrite(piece.data(), sizeof(float), piece.size(), file) == piece.size();
    }
    if (file != nullptr) written = std::fflush(file) == 0 && ::fsync(::fileno(file)) == 0 && written;
    if (file != nullptr) std::fclose(file);
    if (!written) sy::fail("offload_bench, --file", "a file that can be written", "'" + how_.file + "'");
    drop_from_page_cache(how_.file);
  }

 public:
  static void drop_from_page_cache(std::string const& path) {
    int const file = ::open(path.c_str(), O_RDONLY);
    if (file < 0) return;
    ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    ::close(file);
  }

 private:
  double read_rate() {
    return offload::measured_read_rate(store(), {.seconds = how_.smoke ? 0.001 : 0.15, .readers = how_.readers});
  }

  /// Every call reads what it needs, and keeps nothing: what a program does without a cache. It has room for a whole layer, whatever the
  /// budget is.
  outcome on_demand() {
    offload::block_memory const places = offload::take_blocks(Dims.experts * stride);
    std::memset(places.get(), 0, static_cast<std::size_t>(Dims.experts * stride));
    sy::cpu_context readers = how_.where;
    readers.threads = how_.readers;
    std::int64_t read = 0;
    double waiting = 0.0;
    outcome result = run_.template run<typename runs::resident>(
        "on demand", [&](typename runs::resident::args& args, std::int64_t i) {
          clock_type::time_point const begin = clock_type::now();
          offload::traced_call const call = of_.calls[i];
          sy::cpu::parallel_for(readers, static_cast<std::int64_t>(call.experts.size()), [&](std::int64_t k) {
            std::int32_t const e = call.experts[static_cast<std::size_t>(k)];
            if (!store().read(call.layer, e, places.get() + e * stride).empty()) std::abort();
          });
          read += static_cast<std::int64_t>(call.experts.size()) * runs::piece_bytes;
          waiting += seconds_since(begin);
          runs::put(args, places.get(), stride);
        });
    result.bytes = read;
    result.waiting = waiting;
    return result;
  }

  /// The resident layer on the mapped file, in a process whose memory is what it needs beside the file, and the budget.
  outcome paged(std::int64_t budget, std::string const& group) {
    drop_from_page_cache(how_.file);
    std::vector<std::string> arguments{"--mapped",  std::to_string(number_), std::to_string(budget), group, "--file",
                                       how_.file,   "--threads",             std::to_string(how_.where.threads)};
    if (how_.smoke) arguments.push_back("--smoke");
    std::string const said = bench::output_of_child(arguments);
    outcome result{.contender = "mmap"};
    long long needed = 0, bytes = 0;
    unsigned long long hash = 0;
    if (std::sscanf(said.c_str(), "%lf %lld %lld %llu", &result.seconds, &needed, &bytes, &hash) != 4) {
      sy::fail("offload_bench", "a child process in the memory group " + group, "one that failed");
    }
    result.needed = needed;
    result.bytes = bytes;
    result.hash = hash;
    return result;
  }

  template <class Policy, class Tell>
  outcome cached(std::string const& contender, std::int64_t budget, Tell const& tell) {
    offload::cache_options<Policy> options;
    options.budget_bytes = budget;
    options.readers = how_.readers;
    options.horizon = of_.calls.calls() + 1;
    options.record_calls = of_.calls.calls();
    offload::expert_cache<offload::file_store, Policy> cache(store(), options);
    cache.reset_measures();
    outcome result = run_.template run<typename runs::offloaded>(
        contender, [&](typename runs::offloaded::args& args, std::int64_t i) {
          tell(cache, i);
          args.weights.experts = cache.layer(of_.calls[i].layer);
        });
    offload::cache_measures measures = cache.measure();
    offload::layer_measures const sum = measures.all();
    result.bytes = measures.moved_bytes;
    result.hits = sum.hits;
    result.on_the_way = sum.on_the_way;
    result.unused = measures.unused_loads;
    result.waiting = sum.waiting_seconds;
    result.peak_bytes = measures.peak_bytes;
    if (result.peak_bytes > budget) sy::fail("offload_bench", "at most the budget", std::to_string(result.peak_bytes));
    if (contender == "ours, oracle") over_time_ = std::move(measures);
    return result;
  }

  static void print(results const& of, budget_results const& b) {
    std::printf("\n%s: %lld calls, budget %.0f %% (%lld of %lld experts of %.1f MB), read rate %.2f GB/s, resident %.0f ms\n",
                of.name.c_str(), static_cast<long long>(of.calls), 100.0 * b.share, static_cast<long long>(b.places),
                static_cast<long long>(of.pieces), static_cast<double>(of.piece_bytes) * 1e-6, b.bytes_per_second * 1e-9,
                b.resident_seconds * 1e3);
    std::printf("  %-18s %9s %9s %9s %9s %7s %7s %8s %6s\n", "", "MB read", "/ Belady", "ms", "/ bound", "hits", "waits",
                "unused", "bits");
    for (outcome const& o : b.outcomes) {
      double const belady = static_cast<double>(b.belady_bytes), bytes = static_cast<double>(o.bytes);
      std::printf("  %-18s %9.0f %9.2f", o.contender.c_str(), bytes * 1e-6, bytes / belady);
      if (!o.measured) {
        std::printf("\n");
        continue;
      }
      double const needed = static_cast<double>(o.needed);
      std::printf(" %9.0f %9.2f", o.seconds * 1e3, o.seconds / bound(b, o.bytes));
      if (o.contender == "mmap") {
        std::printf(" %7s %7s %8s", "", "", "");
      } else {
        std::printf(" %5.0f %% %5.0f %% %8lld", 100.0 * static_cast<double>(o.hits) / needed,
                    100.0 * o.waiting / o.seconds, static_cast<long long>(o.unused));
      }
      std::printf(" %6s\n", o.hash == b.outcomes[0].hash ? "same" : "OTHER");
    }
    std::fflush(stdout);
  }

 public:
  /// The least time for so many bytes.
  static double bound(budget_results const& b, std::int64_t bytes) {
    return std::max(b.resident_seconds, static_cast<double>(bytes) / b.bytes_per_second);
  }

 private:
  experiment const& of_;
  int number_;
  settings const& how_;
  runs run_;
  std::vector<offload::file_store> store_;
  offload::block_memory memory_;
  offload::cache_measures over_time_;
};

/// Calls `body.template operator()<Dims>()` for the shape of an experiment's layers.
template <class Body>
void with_shape(experiment const& of, settings const& how, Body const& body) {
  if (how.smoke) {
    body.template operator()<smoke_dims>();
  } else if (of.calls.experts() == made_dims.experts) {
    body.template operator()<made_dims>();
  } else {
    body.template operator()<demo_dims>();
  }
}

/// The child: runs the resident layer on the mapped file, and prints seconds, needed experts, bytes read, and the hash of the outputs.
int run_mapped(settings const& how) {
  experiment const of = std::move(experiments_of(how)[static_cast<std::size_t>(how.experiment)]);
  int code = 1;
  with_shape(of, how, [&]<sy::shape Dims>() {
    using runs = calls<Dims>;
    if (!bench::join(how.group)) return;
    runs run(of, how.where);
    run.warm_up();
    int const file = ::open(how.file.c_str(), O_RDONLY);
    std::size_t const bytes = static_cast<std::size_t>(of.calls.layers() * Dims.experts * runs::stride);
    void* const mapped = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) return;
    if (!bench::limit(how.group, bench::used_bytes(how.group) + how.budget_bytes)) return;
    std::int64_t const before = bench::bytes_read_from_disk();
    outcome const result = run.run_resident("mmap", static_cast<std::byte const*>(mapped));
    std::int64_t const read = bench::bytes_read_from_disk() - before;
    ::munmap(mapped, bytes);
    ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    std::printf("%.9f %lld %lld %llu\n", result.seconds, static_cast<long long>(result.needed),
                static_cast<long long>(read), static_cast<unsigned long long>(result.hash));
    code = 0;
  });
  return code;
}

bool parse(int argc, char** argv, settings& to) {
  for (int i = 1; i < argc; ++i) {
    std::string_view const word = argv[i];
    auto const next = [&]() -> char const* { return i + 1 < argc ? argv[++i] : ""; };
    if (word == "--smoke") {
      to.smoke = true;
    } else if (word == "--threads") {
      to.where.threads = std::atoi(next());
    } else if (word == "--readers") {
      to.readers = std::atoi(next());
    } else if (word == "--file") {
      to.file = next();
    } else if (word == "--json") {
      to.json = next();
    } else if (word == "--pictures") {
      to.pictures = next();
    } else if (word == "--only") {
      to.only = next();
    } else if (word == "--mapped") {
      to.experiment = std::atoi(next());
      to.budget_bytes = std::atoll(next());
      to.group = next();
    } else {
      return false;
    }
  }
  return to.where.threads >= 0 && to.readers >= 1 && !to.file.empty();
}

}  // namespace

int main(int argc, char** argv) {
  settings how;
  if (!parse(argc, argv, how)) {
    std::fputs(
        "usage: offload_bench [--smoke] [--threads N] [--readers N] [--file PATH] [--only WORD] [--json PATH] [--pictures FOLDER]\n"
        "  --file      where the experts are written; the file is removed at the end (default: offload_bench.experts)\n"
        "  --readers   threads that read it (default: 2)\n"
        "  --only      runs the traces that have the word in their name\n"
        "  --pictures  a folder for bytes_by_budget.svg and over_time.svg\n",
        stderr);
    return 2;
  }
  how.where = sy::cpu::resolved(how.where);
  if (how.experiment >= 0) return run_mapped(how);

  bench::memory_group const group;
  std::printf("experts that are kept in a part of memory, %s, %d readers\n", sy::describe(how.where).c_str(), how.readers);
  if (group.folder().empty()) {
    std::printf("mmap is left out: no memory group can be made for it: %s\n", group.why_not().c_str());
  }
  std::vector<double> const shares = how.smoke ? std::vector<double>{0.25} : std::vector<double>{0.1, 0.25, 0.5, 0.75};
  std::vector<experiment> const experiments = experiments_of(how);
  std::vector<results> all;
  bool said = false;
  for (std::size_t i = 0; i < experiments.size(); ++i) {
    experiment const& of = experiments[i];
    if (of.name.find(how.only) == std::string::npos) continue;
    with_shape(of, how, [&]<sy::shape Dims>() {
      problem<Dims> p(of, static_cast<int>(i), how);
      if (!said) {
        std::printf("the file is read %s\n", p.direct() ? "past the page cache (O_DIRECT)"
                                                        : "through the page cache, which is told to forget it");
      }
      said = true;
      all.push_back(p.measure(shares, group.folder()));
    });
  }
  return 0;
}
