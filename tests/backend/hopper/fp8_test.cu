#include "backend/cuda/quantised.cuh"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

/// Tokens in fp8 on Hopper. The reference is in double and rounds what the kernels say that they round: rows as elements, then 128 values each to
/// E4M3 times a float. What is left are sums in float, and the elements of results.
namespace {

using namespace support;
namespace q = switchyard::quantised;

template <class Expert, class Format, class Element, int Hidden = 256, int Intermediate = 384>
using fp8_layer =
    sy::layer<sy::shape{Hidden, Intermediate, 4, 2}, sy::router::softmax_top_k, sy::capacity::dropless,
              sy::expert::stored_as<Expert, Format>, sy::backend::hopper_with<sy::tokens_in_fp8>, Element>;
using blocks_with_shared =
    fp8_layer<sy::expert::with_shared<sy::expert::gated_mlp<sy::silu>, 64>, q::fp8_block, sy::half>;
using whole_matrices =
    fp8_layer<sy::expert::with_bias<sy::expert::mlp<sy::relu>>, q::fp8_tensor<sy::bfloat16>, sy::bfloat16>;

/// The nearest E4M3, ties to even, of a magnitude of at most 448.
double nearest_e4m3(double value) {
  if (value == 0) return 0;
  double const unit = std::ldexp(1.0, std::max(std::ilogb(value), -6) - 3);
  return std::nearbyint(value / unit) * unit;
}

void round_groups(std::vector<double>& row) {
  for (std::size_t first = 0; first < row.size(); first += 128) {
    float largest = 0.0f;
    for (std::size_t i = first; i < first + 128; ++i)
      largest = std::max(largest, std::fabs(static_cast<float>(row[i])));
    float const scale = largest / 448.0f;
    for (std::size_t i = first; i < first + 128; ++i) {
      row[i] =
          largest == 0.0f ? 0.0 : nearest_e4m3(static_cast<double>(static_cast<float>(row[i]) / scale)) * double{scale};
    }
  }
}

/// A row between the products as it stands in memory: 32 half elements that go beyond their range are divided by a power of two.
template <class Element>
void round_elements(std::vector<double>& row) {
  for (std::size_t first = 0; first < row.size(); first += 32) {
    float largest = 0.0f, factor = 1.0f;
    for (std::size_t i = first; i < first + 32; ++i) largest = std::max(largest, std::fabs(static_cast<float>(row[i])));
    if (std::is_same_v<Element, sy::half> && largest >= 65520.0f) factor = std::ldexp(1.0f, std::ilogb(largest) - 14);
    for (std::size_t i = first; i < first + 32; ++i) {
      row[i] = static_cast<double>(static_cast<float>(Element(static_cast<float>(row[i]) / factor))) * double{factor};
    }
  }
}

template <class Layer, class Format>
class fp8_call {
 public:
  using element = typename Layer::element;
  static constexpr int hidden = Layer::dims.hidden, inner = Layer::dims.intermediate;
  static constexpr int shared_inner = Layer::expert_traits.shared_intermediate;
  static constexpr bool gated = Layer::expert_traits.gated, biased = Layer::expert_traits.bias;

  explicit fp8_call(int tokens, float largest = 1.0f)
      : tokens_(tokens),
        gate_(format(), inner, hidden, 1, false),
        up_(format(), inner, hidden, 2, false),
        down_(format(), hidden, inner, 3, false),
        numbers_(4),
        x_(normal(tokens * hidden, largest)),
        shared_(normal(shared_inner * hidden, 0.03f)),
        bias_(normal(4 * (inner + hidden), 0.1f)),
        on_x_(x_),
        on_shared_(shared_),
        on_bias_(bias_),
        y_(x_.size()),
        router_(routers()),
        experts_(std::size_t{2} * tokens),
        weights_(std::size_t{2} * tokens),
        workspace_(Layer::workspace_bytes(tokens)) {
    args.tokens = Layer::rows(on_x_.data(), tokens);
    args.weights.router.weight = router_.data();
    if constexpr (gated) args.weights.gate_proj = gate_.stored();
    args.weights.up_proj = up_.stored();
    args.weights.down_proj = down_.stored();
    if constexpr (shared_inner > 0) {
      auto const in = Layer::shared_in_proj(on_shared_.data());
      args.weights.shared = {in, in, Layer::shared_out_proj(on_shared_.data())};
    }
    if constexpr (biased) {
      args.weights.bias.up = Layer::in_bias(on_bias_.data());
      args.weights.bias.down = Layer::out_bias(on_bias_.data() + 4 * inner);
    }
    args.output = Layer::rows(y_.data(), tokens);
    args.workspace = {workspace_.data(), workspace_.size()};
    args.decisions.experts = experts_.data();
    args.decisions.weights = weights_.data();
  }

  std::vector<float> run() {
    forward_and_wait<Layer>(args);
    return floats(y_.copy_out());
  }
  void set(int token, int feature, float value) {
    x_[static_cast<std::size_t>(token * hidden + feature)] = element(value);
    on_x_.copy_in(x_);
  }

