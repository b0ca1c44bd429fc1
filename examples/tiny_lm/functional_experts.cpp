// Which experts of the shipped model are functional for a class of bytes, and what the model loses when they say something else.
#include <switchyard/modularity.hpp>
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <future>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "evaluate.hpp"
#include "file.hpp"
#include "functional_picture.hpp"
#include "model.hpp"
#include "options.hpp"
#include "safetensors.hpp"
#include "units.hpp"

namespace {

using namespace tiny_lm;
namespace measures = sy::modularity;

constexpr std::string_view usage = R"(usage: tiny_lm_functional_experts [flag value]...

Shows which experts of the small language model are functional for a class of bytes, beside random partitions of the same
units, and what perturbing them costs beside perturbing as many others.

  --bytes N       bytes of the text to take, from its start    (all)
  --seeds N       of perturbations, and of the experts beside  (5)
  --picture FILE  where all of it is drawn, as SVG             (functional_experts.svg)
  --threads N     windows to read side by side                 (all cores)
  --text FILE     another text
  --help          this text
)";

struct settings {
  std::int64_t bytes = 0;  ///< 0: all
  int seeds = 5;
  int threads = 1;
  std::string picture = "functional_experts.svg", text = TINY_LM_TEXT;
  bool help = false;
};

settings read_settings(int argc, char const* const* argv) {
  settings result;
  unsigned const cores = std::thread::hardware_concurrency();
  result.threads = cores == 0 ? 1 : static_cast<int>(cores);
  for (int i = 1; i < argc; ++i) {
    std::string const flag = argv[i];
    if (flag == "--help") {
      result.help = true;
      continue;
    }
    auto const known = {"--bytes", "--seeds", "--picture", "--threads", "--text"};
    if (std::find(known.begin(), known.end(), flag) == known.end()) throw usage_error("unknown flag '" + flag + "'");
    if (i + 1 == argc) throw usage_error(flag + " needs a value");
    std::string const value = argv[++i];
    if (flag == "--bytes") result.bytes = detail::whole_number<std::int64_t>(flag, value, 2 * context, 1'000'000'000);
    if (flag == "--seeds") result.seeds = detail::whole_number(flag, value, 1, 1000);
    if (flag == "--picture") result.picture = value;
    if (flag == "--threads") result.threads = detail::whole_number(flag, value, 1, 1024);
    if (flag == "--text") result.text = value;
  }
  return result;
}

struct byte_class {
  char const* name;
  bool (*has)(unsigned char);
};
constexpr byte_class classes[] = {
    {"small letters", [](unsigned char b) { return b >= 'a' && b <= 'z'; }},
    {"capital letters", [](unsigned char b) { return b >= 'A' && b <= 'Z'; }},
    {"digits", [](unsigned char b) { return b >= '0' && b <= '9'; }},
    {"spaces", [](unsigned char b) { return b == ' ' || b == '\n'; }},
    {"sentence ends", [](unsigned char b) { return b == '.' || b == '!' || b == '?'; }},
};
constexpr int class_count = static_cast<int>(std::size(classes));
constexpr std::int64_t most_of_a_label = 1000;  // as is published for tasks
constexpr std::int64_t least_of_a_label = 20;
constexpr std::uint64_t seed = 1;

/// A text that is cut at every `context` bytes, as `evaluate` cuts it.
struct cut_text {
  std::span<unsigned char const> bytes;

  std::int64_t predicted() const { return static_cast<std::int64_t>(bytes.size()) - 1; }
  std::int64_t windows() const { return (predicted() + context - 1) / context; }
  unsigned char byte_after(std::int64_t position) const { return bytes[static_cast<std::size_t>(position) + 1]; }
};

/// Reads every second window from `first` on, side by side. `make_hook(window)` gives a reference to what happens behind a layer, from a
/// variable of the thread's that says which window is read; `take(window, logits)` gets the logits of each.
template <class MakeHook, class Take>
void read_windows(model<kinds::shipped> const& weights, cut_text const& text, std::int64_t first, int threads,
                  MakeHook const& make_hook, Take const& take) {
  std::atomic<std::int64_t> next{first};
  auto const work = [&] {
    std::int64_t window = 0;
    hooked_layers const layers(weights.moe, make_hook(static_cast<std::int64_t const&>(window)));
    reader<kinds::shipped> read(weights, layers);
    while ((window = next.fetch_add(2)) < text.windows()) {
      std::int64_t const begin = window * context, size = std::min<std::int64_t>(context, text.predicted() - begin);
      read.forget();
      take(window, read.read(text.bytes.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(size))));
    }
  };
  std::vector<std::future<void>> workers;
  for (int i = 0; i < threads; ++i) workers.push_back(std::async(std::launch::async, work));
  for (auto& worker : workers) worker.get();
}

