#include <nlohmann/json.hpp>

#include <cstdint>
#include <cstdio>
#include <string>
#include <tuple>
#include <utility>

#include "backend/cuda/structure/counters.cuh"

/// The structure of the products on Hopper, without hardware: what an emulator counts of them. Prints a table, and fails
/// where a kernel does more than its tiles need.
namespace {

using namespace support;
using namespace switchyard;
namespace device = cuda;

template <int Hidden, int Intermediate, int Experts, int TopK, class Expert, class Element>
using measured = layer<shape{.hidden = Hidden, .intermediate = Intermediate, .experts = Experts, .top_k = TopK},
                       router::softmax_top_k, capacity::dropless, Expert, backend::hopper, Element>;
// The second product cooperates where the depth is long, and takes turns where it is short.
using measured_layers = std::tuple<measured<512, 1024, 4, 2, expert::gated_mlp<silu>, bfloat16>,
                                   measured<576, 384, 16, 4, expert::gated_mlp<silu>, bfloat16>,
                                   measured<576, 1024, 4, 1, expert::mlp<relu>, half>>;
constexpr int rows_per_expert[] = {100, 256, 512};

/// What a product has to do with its tiles, and what it cannot do without.
struct needed {
  std::int64_t flops = 0, tile_flops = 0;      ///< of all rows; of blocks of 64 rows, of whole columns and stages
  std::int64_t weights = 0, tile_weights = 0;  ///< bytes: of each expert's once; of each cluster's tiles
  std::int64_t rows = 0;                       ///< bytes of the left factor that tiles read
  std::int64_t results = 0;                    ///< bytes
  std::int64_t steps = 0;                      ///< stages that a tile takes, over all tiles of both blocks
};

template <class Problem>
needed needs(hopper_tile tile, std::int64_t depth, std::int64_t results, std::vector<std::int64_t> const& counts) {
  constexpr std::int64_t size = sizeof(typename Problem::element), matrices = Problem::gated ? 2 : 1;
  std::int64_t const features = results * matrices;
  std::int64_t const padded_depth = divide_up(depth, 64) * 64, columns = divide_up(features, tile.columns);
  needed all;
  std::vector<int> expert_of_tile;
  for (std::size_t e = 0; e < counts.size(); ++e) {
    std::int64_t const rows = counts[e], tiles = divide_up(rows, tile.rows);
    all.flops += 2 * rows * depth * features;
    all.tile_flops += 2 * divide_up(rows, 64) * 64 * padded_depth * columns * tile.columns;
    if (rows > 0) all.weights += depth * features * size;
    all.rows += columns * rows * (depth * size + (Problem::gathers ? 4 : 0));
    all.results += rows * results * static_cast<std::int64_t>(sizeof(typename Problem::result));
    // Exponents of eight rows at a time, which have a sector for themselves.
    if (Problem::has_exponents && Problem::gathers) {
      all.results += divide_up(rows, 8) * 32 * device::exponents_of_row(static_cast<int>(results));
    }
    expert_of_tile.insert(expert_of_tile.end(), tiles, static_cast<int>(e));
  }
  for (std::size_t t = 0; t < expert_of_tile.size(); t += tile.cluster) {
    std::size_t const last = std::min(t + tile.cluster, expert_of_tile.size()) - 1;
    std::int64_t const brought = expert_of_tile[t] == expert_of_tile[last] ? 1 : tile.cluster;
    all.tile_weights += brought * columns * tile.columns * padded_depth * size;
    all.steps += tile.cluster * columns * padded_depth / 64;
  }
  return all;
}

bool check(char const* name, nlohmann::json const& launch, needed const& least) {
  auto const number = [&](char const* key) { return launch[key].get<std::int64_t>(); };
  auto const of = [&](char const* group, char const* key) { return launch[group][key].get<std::int64_t>(); };
  auto const ratio = [](std::int64_t a, std::int64_t b) { return static_cast<double>(a) / static_cast<double>(b); };
  std::int64_t const accesses = of("shared_load", "requests") + of("shared_store", "requests");
  std::int64_t const waits = of("shared_load", "extra_wavefronts") + of("shared_store", "extra_wavefronts");
  traffic const moved = moved_by(launch);
  double const conflicts = 100.0 * ratio(waits, accesses), loads = ratio(moved.loads, least.rows),
               stores = ratio(moved.stores, least.results);
  std::string wrong;
  if (number("wgmma_flop") != least.tile_flops) wrong += "  <- flops";
  if (number("tma_load_bytes") != least.tile_weights) wrong += "  <- bytes of weights";
  // Beside rows: where experts begin, arguments, and where rows stand, which neighbours read together.
  if (loads > 1.05) wrong += "  <- loads";
  // Exponents of half rows begin where a tile's rows do, which is in the middle of a sector.
  if (stores > (launch["kernel"].get<std::string>().find("half") != std::string::npos ? 1.02 : 1.0))
    wrong += "  <- stores";
  if (conflicts > 1.0) wrong += "  <- bank conflicts";
  if (number("local_bytes") > 0) wrong += "  <- local memory";
  std::printf("%-4s %6lld %10.3f %10.3f %10.3f %10.3f %8.3f %8.3f %7.2f %14.2f%s\n", name,
              static_cast<long long>(launch["grid"][0]), ratio(number("wgmma_flop"), least.flops),
              ratio(number("tma_load_bytes"), least.weights), ratio(number("tma_load_bytes"), least.tile_weights),
              ratio(number("tma_multicast_bytes"), 2 * number("tma_load_bytes")), loads, stores, conflicts,
              ratio(number("mbarrier_waits"), least.steps), wrong.c_str());
  return wrong.empty();
}

template <class Layer>
bool measure(counters& from, int rows) {
  constexpr hopper_tuning tuning = default_hopper_tuning::of<Layer>();
  constexpr shape dims = Layer::dims;
  counted_call const call = count<Layer>(from, rows);
  std::printf("%-4s %6s %10s %10s %10s %10s %8s %8s %7s %14s\n", "", "blocks", "flops", "weights", "/tiles'",
              "multicast", "rows", "results", "wait%", "barriers/step");
  bool right = true;
  int products = 0;
  for (nlohmann::json const& launch : call.launches) {
    std::string const kernel = launch["kernel"];
    if (kernel.find("grouped_products") == std::string::npos) continue;
    bool const in = kernel.find("product_in<") != std::string::npos;
    right = (in ? check("in", launch,
                        needs<device::in_product<Layer>>(tuning.in, dims.hidden, dims.intermediate, call.counts))
                : check("out", launch,
                        needs<device::out_product<Layer>>(tuning.out, dims.intermediate, dims.hidden, call.counts))) &&
            right;
    ++products;
  }
  if (products != 2) std::printf("%d products  <- instead of 2\n", products);
  return right && products == 2;
}

/// Whether calls whose rows cannot be moved by 16 bytes take the tiles that backend::cuda would take.
template <class Layer>
bool takes_tiles_of_cuda(counters& from) {
  bool right = true;
  for (auto [rows, tile] : {std::pair{8, "few_rows"}, std::pair{32, "some_rows"}, std::pair{100, "many_rows"}}) {
    int products = 0;
    for (nlohmann::json const& launch : count<Layer>(from, rows, 5).launches) {
      std::string const kernel = launch["kernel"];
      bool const is_product = kernel.find("cuda::product<") != std::string::npos;
      products += is_product && kernel.find(tile) != std::string::npos ? 1 : 0;
    }
    if (products != 2) std::printf("%d products with the tile %s  <- instead of 2\n", products, tile);
    right = right && products == 2;
  }
  return right;
}

template <class... Layers>
bool measure_all(std::tuple<Layers...> const*, counters& from) {
  bool right = true;
  for (int rows : rows_per_expert) ((right = measure<Layers>(from, rows) && right), ...);
  return right;
}

}  // namespace

int main() {
  std::printf(
      "flops, weights: over the least possible, of rows that exist and of each expert's weights once;\n"
      "/tiles': over what tiles that share nothing but within a cluster need; multicast: the share brought for two\n");
  if (!has_hopper()) return 0;
  counters from;
  bool const right = takes_tiles_of_cuda<std::tuple_element_t<0, measured_layers>>(from);
  return measure_all(static_cast<measured_layers*>(nullptr), from) && right ? 0 : 1;
}
