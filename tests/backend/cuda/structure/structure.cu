#include <nlohmann/json.hpp>

#include <cstdio>
#include <string>
#include <string_view>

#include "counters.cuh"

/// The structure of the kernels, without hardware: reads the counters of an emulator that stands in for the CUDA runtime
/// and writes one JSON object per launch into the file that PTXEMU_STATS names. Prints a table, and fails where a kernel
/// is beyond a limit.
namespace {

using namespace support;
using namespace switchyard;

// Two-byte elements and floats, gated and not, dropless and not, each with a shared expert or without.
template <int Experts, int TopK, class Router, class Capacity, class Expert, class Element>
using measured = layer<shape{.hidden = 512, .intermediate = 384, .experts = Experts, .top_k = TopK}, Router, Capacity,
                       Expert, backend::cuda, Element>;
using measured_layers =
    std::tuple<measured<8, 2, router::softmax_top_k, capacity::dropless, expert::gated_mlp<silu>, bfloat16>,
               measured<16, 8, router::softmax_top_k_raw, capacity::dropless,
                        expert::with_shared<expert::gated_mlp<silu>, 256>, bfloat16>,
               measured<16, 1, router::switch_top1, capacity::factor<5, 4>, expert::mlp<relu>, bfloat16>,
               measured<8, 2, router::softmax_top_k, capacity::queued<capacity::factor<1>, queue::priority>,
                        expert::gated_mlp<silu>, float>,
               measured<8, 2, router::adaptive_clustering<router::top_k_softmax>, capacity::dropless,
                        expert::gated_mlp<silu>, bfloat16>,
               measured<8, 2, router::adaptive_clustering<router::softmax_top_k_raw, router::vision>,
                        capacity::dropless, expert::mlp<relu>, float>,
               // One stratum, whose pass has all tokens: what is moved before and after it.
               measured<8, 2, router::stratified<router::softmax_top_k, 8>, capacity::dropless, expert::gated_mlp<silu>,
                        bfloat16>>;

/// Tokens of a call, as rows per expert: for the tile of few rows, the one in between, and the one of many.
constexpr int rows_per_expert[] = {8, 48, 128};

/// What may be moved at most, as a multiple of the least possible, and of a hundred accesses to shared memory how many may
/// wait for a bank. The loop of `route_tokens` has no such waits: what it has are a fixed number per block, at the end,
/// when it adds up its sums. Every warp of `sum_rows` reads for itself which tokens its rows are.
struct limits {
  std::string_view kernel;
  double bytes, conflicts;
};
constexpr limits all_limits[] = {{"route_tokens", 1.1, 10.0}, {"product (in)", 1.1, 5.0},   {"product (out)", 1.1, 5.0},
                                 {"combine_rows", 1.1, 5.0},  {"sum_rows", 1.15, 5.0},      {"scale_tokens", 1.1, 5.0},
                                 {"count_tokens", 1.1, 5.0},  {"gather_stratum", 1.1, 5.0}, {"finish_pass", 1.1, 5.0}};

/// The other kernels make the plan, which sorts pairs by expert: numbers of four bytes that lie apart, each in a sector of
/// its own; or they go over tables of experts times features, which are small beside the experts. Any kernel may move so
/// much of a call's bytes.
constexpr double most_of_call = 0.015;

/// What a layer's kernels cannot do without. The kernels that compute with tiles read, for every tile, its rows and its
/// columns once (those that exist: rows past an expert's last cost nothing) and write its results once. The others
/// read and write every array once. What the caches spare of that no emulator can tell.
template <class Layer>
class least {
  static constexpr shape dims = Layer::dims;
  static constexpr std::int64_t size = sizeof(typename Layer::element), hidden = dims.hidden;