/// The bytes whose units are looked at, and their labels.
struct samples {
  std::vector<std::int64_t> positions;  ///< rising; of the byte before the one that is predicted
  std::vector<std::int32_t>
      labels;  ///< [classes, positions]: 1 where that one is of the class, 0 where not, -1 where not drawn
  std::int64_t positive[class_count] = {};

  std::int64_t count() const { return static_cast<std::int64_t>(positions.size()); }
};

/// Of each class and of the bytes that are none of it, at most 1000 in the even windows, drawn at random.
samples draw_samples(cut_text const& text) {
  std::vector<std::int64_t> drawn[class_count][2];
  samples result;
  for (int c = 0; c < class_count; ++c) {
    for (int label = 0; label < 2; ++label) {
      std::vector<std::int64_t> all;
      for (std::int64_t position = 0; position < text.predicted(); ++position) {
        if (position / context % 2 == 0 && classes[c].has(text.byte_after(position)) == (label == 1)) {
          all.push_back(position);
        }
      }
      auto const order = measures::random_permutation(static_cast<std::int64_t>(all.size()),
                                                      {seed, static_cast<std::uint64_t>(2 * c + label)});
      for (std::int64_t i = 0; i < std::min<std::int64_t>(most_of_a_label, static_cast<std::int64_t>(all.size()));
           ++i) {
        drawn[c][label].push_back(all[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])]);
      }
      result.positions.insert(result.positions.end(), drawn[c][label].begin(), drawn[c][label].end());
    }
    result.positive[c] = static_cast<std::int64_t>(drawn[c][1].size());
  }
  std::sort(result.positions.begin(), result.positions.end());
  result.positions.erase(std::unique(result.positions.begin(), result.positions.end()), result.positions.end());
  result.labels.assign(static_cast<std::size_t>(class_count) * result.positions.size(), -1);
  for (int c = 0; c < class_count; ++c) {
    for (int label = 0; label < 2; ++label) {
      for (std::int64_t position : drawn[c][label]) {
        auto const at = std::lower_bound(result.positions.begin(), result.positions.end(), position);
        result.labels[static_cast<std::size_t>(c) * result.positions.size() +
                      static_cast<std::size_t>(at - result.positions.begin())] = label;
      }
    }
  }
  return result;
}

constexpr int hidden = unit_dims.hidden, experts = unit_dims.experts, top_k = unit_dims.top_k;

/// What the samples' tokens were in front of each block's layer, and where they were sent.
struct observed_block {
  std::vector<float> tokens;          ///< [samples, hidden]
  std::vector<std::int32_t> experts;  ///< [samples, top_k]
};