  /// Divides the second product's weights by 1024, so that results stay within half's range.
  void weaken_down() {
    std::vector<float> scales(4 * (hidden / 128) * (inner / 128));
    check_cuda(
        cudaMemcpy(scales.data(), down_.stored().scale_inv, scales.size() * sizeof(float), cudaMemcpyDeviceToHost));
    for (float& scale : scales) scale /= 1024.0f;
    weak_scales_ = device_array<float>(scales);
    args.weights.down_proj.of.scale_inv = weak_scales_.data();
    down_factor_ = 1.0 / 1024.0;
  }

  /// After `run`, which says where tokens go.
  std::vector<double> expected(bool in_fp8) const {
    auto const gate = doubles(gate_), up = doubles(up_), down = doubles(down_);
    auto const experts = experts_.copy_out();
    auto const combine_weights = weights_.copy_out();
    std::vector<double> result;
    for (int t = 0; t < tokens_; ++t) {
      std::vector<double> sum(hidden), x(hidden);
      auto const load = [&] {
        for (int i = 0; i < hidden; ++i) x[i] = static_cast<double>(static_cast<float>(x_[t * hidden + i]));
      };
      load();
      if (in_fp8) round_groups(x);
      for (int k = 0; k < Layer::dims.top_k; ++k) {
        int const e = experts[t * Layer::dims.top_k + k];
        auto const row = [&](std::vector<double> const& of, int rows, int columns, int i) {
          return of.data() + (std::size_t{1} * e * rows + i) * columns;
        };
        std::vector<double> h(inner);
        for (int i = 0; i < inner; ++i) {
          double const u = dot(x, row(up, inner, hidden, i)) + (biased ? bias(e * inner + i) : 0.0);
          double const g = gated ? dot(x, row(gate, inner, hidden, i)) : 0.0;
          h[i] = gated ? g / (1.0 + std::exp(-g)) * u : std::max(u, 0.0);
        }
        round_elements<element>(h);
        if (in_fp8) round_groups(h);
        for (int i = 0; i < hidden; ++i) {
          double const y =
              down_factor_ * dot(h, row(down, hidden, inner, i)) + (biased ? bias(4 * inner + e * hidden + i) : 0.0);
          sum[i] += static_cast<double>(combine_weights[t * Layer::dims.top_k + k]) * y;
        }
      }
      if constexpr (shared_inner > 0) {
        load();  // as elements
        auto const of_shared = floats(shared_);
        std::vector<double> const w(of_shared.begin(), of_shared.end());
        std::vector<double> h(shared_inner);
        for (int i = 0; i < shared_inner; ++i) {
          double const v = dot(x, w.data() + i * hidden);
          h[i] = v / (1.0 + std::exp(-v)) * v;
        }
        round_elements<element>(h);
        for (int i = 0; i < hidden; ++i) sum[i] += dot(h, w.data() + i * shared_inner);
      }
      result.insert(result.end(), sum.begin(), sum.end());
    }
    return result;
  }

  typename Layer::args args{};

 private:
  static constexpr int format() { return std::is_same_v<Format, q::fp8_block> ? fp8_block : fp8_tensor; }
  static std::vector<float> floats(std::vector<element> const& values) {
    std::vector<float> result;
    for (element value : values) result.push_back(static_cast<float>(value));
    return result;
  }
  std::vector<element> normal(int count, float size) {
    std::vector<element> made;
    for (int i = 0; i < count; ++i) made.emplace_back(static_cast<float>(numbers_.normal()) * size);
    return made;
  }
  std::vector<float> routers() {
    std::vector<float> made;
    for (int i = 0; i < 4 * hidden; ++i) made.push_back(static_cast<float>(numbers_.normal()));
    return made;
  }
  static std::vector<double> doubles(quantised_matrices<Format> const& of) {
    return of.template dense<double>().copy_out();
  }
  static double dot(std::vector<double> const& a, double const* b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  }
  double bias(int at) const { return static_cast<double>(static_cast<float>(bias_[at])); }

  int tokens_;
  quantised_matrices<Format> gate_, up_, down_;
  random_numbers numbers_;
  std::vector<element> x_, shared_, bias_;
  device_array<element> on_x_, on_shared_, on_bias_, y_;
  device_array<float> router_;
  device_array<std::int32_t> experts_;
  device_array<float> weights_, weak_scales_;
  double down_factor_ = 1.0;
  device_array<std::byte> workspace_;
};

}  // namespace

TEST_CASE("on Hopper tokens in fp8 are rounded as documented, and nothing else is", "[gpu][hopper][operand]") {
  if (!has_hopper()) return;
  {
    // Of the second one, rows between the products go beyond half's range.
    for (float largest : {1.0f, 100.0f}) {
      fp8_call<blocks_with_shared, q::fp8_block> call(150, largest);
      call.weaken_down();
      for (int i = 0; i < 128; ++i) call.set(7, i, 0.0f);
      auto const y = call.run();
      CHECK(relative_error(y, call.expected(true)) < 5e-4);
      double const error = relative_error(y, call.expected(false));
      CHECK(error > 0.02);
      CHECK(error < 0.05);
    }
  }
  fp8_call<whole_matrices, q::fp8_tensor<sy::bfloat16>> call(150);
  auto const y = call.run();
  CHECK(relative_error(y, call.expected(true)) < 3e-3);
}