 public:
  /// `counts`: rows of each expert; `labels`: the clusters of the tokens.
  least(std::int64_t tokens, std::vector<std::int64_t> counts, std::vector<std::int32_t> const& labels)
      : tokens_(tokens), counts_(std::move(counts)) {
    for (std::int64_t rows : counts_) rows_ += rows;
    std::vector<std::int64_t> in_cluster(dims.experts);
    for (std::int64_t t = 0; t < tokens; ++t) ++in_cluster[labels[t * dims.top_k]];
    for (std::int64_t count : in_cluster) {
      cluster_tiles_ += divide_up(count, cuda::cluster_tile_rows(tokens));
    }
  }

  traffic of(std::string const& kernel, std::string const& mangled, std::int64_t blocks) const {
    std::int64_t const pairs = tokens_ * dims.top_k;
    constexpr bool drops = Layer::capacity_traits.drops,
                   sorts = drops && Layer::capacity_traits.order == queue::priority;
    // Sets of pairs, a bit for each, that routing leaves for the plan: in every piece of the tokens the bits fill words.
    std::int64_t const pieces = divide_up(tokens_, tokens_ > 2048 ? 32 : 16);
    std::int64_t const set = dims.experts * divide_up(pairs, pieces * 32) * pieces * 4,
                       per_token_block = dims.experts * pieces * 4;
    // With clusters, the weights of features of each token's cluster come with the token.
    constexpr bool scales = router::are_scaled_by_cluster<typename Layer::router::features>;
    if (kernel == "sum_rows") {  // its tokens, and a table row per tile: the means for deviations; the sums written
      std::int64_t const tiles = cluster_tiles_;
      bool const deviations = sums_++ % 2 == 1;  // its second launch in a call
      return {tokens_ * (hidden * size + 4) + (deviations ? tiles * hidden * 4 : 0), tiles * hidden * 4};
    }
    if (kernel == "count_tokens") return {tokens_ * (hidden * size + 4), tokens_};
    if (kernel == "scale_tokens") return {tokens_ * hidden * (size + 4), tokens_ * hidden * size};
    if (kernel == "gather_stratum") return {tokens_ * hidden * size, tokens_ * (hidden * size + 5)};
    // Each row reads the weight and the bias of its norm, which the caches have; of two-byte elements a thread has eight,
    // whose norms are two loads from the same sectors.
    if (kernel == "finish_pass") return {tokens_ * hidden * (2 * size + (size == 2 ? 16 : 8)), tokens_ * hidden * size};
    if (kernel == "route_tokens") {
      return {tokens_ * hidden * (size + (scales ? 4 : 0)) + blocks * dims.experts * hidden * 4,
              pairs * 8 +
                  (sorts   ? 3 * set + tokens_ * 4
                   : drops ? 2 * set
                           : set + per_token_block) +
                  (drops ? pairs : 0)};
    }
    if (kernel.starts_with("product")) {
      bool const in = kernel == "product (in)";
      if (mangled.find("few_rows") != std::string::npos) return product(in, cuda::few_rows::tile);
      if (mangled.find("some_rows") != std::string::npos) return product(in, cuda::some_rows::tile);
      return product(in, cuda::many_rows::tile);
    }
    if (kernel == "combine_rows") {
      std::int64_t const shared = Layer::expert_traits.shared_intermediate > 0 ? tokens_ : 0;
      std::int64_t const of_pair = 8 + (Layer::capacity_traits.drops ? 1 : 0);  // row, weight, whether it is dropped
      return {(rows_ + shared) * hidden * size + pairs * of_pair, tokens_ * hidden * size};
    }
    if (kernel == "order_tokens") return {tokens_ * 4 + pairs * 4, tokens_ * 4 + set};
    if (kernel == "queue_pairs") return {set, pairs - rows_ + dims.experts * 4};
    return {set + (drops ? dims.experts * 4 : per_token_block), rows_ * 8 + dims.experts * 12 + 4};  // assign_rows
  }