std::vector<observed_block> observe(model<kinds::shipped> const& weights, cut_text const& text, samples const& of,
                                    int threads) {
  std::vector<observed_block> result(blocks);
  for (observed_block& b : result) {
    b.tokens.resize(static_cast<std::size_t>(of.count()) * hidden);
    b.experts.resize(static_cast<std::size_t>(of.count()) * top_k);
  }
  std::atomic<bool> is_whole{true};
  auto const hook = [&](std::int64_t const& window) {
    return [&result, &of, &window, &weights, &is_whole](layer_call const& call) {
      observed_block& to = result[static_cast<std::size_t>(call.block)];
      std::int64_t const begin = window * context;
      auto const first = std::lower_bound(of.positions.begin(), of.positions.end(), begin);
      for (auto at = first; at != of.positions.end() && *at < begin + call.rows; ++at) {
        std::ptrdiff_t const row = static_cast<std::ptrdiff_t>(*at - begin), sample = at - of.positions.begin();
        std::copy_n(call.tokens + row * hidden, hidden, to.tokens.begin() + sample * hidden);
        std::copy_n(call.experts + row * top_k, top_k, to.experts.begin() + sample * top_k);
      }
      if (window > 0) return;
      // What the units of the chosen experts say, put together, is what the layer computed.
      moe_weights const& w = weights.moe[static_cast<std::size_t>(call.block)];
      for (int row = 0; row < call.rows; ++row) {
        float values[unit_dims.intermediate], sum[hidden] = {};
        for (int k = 0; k < top_k; ++k) {
          int const expert = call.experts[row * top_k + k];
          unit_values(w, expert, call.tokens + row * hidden, values);
          add_units(w, expert, values, call.weights[row * top_k + k], sum);
        }
        for (int h = 0; h < hidden; ++h) {
          if (!(std::abs(sum[h] - call.output[row * hidden + h]) <= 1e-3f)) is_whole = false;
        }
      }
    };
  };
  read_windows(weights, text, 0, threads, hook, [](std::int64_t, std::span<float const>) {});
  if (!is_whole) throw std::runtime_error("the units of the experts do not add up to what the layer computed.");
  return result;
}

/// The magnitude of what every unit says of each sample, [samples, units]. Where `routed` is set, units of experts that a sample is not
/// sent to say 0.
std::vector<float> activations(moe_weights const& w, observed_block const& block, std::int64_t count, bool routed,
                               int threads) {
  std::vector<float> result(static_cast<std::size_t>(count) * units_of_a_block);
  std::atomic<std::int64_t> next{0};
  auto const work = [&] {
    for (std::int64_t sample; (sample = next++) < count;) {
      for (int e = 0; e < experts; ++e) {
        auto const sent = block.experts.begin() + sample * top_k;
        if (routed && std::find(sent, sent + top_k, e) == sent + top_k) continue;
        float* const values = result.data() + sample * units_of_a_block + e * unit_dims.intermediate;
        unit_values(w, e, block.tokens.data() + sample * hidden, values);
        for (int i = 0; i < unit_dims.intermediate; ++i) values[i] = std::abs(values[i]);
      }
    }
  };
  std::vector<std::future<void>> workers;
  for (int i = 0; i < threads; ++i) workers.push_back(std::async(std::launch::async, work));
  for (auto& worker : workers) worker.get();
  return result;
}

/// What was found of one class in one block.
struct found_experts {
  double best_unit = 0.0;
  measures::functional_experts experts;
  measures::partition_baseline chance;
};
using found_of_class = std::vector<found_experts>;  // [blocks]

std::vector<found_of_class> find_experts(model<kinds::shipped> const& weights,
                                         std::vector<observed_block> const& observed, samples const& of, bool routed,
                                         int threads) {
  std::vector<std::int32_t> expert_of_unit;
  for (int u = 0; u < units_of_a_block; ++u) expert_of_unit.push_back(u / unit_dims.intermediate);
  measures::unit_experts const partition{expert_of_unit, experts};
  std::vector<found_of_class> result(class_count, found_of_class(blocks));
  for (std::size_t block = 0; block < blocks; ++block) {
    std::vector<float> const said = activations(weights.moe[block], observed[block], of.count(), routed, threads);
    std::vector<double> const all =
        measures::predictivity(sy::view<float const>(said.data(), of.count(), units_of_a_block),
                               sy::view<std::int32_t const>(of.labels.data(), class_count, of.count()));
    for (std::size_t c = 0; c < class_count; ++c) {
      if (of.positive[c] < least_of_a_label) continue;
      std::span<double const> const mine(all.data() + c * units_of_a_block, units_of_a_block);
      found_experts& found = result[c][block];
      found.best_unit = *std::max_element(mine.begin(), mine.end());
      found.experts = measures::functional_experts_of(mine, partition);
      found.chance = measures::random_partitions(mine, partition, {seed, 1000 + c * blocks + block});
    }
  }
  return result;
}