TEST_CASE("on Hopper a token with a value that is no number spoils no other in fp8", "[gpu][hopper][operand]") {
  if (!has_hopper()) return;
  fp8_call<whole_matrices, q::fp8_tensor<sy::bfloat16>> call(70);
  auto const before = call.run();
  float const infinity = std::numeric_limits<float>::infinity();
  call.set(3, 200, infinity);
  call.set(40, 5, infinity - infinity);
  auto const y = call.run();
  constexpr int hidden = whole_matrices::dims.hidden;
  for (int t = 0; t < 70; ++t) {
    CAPTURE(t);
    bool const is_number = t != 3 && t != 40;
    int numbers = 0, same = 0;
    for (int i = t * hidden; i < (t + 1) * hidden; ++i) {
      numbers += y[i] - y[i] == 0.0f ? 1 : 0;
      same += y[i] == before[i] ? 1 : 0;
    }
    CHECK(numbers == (is_number ? hidden : 0));
    CHECK(same == (is_number ? hidden : 0));
  }
}

TEST_CASE("on Hopper few tokens in fp8, and codes at odd addresses, have exact products", "[gpu][hopper][operand]") {
  if (!has_hopper()) return;
  using backend = blocks_with_shared::backend;
  fp8_call<blocks_with_shared, q::fp8_block> few(10), many(70);
  few.weaken_down();
  CHECK(backend::products_of<blocks_with_shared>(few.args) == sy::product_kind::few_rows);
  auto const y = few.run();
  CHECK(relative_error(y, few.expected(false)) < 1e-3);
  CHECK(backend::products_of<blocks_with_shared>(many.args) == sy::product_kind::grouped);
  // Rounding before each product, and the shared expert by itself in each.
  CHECK(backend::launches<blocks_with_shared>(many.args) == backend::launches<blocks_with_shared>(few.args) + 4);
  ++many.args.weights.up_proj.of.weight;
  CHECK(backend::products_of<blocks_with_shared>(many.args) == sy::product_kind::strided);
}

TEST_CASE("products in fp8 read their operands once, and without waiting for banks", "[.structure]") {
  if (!has_hopper()) return;
  counters from;
  using large =
      fp8_layer<sy::expert::with_shared<sy::expert::gated_mlp<sy::silu>, 64>, q::fp8_block, sy::half, 1024, 1024>;
  constexpr int tokens = 200;
  constexpr sy::shape dims = large::dims;
  constexpr sy::hopper_tile tile = sy::tokens_in_fp8::of<large>().in;
  fp8_call<large, q::fp8_block> call(tokens);
  device_array<std::int64_t> const counts(dims.experts);
  call.args.decisions.counts = counts.data();
  static_cast<void>(call.run());
  std::int64_t tiles = 0, groups = 0;
  auto const rows = counts.copy_out();
  for (std::int64_t count : rows) {
    tiles += sy::divide_up(count, tile.rows);
    groups += sy::divide_up(count, 64);
  }
  int products = 0, roundings = 0;
  for (nlohmann::json const& launch : from.next()) {
    std::string const kernel = launch["kernel"];
    auto const number = [&](char const* key) { return launch[key].get<std::int64_t>(); };
    auto const of = [&](char const* group, char const* key) { return launch[group][key].get<std::int64_t>(); };
    INFO(kernel);
    if (kernel.find("round_rows") != std::string::npos) {
      ++roundings;
      // Tokens, or rows between the products; and each warp two numbers beside its 512 bytes.
      std::int64_t const values = roundings == 1 ? tokens * dims.hidden : 2 * tokens * dims.intermediate;
      CHECK(moved_by(launch).loads < 1.15 * 2.0 * static_cast<double>(values));
      CHECK(number("local_bytes") == 0);
    }
    if (kernel.find("of_rounded_rows") == std::string::npos) continue;
    ++products;
    bool const is_in = kernel.find("product_in<") != std::string::npos;
    std::int64_t const depth = is_in ? dims.hidden : dims.intermediate,
                       features = is_in ? 2 * dims.intermediate : dims.hidden, columns = features / tile.columns;
    CHECK(number("wgmma_flop") == 2 * groups * 64 * depth * features);
    // Weights once for each tile of rows, scales of weights once for a column of tiles; rows, and what a tile names of those that it lacks.
    std::int64_t const weights = tiles * features * depth,
                       least = weights + tiles * columns * (is_in ? 2 : 1) * depth / 128 * 4 +
                               columns * (2 * tokens + tiles) * (depth + depth / 128 * 4 + (is_in ? 4 : 0));
    CHECK(number("tma_load_bytes") == weights);
    CHECK(static_cast<double>(weights + moved_by(launch).loads) <= 1.02 * static_cast<double>(least));
    CHECK(of("shared_load", "extra_wavefronts") + of("shared_store", "extra_wavefronts") == 0);
    CHECK(number("local_bytes") == 0);
  }
  CHECK(products == 2);
  CHECK(roundings == 2);
}
