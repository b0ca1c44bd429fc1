#include <switchyard/offload.hpp>
#include <switchyard/offload/block_memory.hpp>
#include <switchyard/offload/file_store.hpp>
#include <switchyard/offload/picture.hpp>
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
#include "results.hpp"
#include "traces.hpp"

// What it costs to keep a part of the experts in memory: the same calls with all experts resident, with the system's paging, and with
// caches of the library, at several budgets. See ../README.md.
namespace {

namespace sy = switchyard;
namespace bench = switchyard::bench;
namespace offload = switchyard::offload;
using bench::budget_results;
using bench::outcome;
using bench::trace_results;
using clock_type = std::chrono::steady_clock;

struct settings {
  bool smoke = false, pages = true;
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
  std::int64_t tokens;     ///< of each call
  offload::trace calls;    ///< that are run
  offload::trace earlier;  ///< another recording of the same model, which frequencies are of
  /// Of each call what the router of its layer made of the input of the layer before, and what SiDA's predictor makes of a whole window;
  /// no calls: not known.
  offload::trace expected, predicted;

  /// The first quarter of the calls fills caches, which is not counted: a program runs for long.
  std::int64_t first_counted() const { return calls.calls() / 4 / calls.layers() * calls.layers(); }
};

/// Layers of the shape that made traces have, and of that of the demo's.
constexpr sy::shape made_dims{.hidden = 512, .intermediate = 768, .experts = 16, .top_k = 2};
constexpr sy::shape demo_dims{.hidden = 512, .intermediate = 768, .experts = 8, .top_k = 2};
constexpr sy::shape smoke_dims{.hidden = 64, .intermediate = 64, .experts = 8, .top_k = 2};

experiment made(std::string const& name, double skew, sy::shape dims, int layers, std::int64_t tokens,
                std::int64_t calls) {
  bench::trace_shape const of{layers, dims.experts, dims.top_k, tokens, calls};
  return {name,   dims.top_k, tokens, bench::made_trace(of, skew, 1, 2), bench::made_trace(of, skew, 1, 3),
          {1, 1}, {1, 1}};
}

experiment demo(std::string const& name, std::string const& recording, std::int64_t tokens, std::int64_t calls) {
  std::string const path = SWITCHYARD_BENCH_TRACES "/" + recording;
  offload::trace const all = offload::trace::read(path + ".trace");
  auto const prediction = [&](char const* whose) {
    if (tokens > 1) return offload::trace(1, 1);
    return bench::part_of(offload::trace::read(path + whose), 0, calls);
  };
  return {name,
          demo_dims.top_k,
          tokens,
          bench::part_of(all, 0, calls),
          bench::part_of(all, calls, all.calls()),
          prediction("_expected.trace"),
          prediction("_sida.trace")};
}

std::vector<experiment> experiments_of(settings const& of) {
  std::vector<experiment> result;
  if (of.smoke) {
    result.push_back(made("Zipf, 4 tokens", 1.0, smoke_dims, 3, 4, 24));
    result.push_back(demo("demo, 1 token", "demo_tokens", 1, 24));
    return result;
  }
  result.push_back(made("uniform, 1 token", 0.0, made_dims, 6, 1, 150));
  result.push_back(made("Zipf, 1 token", 1.0, made_dims, 6, 1, 150));
  result.push_back(demo("demo, 1 token", "demo_tokens", 1, 160));
  result.push_back(made("uniform, 512 tokens", 0.0, made_dims, 6, 512, 24));
  result.push_back(made("Zipf, 512 tokens", 1.0, made_dims, 6, 512, 24));
  result.push_back(demo("demo, 256 tokens", "demo_windows", 256, 32));
  return result;
}

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
  using layer_on =
      sy::layer<Dims, sy::router::precomputed, sy::capacity::dropless, sy::expert::gated_mlp<sy::silu>, Backend, float>;
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