/// Of each predicted byte of the odd windows its bits, and how many of its routes lead to perturbed experts; 0 in the others.
struct perturbed_reading {
  std::vector<double> bits;
  std::vector<int> routes;
};

perturbed_reading read_perturbed(model<kinds::shipped> const& weights, cut_text const& text,
                                 chosen_experts const& chosen, std::uint64_t number, int threads) {
  perturbed_reading result;
  result.bits.resize(static_cast<std::size_t>(text.predicted()));
  result.routes.resize(result.bits.size());
  auto const hook = [&](std::int64_t const& window) {
    return [&, &window = window](layer_call const& call) {
      std::uint64_t const stream = static_cast<std::uint64_t>(window) * blocks + static_cast<std::uint64_t>(call.block);
      perturb_experts(weights.moe[static_cast<std::size_t>(call.block)], chosen, call, {number, stream});
      for (int i = 0; i < call.rows * top_k; ++i) {
        bool const perturbed = chosen[static_cast<std::size_t>(call.block)][static_cast<std::size_t>(call.experts[i])];
        result.routes[static_cast<std::size_t>(window * context + i / top_k)] += perturbed ? 1 : 0;
      }
    };
  };
  read_windows(weights, text, 1, threads, hook, [&](std::int64_t window, std::span<float const> logits) {
    for (std::size_t i = 0; i * vocabulary < logits.size(); ++i) {
      std::int64_t const position = window * context + static_cast<std::int64_t>(i);
      result.bits[static_cast<std::size_t>(position)] =
          bits(logits.subspan(i * vocabulary, vocabulary), text.byte_after(position));
    }
  });
  return result;
}

/// Mean bits of some bytes, and the share of their routes that lead to perturbed experts.
struct mean_reading {
  double bits = 0.0, routes = 0.0;
};
struct means {
  mean_reading of_class, of_others, all;
};

means means_of(cut_text const& text, perturbed_reading const& from, byte_class const& of) {
  mean_reading sum[2];
  double count[2] = {};
  for (std::int64_t position = context; position < text.predicted(); ++position) {
    if (position / context % 2 == 0) continue;
    bool const is_of_class = of.has(text.byte_after(position));
    sum[is_of_class].bits += from.bits[static_cast<std::size_t>(position)];
    sum[is_of_class].routes += from.routes[static_cast<std::size_t>(position)];
    count[is_of_class] += 1.0;
  }
  auto const mean = [](mean_reading const& of_some, double bytes) -> mean_reading {
    return {of_some.bits / std::max(bytes, 1.0), of_some.routes / std::max(bytes, 1.0) / (blocks * top_k)};
  };
  mean_reading const all{sum[0].bits + sum[1].bits, sum[0].routes + sum[1].routes};
  return {mean(sum[1], count[1]), mean(sum[0], count[0]), mean(all, count[0] + count[1])};
}

/// As many experts of every block that are not functional, drawn at random; all of them where there are not enough.
chosen_experts others_than(chosen_experts const& functional, std::uint64_t number) {
  chosen_experts result{};
  for (std::size_t block = 0; block < blocks; ++block) {
    std::int64_t wanted = std::count(functional[block].begin(), functional[block].end(), true);
    for (std::int64_t e : measures::random_permutation(experts, {number, 2000 + block})) {
      if (wanted == 0) break;
      if (functional[block][static_cast<std::size_t>(e)]) continue;
      result[block][static_cast<std::size_t>(e)] = true;
      --wanted;
    }
  }
  return result;
}