 private:
  traffic product(bool in, cuda::product_tile tile) const {
    traffic sum;
    constexpr int intermediate = dims.intermediate, shared = Layer::expert_traits.shared_intermediate;
    for (std::int64_t rows : counts_) add_tiles(sum, in, tile, rows, intermediate, true);
    if constexpr (shared > 0) add_tiles(sum, in, tile, tokens_, shared, false);
    return sum;
  }
  static void add_tiles(traffic& sum, bool in, cuda::product_tile tile, std::int64_t rows, int inner, bool routed) {
    std::int64_t const matrices = in && Layer::expert_traits.gated ? 2 : 1;
    std::int64_t const depth = in ? hidden : inner, features = in ? inner : hidden;
    std::int64_t const row_tiles = divide_up(rows, tile.rows),
                       column_tiles = divide_up(features * matrices, tile.columns);
    sum.loads += column_tiles * rows * (depth * size + (in && routed ? 4 : 0));  // with the row's token
    sum.loads += row_tiles * features * matrices * depth * size;
    sum.stores += rows * features * size;
  }

  std::int64_t tokens_, rows_ = 0, cluster_tiles_ = 0;
  mutable int sums_ = 0;
  std::vector<std::int64_t> counts_;
};

/// `product (in)` of `void switchyard::cuda::product<switchyard::cuda::product_in<...`.
std::string short_name(std::string const& kernel) {
  std::string const space = "switchyard::cuda::";
  std::size_t const begin = kernel.find(space) + space.size();
  std::string const name = kernel.substr(begin, kernel.find('<', begin) - begin);
  if (name != "product") return name;
  return kernel.find("product_in<") != std::string::npos ? "product (in)" : "product (out)";
}

/// Prints a launch. Whether it keeps the limits.
template <class Layer>
bool check(nlohmann::json const& launch, least<Layer> const& least_of, std::int64_t bytes_of_call) {
  auto const number = [&](char const* group, char const* name) { return launch[group][name].get<std::int64_t>(); };
  std::string const mangled = launch["kernel"], kernel = short_name(mangled);
  std::int64_t const blocks = launch["grid"][0], threads = launch["block"][0];
  traffic const moved = moved_by(launch);
  traffic const needed = least_of.of(kernel, mangled, blocks);
  double const bytes = static_cast<double>(moved.all()) / static_cast<double>(needed.all());
  auto const ratio = [](std::int64_t a, std::int64_t b) { return b == 0 ? 0.0 : static_cast<double>(a) / b; };
  auto const sectors = [&](char const* group) { return ratio(number(group, "sectors"), number(group, "requests")); };
  std::int64_t const accesses = number("shared_load", "requests") + number("shared_store", "requests");
  std::int64_t const waits = number("shared_load", "extra_wavefronts") + number("shared_store", "extra_wavefronts");
  double const conflicts = 100.0 * ratio(waits, accesses);
  std::int64_t const local_bytes = launch["local_bytes"];

  std::string wrong;
  bool limited = false;
  for (limits const& limit : all_limits) {
    if (limit.kernel != kernel) continue;
    limited = true;
    if (bytes > limit.bytes && ratio(moved.all(), bytes_of_call) > most_of_call) wrong += "  <- bytes";
    if (conflicts > limit.conflicts) wrong += "  <- bank conflicts";
  }
  if (!limited && ratio(moved.all(), bytes_of_call) > most_of_call) wrong += "  <- bytes";
  if (local_bytes > 0) wrong += "  <- local memory";
  std::string const tile = mangled.find("few_rows") != std::string::npos    ? "few"
                           : mangled.find("some_rows") != std::string::npos ? "some"
                           : mangled.find("many_rows") != std::string::npos ? "many"
                                                                            : "";
  std::printf("%-14s %-4s %6lld %5lld %11lld %6.3f %11lld %6.3f %7.3f %6.2f %6.2f %9lld %6.2f %7lld%s\n",
              kernel.c_str(), tile.c_str(), static_cast<long long>(blocks), static_cast<long long>(threads),
              static_cast<long long>(moved.loads), ratio(moved.loads, needed.loads),
              static_cast<long long>(moved.stores), ratio(moved.stores, needed.stores), bytes, sectors("global_load"),
              sectors("global_store"), static_cast<long long>(accesses), conflicts, static_cast<long long>(local_bytes),
              wrong.c_str());
  return wrong.empty();
}

/// Runs a layer and checks its launches.
template <class Layer>
bool measure(counters& from, int rows) {
  counted_call const call = count<Layer>(from, rows);
  std::printf("%-14s %-4s %6s %5s %11s %6s %11s %6s %7s %13s %9s %6s %7s\n", "kernel", "tile", "blocks", "thr.",
              "loaded", "/least", "stored", "/least", "/least", "sectors/req.", "shared", "wait%", "local");
  least<Layer> const needed(call.tokens, call.counts, call.clusters);
  std::int64_t bytes = 0;
  for (nlohmann::json const& launch : call.launches) bytes += moved_by(launch).all();
  bool right = true;
  for (nlohmann::json const& launch : call.launches) right = check<Layer>(launch, needed, bytes) && right;
  if (call.launches.size() != static_cast<std::size_t>(call.enqueued)) {
    std::printf("%zu launches instead of %d\n", call.launches.size(), call.enqueued);
    right = false;
  }
  return right;
}

template <class... Layers>
bool measure_all(std::tuple<Layers...> const*, counters& from) {
  bool right = true;
  for (int rows : rows_per_expert) ((right = measure<Layers>(from, rows) && right), ...);
  return right;
}

/// Rows that product keys choose: what their sum moves, as a multiple of the rows once for each pair, the pairs, and the output.
template <class Element>
bool measure_rows(counters& from) {
  constexpr int keys = 64, heads = 2, kept = 32;
  using layer = switchyard::layer<shape{1024, 1, keys * keys, heads * kept}, router::product_keys<keys, heads>,
                                  capacity::dropless, expert::value_row, backend::cuda, Element>;
  constexpr std::int64_t tokens = 24, pairs = tokens * layer::dims.top_k,
                         row_bytes = layer::dims.hidden * static_cast<std::int64_t>(sizeof(Element));
  random_numbers random(2);
  std::vector<float> numbers(std::size_t{heads} * keys * layer::dims.hidden / 2);
  for (float& number : numbers) number = static_cast<float>(random.normal());
  std::vector<Element> x(tokens * layer::dims.hidden);
  for (Element& value : x) value = Element(static_cast<float>(random.normal()));
  device_array<float> const first(numbers), second(numbers);
  device_array<Element> const tokens_at(x), values(static_cast<std::size_t>(layer::dims.experts) * layer::dims.hidden),
      y(x.size());
  device_array<std::byte> const workspace(layer::workspace_bytes(tokens));
  check_cuda(cudaMemset(values.data(), 0, values.size() * sizeof(Element)));
  typename layer::args args{};
  args.tokens = layer::rows(static_cast<Element const*>(tokens_at.data()), tokens);
  args.weights.router.first_keys = first.data();
  args.weights.router.second_keys = second.data();
  args.weights.values = layer::table(values.data());
  args.output = layer::rows(y.data(), tokens);
  args.workspace = {workspace.data(), workspace.size()};
  forward_and_wait<layer>(args);
  std::printf("\n%s, %lld tokens\n", describe<layer>().c_str(), static_cast<long long>(tokens));
  bool right = false;
  for (nlohmann::json const& launch : from.next()) {
    if (short_name(launch["kernel"]) != "sum_token_rows") continue;
    traffic const moved = moved_by(launch);
    std::int64_t const needed = pairs * (row_bytes + 8) + tokens * row_bytes;
    double const bytes = static_cast<double>(moved.all()) / static_cast<double>(needed);
    right = bytes <= 1.05 && launch["local_bytes"] == 0;
    std::printf("sum_token_rows moves %.3f of the least\n", bytes);
  }
  return right;
}

}  // namespace

int main() {
  counters from;
  bool right = measure_all(static_cast<measured_layers*>(nullptr), from);
  right = measure_rows<float>(from) && right;
  right = measure_rows<bfloat16>(from) && right;
  return right ? 0 : 1;
}