  /// Runs them in order. `put(args, call)` sets the weights, and is a part of what is timed; `start()` is called when the calls begin that
  /// count.
  template <class Layer, class Put, class Start>
  outcome run(std::string const& contender, Put const& put, Start const& start) {
    outcome result{.contender = contender};
    std::uint64_t hash = 0xcbf29ce484222325u;
    clock_type::time_point begin = clock_type::now();
    for (std::int64_t i = 0; i < of_.calls.calls(); ++i) {
      if (i == of_.first_counted()) {
        start();
        begin = clock_type::now();
      }
      typename Layer::args args{};
      args.tokens = Layer::rows(x_.data(), of_.tokens);
      args.output = Layer::rows(y_.data(), of_.tokens);
      args.workspace = workspace_;
      args.inputs = {routes_[static_cast<std::size_t>(i)].data(), weights_.data()};
      put(args, i);
      Layer::forward(args, where_);
      hash = hash_of(hash, y_.data(), of_.tokens * Dims.hidden);
      if (i >= of_.first_counted()) result.needed += static_cast<std::int64_t>(of_.calls[i].experts.size());
    }
    result.seconds = seconds_since(begin);
    result.hash = hash;
    return result;
  }

  /// With the pieces of all layers one after the other in memory.
  template <class Start>
  outcome run_resident(std::string const& contender, std::byte const* pieces, Start const& start) {
    return run<resident>(
        contender,
        [&](typename resident::args& args, std::int64_t i) {
          put(args, pieces + of_.calls[i].layer * std::int64_t{Dims.experts} * stride, stride);
        },
        start);
  }