void print_found(std::vector<found_of_class> const& found, samples const& of) {
  std::printf("  %-16s %5s   %-43s %15s   %15s\n", "", "best", "functional experts of", "found", "by chance");
  std::printf("  %-16s %5s   %-10s %-10s %-10s %-10s %7s %7s   %7s %7s\n", "byte that comes", "unit", "block 0",
              "block 1", "block 2", "block 3", "share", "degree", "share", "degree");
  for (std::size_t c = 0; c < class_count; ++c) {
    if (of.positive[c] < least_of_a_label) continue;
    double best = 0.0, share = 0.0, degree = 0.0, chance_share = 0.0, chance_degree = 0.0;
    std::string lists;
    for (found_experts const& f : found[c]) {
      std::string list;
      for (std::size_t e = 0; e < experts; ++e) {
        if (f.experts.is_functional[e] != 0) list += (list.empty() ? "" : " ") + std::to_string(e);
      }
      list = list.empty() ? "-" : list;
      lists += list + std::string(std::max<std::size_t>(11, list.size() + 1) - list.size(), ' ');
      best += f.best_unit / blocks;
      share += f.experts.proportion / blocks;
      degree += f.experts.degree / blocks;
      chance_share += f.chance.proportion / blocks;
      chance_degree += f.chance.degree / blocks;
    }
    std::printf("  %-16s %5.2f   %s%7.3f %7.2f   %7.4f %7.3f\n", classes[c].name, best, lists.c_str(), share, degree,
                chance_share, chance_degree);
  }
}

chosen_experts functional_of(found_of_class const& found) {
  chosen_experts result{};
  for (std::size_t block = 0; block < blocks; ++block) {
    for (std::size_t e = 0; e < experts; ++e) result[block][e] = found[block].experts.is_functional[e] != 0;
  }
  return result;
}

/// Perturbs the functional experts of every class, and as many others, prints what the bytes cost then, and returns by how much more, for
/// each class [functional, others]; nothing for a class without functional experts.
std::vector<std::vector<loss_increase>> perturb_found(model<kinds::shipped> const& weights, cut_text const& text,
                                                      samples const& of, std::vector<found_of_class> const& found,
                                                      perturbed_reading const& undisturbed, settings const& wanted) {
  std::vector<std::vector<loss_increase>> result(class_count);
  std::printf(
      "\n  When they say something else (mean of %d): of a byte's routes so many are perturbed, and so many bits it "
      "costs more\n",
      wanted.seeds);
  std::printf("  %-16s %-22s  %20s  %20s  %20s\n", "byte that comes", "perturbed", "of this class", "of the others",
              "all");
  for (std::size_t c = 0; c < class_count; ++c) {
    if (of.positive[c] < least_of_a_label) continue;
    chosen_experts const functional = functional_of(found[c]);
    if (functional == chosen_experts{}) {
      std::printf("  %-16s has no functional expert\n", classes[c].name);
      continue;
    }
    means const without = means_of(text, undisturbed, classes[c]);
    for (bool others : {false, true}) {
      means mean;
      for (int s = 0; s < wanted.seeds; ++s) {
        std::uint64_t const number = seed + static_cast<std::uint64_t>(s);
        chosen_experts const chosen = others ? others_than(functional, number) : functional;
        means const m = means_of(text, read_perturbed(weights, text, chosen, number, wanted.threads), classes[c]);
        auto const add = [&](mean_reading& to, mean_reading const& with, mean_reading const& before) {
          to.bits += (with.bits - before.bits) / wanted.seeds;
          to.routes += with.routes / wanted.seeds;
        };
        add(mean.of_class, m.of_class, without.of_class);
        add(mean.of_others, m.of_others, without.of_others);
        add(mean.all, m.all, without.all);
      }
      std::printf("  %-16s %-22s", others ? "" : classes[c].name, others ? "as many others" : "its functional experts");
      for (mean_reading const& m : {mean.of_class, mean.of_others, mean.all}) {
        std::printf("     %5.1f %%  %+8.3f", 100.0 * m.routes, m.bits);
      }
      std::printf("\n");
      result[c].push_back({mean.of_class.bits, mean.of_others.bits});
    }
  }
  return result;
}