  /// A call of the first experts, whose weights are all zeros, so that threads and workspace are there.
  void warm_up() {
    offload::block_memory const pieces = offload::take_blocks(Dims.experts * stride);  // of which the first are touched
    std::memset(pieces.get(), 0, static_cast<std::size_t>(Dims.top_k * stride));
    std::vector<std::int32_t> first(weights_.size());
    for (std::size_t pair = 0; pair < first.size(); ++pair) first[pair] = static_cast<std::int32_t>(pair) % Dims.top_k;
    typename resident::args args{};
    args.tokens = resident::rows(x_.data(), of_.tokens);
    args.output = resident::rows(y_.data(), of_.tokens);
    args.workspace = workspace_;
    args.inputs = {first.data(), weights_.data()};
    put(args, pieces.get(), stride);
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

template <sy::shape Dims>
class problem {
  using runs = calls<Dims>;
  static constexpr std::int64_t stride = runs::stride;

 public:
  problem(experiment const& of, int number, settings const& how)
      : of_(of), number_(number), how_(how), run_(of, how.where) {
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

  trace_results measure(std::vector<double> const& shares, std::string const& group) {
    offload::trace const& trace = of_.calls;
    std::int64_t const pieces = std::int64_t{trace.layers()} * Dims.experts;
    trace_results result{of_.name, trace.calls() - of_.first_counted(), of_.tokens, pieces, runs::piece_bytes, {}};
    run_.warm_up();
    for (double share : shares) {
      std::int64_t const places =
          std::max<std::int64_t>(1, static_cast<std::int64_t>(share * static_cast<double>(pieces)));
      std::int64_t const budget = places * stride;
      budget_results b{.share = share,
                       .places = places,
                       .belady_bytes = offload::belady_loads(trace, places, of_.first_counted()) * runs::piece_bytes,
                       .bytes_per_second = 0.0,
                       .resident_seconds = 0.0,
                       .outcomes = {}};
      using ours = offload::by_next_use;
      auto const nothing = [](auto&, std::int64_t) {};
      std::vector<std::int64_t> const uses = of_.earlier.uses();
      int const usual = static_cast<int>(std::min<std::int64_t>(Dims.experts, of_.tokens * Dims.top_k));
      offload::most_frequent const frequent(of_.earlier, usual);
      std::vector<std::function<outcome()>> contenders{
          [&] { return all_resident(); },
          [&] { return on_demand(); },
          [&] { return cached<offload::exact>("exact", budget, nothing); },
          [&] { return cached<offload::lru>("lru", budget, nothing); },
          [&] {
            return cached<offload::pinned_by_frequency>("pinned", budget, nothing, {uses.begin(), uses.end()});
          },
          [&] { return cached<ours>("ours", budget, nothing); },
          [&] {
            // What the layer to come needs most often.
            return cached<ours>("ours, frequencies", budget, [&](auto& cache, std::int64_t i) {
              if (i + 1 == trace.calls()) return;
              int const next = trace[i + 1].layer;
              cache.expect(next, frequent.expected(next));
            });
          }};
      if (of_.expected.calls() > 0) {
        contenders.push_back([&] {
          return cached<ours>("ours, next router", budget, [&](auto& cache, std::int64_t i) {
            if (i + 1 == trace.calls()) return;
            offload::traced_call const next = of_.expected[i + 1];
            if (!next.experts.empty()) cache.expect(next.layer, next.experts);
          });
        });
      }
      if (of_.predicted.calls() > 0) {
        contenders.push_back([&] {
          offload::oracle all(of_.predicted, trace.calls());  // of what is predicted, not of what comes
          return cached<ours>("ours, SiDA", budget, [&](auto& cache, std::int64_t i) { all.tell(cache, i); });
        });
      }
      contenders.push_back([&] {
        offload::oracle all(trace, trace.calls());
        return cached<ours>("ours, oracle", budget, [&](auto& cache, std::int64_t i) { all.tell(cache, i); });
      });
      // All in turns; the faster of two short runs counts, for other work on the machine only slows down.
      for (int round = 0; round < (how_.smoke || of_.tokens > 8 ? 1 : 2); ++round) {
        b.bytes_per_second = std::max(b.bytes_per_second, read_rate());
        for (std::size_t k = 0; k < contenders.size(); ++k) {
          outcome now = contenders[k]();
          if (round == 0) {
            b.outcomes.push_back(std::move(now));
          } else if (now.hash != b.outcomes[k].hash || now.seconds < b.outcomes[k].seconds) {
            b.outcomes[k] = std::move(now);
          }
        }
      }
      b.resident_seconds = b.outcomes[0].seconds;
      if (!group.empty()) b.outcomes.insert(b.outcomes.begin() + 2, paged(budget, group));
      b.outcomes.push_back({.contender = "Belady, simulated", .bytes = b.belady_bytes, .measured = false});
      print(result, b);
      result.budgets.push_back(std::move(b));
    }
    return result;
  }

  /// Our cache at a budget of a quarter, without a prediction, call by call.
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

  outcome all_resident() {
    outcome result = run_.run_resident("all resident", memory_.get(), [] {});
    result.hits = result.needed;
    return result;
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
        "on demand",
        [&](typename runs::resident::args& args, std::int64_t i) {
          clock_type::time_point const begin = clock_type::now();
          offload::traced_call const call = of_.calls[i];
          sy::cpu::parallel_for(readers, static_cast<std::int64_t>(call.experts.size()), [&](std::int64_t k) {
            std::int32_t const e = call.experts[static_cast<std::size_t>(k)];
            if (!store().read(call.layer, e, places.get() + e * stride).empty()) std::abort();
          });
          read += static_cast<std::int64_t>(call.experts.size()) * runs::piece_bytes;
          waiting += seconds_since(begin);
          runs::put(args, places.get(), stride);
        },
        [&] {
          read = 0;
          waiting = 0.0;
        });
    result.bytes = read;
    result.waiting = waiting;
    return result;
  }

  /// The resident layer on the mapped file, in a process whose memory is what it needs beside the file, and the budget.
  outcome paged(std::int64_t budget, std::string const& group) {
    drop_from_page_cache(how_.file);
    std::vector<std::string> arguments{
        "--mapped",  std::to_string(number_),           std::to_string(budget), group, "--file", how_.file,
        "--threads", std::to_string(how_.where.threads)};
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
  outcome cached(std::string const& contender, std::int64_t budget, Tell const& tell,
                 std::vector<double> frequencies = {}) {
    offload::cache_options<Policy> options;
    options.frequencies = std::move(frequencies);
    options.budget_bytes = budget;
    options.readers = how_.readers;
    options.horizon = of_.calls.calls() + 1;
    options.record_calls = of_.calls.calls();
    offload::expert_cache<offload::file_store, Policy> cache(store(), options);
    outcome result = run_.template run<typename runs::offloaded>(
        contender,
        [&](typename runs::offloaded::args& args, std::int64_t i) {
          tell(cache, i);
          args.weights.experts = cache.layer(of_.calls[i].layer);
        },
        [&] { cache.reset_measures(); });
    offload::cache_measures measures = cache.measure();
    offload::layer_measures const sum = measures.all();
    result.bytes = measures.moved_bytes;
    result.hits = sum.hits;
    result.on_the_way = sum.on_the_way;
    result.unused = measures.unused_loads;
    result.waiting = sum.waiting_seconds;
    result.peak_bytes = measures.peak_bytes;
    if (result.peak_bytes > budget) sy::fail("offload_bench", "at most the budget", std::to_string(result.peak_bytes));
    if (contender == "ours" && over_time_.calls.empty() && budget >= stride * of_.calls.layers() * Dims.experts / 4) {
      over_time_ = std::move(measures);
    }
    return result;
  }

  static void print(trace_results const& of, budget_results const& b) {
    std::printf(
        "\n%s: %lld calls, budget %.0f %% (%lld of %lld experts of %.1f MB), read rate %.2f GB/s, resident %.0f ms\n",
        of.name.c_str(), static_cast<long long>(of.calls), 100.0 * b.share, static_cast<long long>(b.places),
        static_cast<long long>(of.pieces), static_cast<double>(of.piece_bytes) * 1e-6, b.bytes_per_second * 1e-9,
        b.resident_seconds * 1e3);
    std::printf("  %-18s %9s %9s %9s %9s %7s %7s %8s %6s\n", "", "MB read", "/ Belady", "ms", "/ bound", "hits",
                "waits", "unused", "bits");
    for (outcome const& o : b.outcomes) {
      double const belady = static_cast<double>(b.belady_bytes), bytes = static_cast<double>(o.bytes);
      std::printf("  %-18s %9.0f %9.2f", o.contender.c_str(), bytes * 1e-6, bytes / belady);
      if (!o.measured) {
        std::printf("\n");
        continue;
      }
      double const needed = static_cast<double>(o.needed);
      std::printf(" %9.0f %9.2f", o.seconds * 1e3, o.seconds / b.bound(o.bytes));
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
    constexpr std::int64_t other = std::int64_t{2} << 20;  // tables of pages and the like
    if (!bench::limit(how.group, bench::used_bytes(how.group) + how.budget_bytes + other)) return;
    std::int64_t before = 0;
    outcome const result = run.run_resident("mmap", static_cast<std::byte const*>(mapped),
                                            [&] { before = bench::bytes_read_from_disk(); });
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
    } else if (word == "--no-mmap") {
      to.pages = false;
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

/// What the targets are missed by, of every trace and budget.
void print_targets(std::vector<trace_results> const& all) {
  int cases = 0;
  std::string bytes, seconds, behind, bits;
  auto const say = [](std::string& to, trace_results const& t, budget_results const& b, std::string const& who,
                      double ratio) {
    char text[160];
    std::snprintf(text, sizeof text, "  %s, %.0f %%%s: %.2f\n", t.name.c_str(), 100.0 * b.share, who.c_str(), ratio);
    to += text;
  };
  for (trace_results const& t : all) {
    for (budget_results const& b : t.budgets) {
      ++cases;
      outcome const &knowing = *b.find("ours, oracle"), &ours = *b.find("ours"), &lru = *b.find("lru");
      double const of_bytes = static_cast<double>(knowing.bytes) / static_cast<double>(b.belady_bytes);
      double const of_seconds = knowing.seconds / b.bound(knowing.bytes);
      if (of_bytes > 1.10) say(bytes, t, b, "", of_bytes);
      if (of_seconds > 1.10) say(seconds, t, b, "", of_seconds);
      outcome const* const mmap = b.find("mmap");
      for (outcome const* other : {&lru, mmap}) {
        if (other == nullptr) continue;
        for (outcome const* mine : {&ours, &knowing}) {
          if (mine->seconds >= other->seconds) {
            say(behind, t, b, ", " + mine->contender + " over " + other->contender, mine->seconds / other->seconds);
          }
        }
      }
      for (outcome const& o : b.outcomes) {
        if (o.measured && o.hash != b.outcomes[0].hash) say(bits, t, b, ", " + o.contender, 0.0);
      }
    }
  }
  std::printf("\nof %d cases (traces and budgets), those that miss\n", cases);
  auto const list = [](char const* what, std::string const& missed) {
    std::printf("%s: %s%s", what, missed.empty() ? "none\n" : "\n", missed.c_str());
  };
  list("at most 1.10 times Belady's bytes, with the oracle", bytes);
  list("at most 1.10 times max(resident, bytes / read rate), with the oracle", seconds);
  list("ahead of lru and of mmap in time, with the oracle and without a prediction", behind);
  list("the bits of the resident layer, everybody", bits);
}

/// The same traces on a GPU that is not there.
void print_simulation(std::vector<experiment> const& experiments, std::vector<double> const& shares) {
  // An expert of Mixtral 8x7B in bfloat16, and what an H200 reads of its memory. No number of these lines is measured.
  constexpr std::int64_t piece = std::int64_t{3} * 4096 * 14336 * 2;
  constexpr double memory = 4.8e12, products = 4e14;
  std::printf(
      "\nSIMULATION, nothing of it is measured: experts of %.0f MB over PCIe with 25 and 55 GB/s, products at %.0f "
      "TFLOP/s or memory's "
      "%.1f TB/s; times over all resident, waiting as a share of the time\n  %-20s %6s %9s  %-24s %-24s\n  %-20s %6s "
      "%9s  %11s %11s  %11s %11s\n",
      static_cast<double>(piece) * 1e-6, products * 1e-12, memory * 1e-12, "", "", "", "25 GB/s", "55 GB/s", "",
      "budget", "resident", "lru", "ours,oracle", "lru", "ours,oracle");
  for (experiment const& of : experiments) {
    for (double share : shares) {
      int const pieces = of.calls.layers() * of.calls.experts();
      int const places = std::max(1, static_cast<int>(share * pieces));
      std::string cells;
      double resident = 0.0;
      for (double bytes_per_second : {25e9, 55e9}) {
        offload::simulated_machine const machine{.piece_bytes = piece,
                                                 .bytes_per_second = bytes_per_second,
                                                 .seconds_per_read = 1e-5,
                                                 .seconds_per_call = 1e-4,
                                                 .seconds_per_piece = static_cast<double>(piece) / memory,
                                                 .seconds_per_row = static_cast<double>(piece) / products};
        auto const add = [&](offload::simulated_run const& run) {
          char text[40];
          std::snprintf(text, sizeof text, " %5.1f %3.0f %% ", run.seconds / run.resident,
                        100.0 * run.waiting / run.seconds);
          cells += text;
          resident = run.resident;
        };
        offload::residency<offload::lru> plain(of.calls.layers(), of.calls.experts(), places, 1);
        add(offload::simulate(of.calls, plain, machine));
        offload::residency<offload::by_next_use> ours(of.calls.layers(), of.calls.experts(), places, of.calls.calls());
        offload::oracle all(of.calls, of.calls.calls());
        add(offload::simulate(of.calls, ours, machine, [&](auto& known, std::int64_t call) { all.tell(known, call); }));
      }
      std::printf("  %-20s %4.0f %% %6.0f ms %s\n", of.name.c_str(), 100.0 * share, resident * 1e3, cells.c_str());
    }
  }
}

std::string json_of(settings const& how, bool direct, bool paged, std::vector<trace_results> const& all) {
  char text[512];
  std::snprintf(text, sizeof text, "{\"machine\": \"%s\", \"readers\": %d, \"direct\": %s, \"mmap\": %s, \"traces\": [",
                sy::describe(how.where).c_str(), how.readers, direct ? "true" : "false", paged ? "true" : "false");
  std::string out = text;
  for (std::size_t t = 0; t < all.size(); ++t) {
    trace_results const& trace = all[t];
    std::snprintf(text, sizeof text,
                  "%s\n {\"name\": \"%s\", \"calls\": %lld, \"tokens\": %lld, \"pieces\": %lld, \"piece_bytes\": %lld, "
                  "\"budgets\": [",
                  t > 0 ? "," : "", trace.name.c_str(), static_cast<long long>(trace.calls),
                  static_cast<long long>(trace.tokens), static_cast<long long>(trace.pieces),
                  static_cast<long long>(trace.piece_bytes));
    out += text;
    for (std::size_t i = 0; i < trace.budgets.size(); ++i) {
      budget_results const& b = trace.budgets[i];
      std::snprintf(text, sizeof text,
                    "%s\n  {\"share\": %g, \"places\": %lld, \"belady_bytes\": %lld, \"bytes_per_second\": %.0f, "
                    "\"resident_seconds\": %.6f, \"contenders\": [",
                    i > 0 ? "," : "", b.share, static_cast<long long>(b.places), static_cast<long long>(b.belady_bytes),
                    b.bytes_per_second, b.resident_seconds);
      out += text;
      for (std::size_t k = 0; k + 1 < b.outcomes.size(); ++k) {
        outcome const& o = b.outcomes[k];
        std::snprintf(text, sizeof text,
                      "%s\n   {\"name\": \"%s\", \"seconds\": %.6f, \"bytes\": %lld, \"needed\": %lld, \"hits\": %lld, "
                      "\"on_the_way\": %lld, \"unused_loads\": %lld, \"waiting_seconds\": %.6f, \"peak_bytes\": %lld, "
                      "\"same_bits\": %s}",
                      k > 0 ? "," : "", o.contender.c_str(), o.seconds, static_cast<long long>(o.bytes),
                      static_cast<long long>(o.needed), static_cast<long long>(o.hits),
                      static_cast<long long>(o.on_the_way), static_cast<long long>(o.unused), o.waiting,
                      static_cast<long long>(o.peak_bytes), o.hash == b.outcomes[0].hash ? "true" : "false");
        out += text;
      }
      out += "]}";
    }
    out += "]}";
  }
  return out + "]}\n";
}

void write_text(std::string const& path, std::string const& text) {
  std::FILE* const file = std::fopen(path.c_str(), "wb");
  bool const written = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (file == nullptr || std::fclose(file) != 0 || !written) {
    sy::fail("offload_bench", "a file that can be written", "'" + path + "'");
  }
  std::printf("%s is written\n", path.c_str());
}

int run(settings const& how) {
  bench::memory_group const group(how.pages);
  std::printf(
      "experts that are kept in a part of memory, %s, %d readers; the first quarter of the calls fills the caches and "
      "is not counted\n",
      sy::describe(how.where).c_str(), how.readers);
  if (how.pages && group.folder().empty()) {
    std::printf("mmap is left out: no memory group can be made for it: %s\n", group.why_not().c_str());
  }
  std::vector<double> const shares = how.smoke ? std::vector<double>{0.25} : std::vector<double>{0.1, 0.25, 0.5, 0.75};
  std::vector<experiment> const experiments = experiments_of(how);
  std::vector<trace_results> all;
  offload::cache_measures over_time;
  bool direct = false, same = true;
  for (std::size_t i = 0; i < experiments.size(); ++i) {
    experiment const& of = experiments[i];
    if (of.name.find(how.only) == std::string::npos) continue;
    with_shape(of, how, [&]<sy::shape Dims>() {
      problem<Dims> p(of, static_cast<int>(i), how);
      direct = p.direct();
      if (all.empty()) {
        std::printf("the file is read %s\n",
                    direct ? "past the page cache (O_DIRECT)" : "through the page cache, which is told to forget it");
      }
      all.push_back(p.measure(shares, group.folder()));
      if (over_time.calls.empty()) over_time = p.over_time();
    });
    for (budget_results const& b : all.back().budgets) {
      for (outcome const& o : b.outcomes) same = same && (!o.measured || o.hash == b.outcomes[0].hash);
    }
  }
  if (all.empty()) sy::fail("offload_bench, --only", "a word in the name of a trace", "'" + how.only + "'");
  if (!how.smoke) print_targets(all);
  print_simulation(experiments, shares);
  if (!how.json.empty()) write_text(how.json, json_of(how, direct, !group.folder().empty(), all));
  if (!how.pictures.empty()) {
    write_text(how.pictures + "/bytes_by_budget.svg", bench::bytes_by_budget(all));
    write_text(how.pictures + "/over_time.svg",
               offload::picture_of(over_time, all.front().name + ", a quarter of the experts, no prediction"));
  }
  return same ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  settings how;
  if (!parse(argc, argv, how)) {
    std::fputs(
        "usage: offload_bench [--smoke] [--no-mmap] [--threads N] [--readers N] [--file PATH] [--only WORD] [--json "
        "PATH] "
        "[--pictures FOLDER]\n"
        "  --file      where the experts are written; the file is removed at the end (default: offload_bench.experts)\n"
        "  --readers   threads that read it (default: 2)\n"
        "  --only      runs the traces that have the word in their name\n"
        "  --pictures  a folder for bytes_by_budget.svg and over_time.svg\n",
        stderr);
    return 2;
  }
  how.where = sy::cpu::resolved(how.where);
  try {
    return how.experiment >= 0 ? run_mapped(how) : run(how);
  } catch (std::exception const& wrong) {
    std::fprintf(stderr, "offload_bench: %s\n", wrong.what());
    return 1;
  }
}