void run(settings const& wanted) {
  safetensors const file = safetensors::load(TINY_LM_WEIGHTS);
  model<kinds::shipped> const weights(file);
  std::vector<char> const bytes = read_file(wanted.text);
  std::vector<unsigned char> const whole(bytes.begin(), bytes.end());
  std::size_t const taken = wanted.bytes == 0 ? whole.size() : static_cast<std::size_t>(wanted.bytes) + 1;
  cut_text const text{std::span(whole).first(std::min(taken, whole.size()))};
  if (text.windows() < 2) throw std::runtime_error(wanted.text + ": expected a text of more than 257 bytes.");

  samples const of = draw_samples(text);
  std::printf("Units of %d blocks with %s\n", blocks, sy::describe<hooked_layers::layer>().c_str());
  std::printf("  %lld bytes of %s, looked at in every second window of %d; the others are scored\n",
              static_cast<long long>(text.predicted()), wanted.text.c_str(), context);
  constexpr std::int64_t top = units_of_a_block / 100;
  std::printf("  functional: more than %lld of the %lld best of %d units in one of %d experts\n",
              static_cast<long long>(measures::hypergeometric_threshold(units_of_a_block, unit_dims.intermediate, top)),
              static_cast<long long>(top), units_of_a_block, experts);

  std::vector<observed_block> const observed = observe(weights, text, of, wanted.threads);
  perturbed_reading const undisturbed = read_perturbed(weights, text, {}, 0, wanted.threads);
  std::printf("\n  Bits per byte as the model is\n");
  std::vector<drawn_class> drawing;
  std::string note;
  for (std::size_t c = 0; c < class_count; ++c) {
    means const m = means_of(text, undisturbed, classes[c]);
    if (c == 0) std::printf("  %-16s %7.3f\n", "all bytes", m.all.bits);
    if (of.positive[c] < least_of_a_label) {
      std::printf("  %-16s the text has %lld of them to look at: not enough\n", classes[c].name,
                  static_cast<long long>(of.positive[c]));
      note += (note.empty() ? "Not drawn: " : ", ") + std::string(classes[c].name) + ", of which the text has " +
              std::to_string(of.positive[c]) + " to look at";
      continue;
    }
    std::printf("  %-16s %7.3f\n", classes[c].name, m.of_class.bits);
    drawing.push_back({.name = classes[c].name, .chance = static_cast<double>(top) / experts});
  }

  for (bool routed : {false, true}) {
    std::printf("\n%s\n", routed ? "Units of the experts that a byte is sent to alone, the others of which say 0 of it"
                                 : "Units of all experts, wherever a byte is sent, as is published");
    std::vector<found_of_class> const found = find_experts(weights, observed, of, routed, wanted.threads);
    print_found(found, of);
    auto const increases = perturb_found(weights, text, of, found, undisturbed, wanted);
    for (std::size_t c = 0, drawn = 0; c < class_count; ++c) {
      if (of.positive[c] < least_of_a_label) continue;
      drawn_class& to = drawing[drawn++];
      for (found_experts const& f : found[c]) {
        auto& counts = routed ? to.counts : to.counts_of_all;
        counts.push_back({f.experts.counts.begin(), f.experts.counts.end()});
        to.threshold = static_cast<double>(f.experts.thresholds[0]);
      }
      if (routed) to.increases = increases[c];
    }
  }
  std::ofstream out(wanted.picture, std::ios::binary);
  std::string const subtitle = "How many of the " + std::to_string(top) + " best of " +
                               std::to_string(units_of_a_block) +
                               " units each expert has, by the class of the byte that comes next; " +
                               std::to_string(text.predicted()) + " bytes of text";
  if (!(out << functional_svg(drawing, subtitle, note)).flush()) {
    throw std::runtime_error(wanted.picture + ": the picture cannot be written.");
  }
  std::printf("\nAs a picture: %s\n", std::filesystem::absolute(wanted.picture).string().c_str());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    settings const wanted = read_settings(argc, argv);
    if (wanted.help) {
      std::printf("%s", usage.data());
    } else {
      run(wanted);
    }
    return 0;
  } catch (usage_error const& wrong) {
    std::fprintf(stderr, "tiny_lm_functional_experts: %s\n\n%s", wrong.what(), usage.data());
    return 2;
  } catch (std::exception const& wrong) {
    std::fflush(stdout);
    std::fprintf(stderr, "tiny_lm_functional_experts: %s\n", wrong.what());
    return 1;
  }
}
