#include <switchyard/parallel.cuh>
#include <switchyard/transport/nccl.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/device.cuh"
#include "catch.hpp"
#include "support/random_numbers.hpp"
#include "transport/nccl/nccl_ranks.hpp"

/// Layers on several devices against the same layers on one, bit for bit. Every rank makes the whole problem.
namespace {

using namespace support;
namespace parallel = sy::parallel;
using sy::transport::nccl;
using sy::transport::notice_board;
using group_type = parallel::group<nccl>;

constexpr int most_ranks = 4;

template <class T>
std::vector<T> numbers(std::int64_t count, float scale, unsigned seed) {
  random_numbers draw(seed);
  std::vector<T> result(static_cast<std::size_t>(count));
  for (T& x : result) x = T(scale * static_cast<float>(2.0 * draw.uniform() - 1.0));
  return result;
}

struct settings {
  std::int64_t tokens = 0;
  int chunks = 0;
  parallel::sums sums = parallel::sums::in_order_of_choice;
  parallel::capacity_scope capacity = parallel::capacity_scope::all_ranks;
  bool padding = false;
};

/// Everything of a call with all tokens, on the host.
template <class Layer>
struct problem {
  using element = typename Layer::element;
  static constexpr sy::shape dims = Layer::dims;
  static constexpr sy::expert_traits traits = Layer::expert_traits;
  static constexpr std::int64_t of_matrix = std::int64_t{dims.hidden} * dims.intermediate;

  std::int64_t tokens;
  std::vector<element> x, gate, up, down, up_bias, down_bias, common;
  std::vector<float> router;
  std::vector<std::uint8_t> active;

  explicit problem(std::int64_t count)
      : tokens(count),
        x(numbers<element>(count * dims.hidden, 1.0f, 1)),
        gate(numbers<element>(dims.experts * of_matrix, 0.3f, 2)),
        up(numbers<element>(dims.experts * of_matrix, 0.3f, 3)),
        down(numbers<element>(dims.experts * of_matrix, 0.3f, 4)),
        up_bias(numbers<element>(dims.experts * dims.intermediate, 0.3f, 5)),
        down_bias(numbers<element>(dims.experts * dims.hidden, 0.3f, 6)),
        common(numbers<element>((3 * traits.shared_intermediate + 4) * dims.hidden, 0.3f, 7)),
        router(numbers<float>(Layer::all_experts * dims.hidden, 0.5f, 8)) {
    for (std::int64_t t = 0; t < count; ++t) active.push_back(t % 7 != 3);
  }
};

/// One rank's part of it on the device: its tokens, and the experts that are named.
template <class On>
struct device_part {
  using element = typename On::element;
  static constexpr sy::shape dims = On::dims;
  static constexpr sy::expert_traits traits = On::expert_traits;

  std::int64_t tokens;
  device_array<element> x, gate, up, down, up_bias, down_bias, common, y;
  device_array<float> router, weights;
  device_array<std::uint8_t> active, dropped;
  device_array<std::int32_t> experts;
  device_array<std::int64_t> counts, load;
  device_array<std::byte> workspace;

  template <class Problem>
  device_part(Problem const& all, std::int64_t first, std::int64_t count, std::vector<int> const& of,
              std::size_t workspace_bytes)
      : tokens(count),
        x(slice(all.x, first * dims.hidden, count * dims.hidden)),
        gate(chosen(all.gate, of)),
        up(chosen(all.up, of)),
        down(chosen(all.down, of)),
        up_bias(chosen(all.up_bias, of)),
        down_bias(chosen(all.down_bias, of)),
        common(all.common),
        y(static_cast<std::size_t>(count * dims.hidden)),
        router(all.router),
        weights(static_cast<std::size_t>(count * dims.top_k)),
        active(slice(all.active, first, count)),
        dropped(weights.size()),
        experts(weights.size()),
        counts(static_cast<std::size_t>(On::all_experts)),
        load(counts.size()),
        workspace(workspace_bytes) {}

  template <class T>
  static std::vector<T> slice(std::vector<T> const& of, std::int64_t first, std::int64_t count) {
    return {of.begin() + first, of.begin() + first + count};
  }
  template <class T>
  static std::vector<T> chosen(std::vector<T> const& all, std::vector<int> const& of) {
    auto const each = static_cast<std::int64_t>(all.size()) / dims.experts;
    std::vector<T> result;
    for (int const e : of) result.insert(result.end(), all.begin() + e * each, all.begin() + (e + 1) * each);
    return result;
  }

  typename On::args args(settings const& how) const {
    typename On::args a{};
    a.tokens = On::rows(static_cast<element const*>(x.data()), tokens);
    a.output = On::rows(y.data(), tokens);
    if (how.padding) a.active = active.data();
    a.weights.router.weight = router.data();
    if constexpr (traits.gated) a.weights.gate_proj = On::in_proj(gate.data());
    a.weights.up_proj = On::in_proj(up.data());
    a.weights.down_proj = On::out_proj(down.data());
    if constexpr (traits.bias) {
      if constexpr (traits.gated) a.weights.bias.gate = On::in_bias(up_bias.data());
      a.weights.bias.up = On::in_bias(up_bias.data());
      a.weights.bias.down = On::out_bias(down_bias.data());
    }
    if constexpr (traits.shared_intermediate > 0) {
      constexpr std::int64_t matrix = std::int64_t{traits.shared_intermediate} * dims.hidden;
      if constexpr (traits.gated) a.weights.shared.gate_proj = On::shared_in_proj(common.data());
      a.weights.shared.up_proj = On::shared_in_proj(common.data() + matrix);
      a.weights.shared.down_proj = On::shared_out_proj(common.data() + 2 * matrix);
      if constexpr (traits.gate == sy::shared_gate::sigmoid) a.weights.shared.gate = common.data() + 3 * matrix;
    }
    if constexpr (traits.nulls.vectors() > 0) a.weights.constant_experts.vectors = common.data();
    a.decisions = {experts.data(), weights.data(), dropped.data(), counts.data(), load.data()};
    a.workspace = {workspace.data(), workspace.size()};
    return a;
  }
};

/// Where a rank's tokens begin: uneven, and some ranks may have none.
std::int64_t first_token(int rank, int ranks, std::int64_t tokens) {
  return rank >= ranks ? tokens : tokens * rank * rank / (ranks * ranks);
}

std::vector<std::pair<std::string, parallel::placement>> placements(int experts, int ranks) {
  std::vector<std::vector<int>> uneven(static_cast<std::size_t>(ranks)), copied = uneven;
  for (int i = 0; i < experts; ++i) {
    int const e = (i * 5 + 3) % experts, r = ranks == 1 ? 0 : (i * i + i / 3) % (ranks - 1);  // the last rank has none
    uneven[static_cast<std::size_t>(r)].push_back(e);
    for (int copy = 0; copy < std::min(ranks, 1 + e % 3); ++copy) {
      copied[static_cast<std::size_t>((e + copy) % ranks)].push_back(e);
    }
  }
  return {{"uneven", parallel::placement(experts, uneven)}, {"replicas", parallel::placement(experts, copied)}};
}

template <class T>
void expect_same(device_array<T> const& got, std::vector<T> const& expected, std::int64_t first,
                 std::string const& what) {
  std::vector<T> const values = got.copy_out();
  expect(values.empty() || std::memcmp(values.data(), expected.data() + first, values.size() * sizeof(T)) == 0, what);
}

/// What one device makes of a problem.
template <class Layer>
struct outcome {
  std::vector<typename Layer::element> y;
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::vector<std::uint8_t> dropped;
  std::vector<std::int64_t> counts, load;

  /// Of the tokens from `first` on, on the device that is current.
  outcome(problem<Layer> const& all, std::int64_t first, std::int64_t count, settings const& how) {
    std::vector<int> every;
    for (int e = 0; e < Layer::dims.experts; ++e) every.push_back(e);
    device_part<Layer> const whole(all, first, count, every, Layer::workspace_bytes(count));
    forward_and_wait<Layer>(whole.args(how));
    y = whole.y.copy_out();
    experts = whole.experts.copy_out();
    weights = whole.weights.copy_out();
    dropped = whole.dropped.copy_out();
    counts = whole.counts.copy_out();
    load = whole.load.copy_out();
  }
};

/// A layer of these policies on 1 to 4 ranks, and on one device.
template <sy::shape Dims, class Router, class Capacity, class Expert, class Local, class Element>
std::string compare(settings const& how) {
  using alone = sy::layer<Dims, Router, Capacity, Expert, Local, Element>;
  using shared_out = sy::layer<Dims, Router, Capacity, Expert, sy::backend::expert_parallel<Local, nccl>, Element>;
  static_assert(Dims.experts % 5 != 0);
  problem<alone> const all(how.tokens);
  expect_cuda(cudaSetDevice(0));
  outcome<alone> const whole(all, 0, how.tokens, how);
  std::string wrong;
  for (int ranks = 1; ranks <= most_ranks; ++ranks) {
    board_memory memory(ranks);
    wrong += on_threads(ranks, [&](ncclUniqueId const& id, int rank) {
      communicator const of_all(id, rank, ranks);
      notice_board board(memory.data(), rank, ranks);
      nccl transport(of_all, board);
      std::int64_t const first = first_token(rank, ranks, how.tokens),
                         count = first_token(rank + 1, ranks, how.tokens) - first;
      // With queues of its own a rank drops what it would drop alone.
      bool const queues_alone = how.capacity == parallel::capacity_scope::per_rank;
      outcome<alone> const mine = queues_alone ? outcome<alone>(all, first, count, how) : whole;
      std::int64_t const at = queues_alone ? 0 : first;
      std::vector<std::byte, nccl::allocator<std::byte>> lists(
          shared_out::backend::template host_workspace_bytes<shared_out>(how.tokens));
      stream own;
      for (auto const& [name, where] : placements(Dims.experts, ranks)) {
        group_type group(transport, where, {.time_out = 120.0});
        std::span<int const> const here = where.experts_of(rank);
        device_part<shared_out> const part(all, first, count, {here.begin(), here.end()},
                                           shared_out::workspace_bytes(how.tokens));
        shared_out::forward(part.args(how), {.local = {.stream = own},
                                             .group = &group,
                                             .sums = how.sums,
                                             .capacity = how.capacity,
                                             .chunks = how.chunks,
                                             .host_workspace = lists});
        own.wait();
        std::string const what = std::to_string(ranks) + " ranks, " + std::to_string(how.tokens) + " tokens, " + name;
        if (how.sums == parallel::sums::in_order_of_choice) {
          expect_same(part.y, mine.y, at * Dims.hidden, what + ": output");
        } else {  // roundings differ
          auto const got = part.y.copy_out();
          for (std::size_t i = 0; i < got.size(); ++i) {
            float const expected = static_cast<float>(mine.y[static_cast<std::size_t>(at * Dims.hidden) + i]);
            expect(std::abs(static_cast<float>(got[i]) - expected) < 0.05f, what + ": output by rank");
          }
        }
        expect_same(part.experts, mine.experts, at * Dims.top_k, what + ": experts");
        expect_same(part.weights, mine.weights, at * Dims.top_k, what + ": weights");
        expect_same(part.dropped, mine.dropped, at * Dims.top_k, what + ": dropped");
        if (!queues_alone) expect_same(part.counts, mine.counts, 0, what + ": counts");
        expect_same(part.load, whole.load, 0, what + ": load");
      }
    });
  }
  return wrong;
}

constexpr sy::shape dims{.hidden = 64, .intermediate = 48, .experts = 8, .top_k = 3};
constexpr sy::shape odd{.hidden = 44, .intermediate = 24, .experts = 7, .top_k = 2};
using gated = sy::expert::gated_mlp<sy::silu>;
using plain = sy::router::softmax_top_k;
using every = sy::capacity::dropless;
using sy::backend::cuda;
using sy::capacity::factor;

TEST_CASE("a layer on several GPUs has the bits of one", "[nccl]") {
  if (!have_devices(most_ranks)) return;
  for (settings const& how : {settings{.tokens = 0},
                              {.tokens = 1},
                              {.tokens = 37, .chunks = 3, .padding = true},
                              {.tokens = 37, .chunks = 2, .sums = parallel::sums::by_rank}}) {
    CHECK(compare<dims, plain, every, gated, cuda, sy::bfloat16>(how) == "");
  }
}

TEST_CASE("the same pairs are dropped on several GPUs as on one, in every order of the queue", "[nccl]") {
  if (!have_devices(most_ranks)) return;
  settings const how{.tokens = 60, .chunks = 4, .padding = true};
  using choice_order = sy::capacity::on_drop<factor<3, 4>, sy::dropped::weighted_input>;
  using shared = sy::expert::with_shared<sy::expert::with_bias<gated>, 40, sy::shared_gate::sigmoid>;
  using on_input = sy::router::on_input<sy::router::sigmoid_top_k>;
  CHECK(compare<odd, on_input, choice_order, shared, cuda, sy::half>(how) == "");
  using priority = sy::capacity::renormalised<sy::capacity::queued<factor<3, 4>, sy::queue::priority>>;
  constexpr sy::null_experts null_ones{.constant = 1, .identity = 1, .zero = 1};
  using nulls = sy::expert::with_null_experts<sy::expert::top_k_units<gated, 5>, null_ones>;
  settings each = how;
  CHECK(compare<dims, plain, priority, nulls, cuda, float>(each) == "");
  each.capacity = parallel::capacity_scope::per_rank;
  CHECK(compare<dims, plain, priority, nulls, cuda, float>(each) == "");
}

TEST_CASE("a layer on several Hopper GPUs has the bits of one, with its own products", "[nccl]") {
  if (!have_devices(most_ranks) || !has_hopper()) return;
  // One device has more than 8 rows for each expert then, and takes Hopper's products; each of several has fewer.
  constexpr sy::shape deep{.hidden = 512, .intermediate = 256, .experts = 8, .top_k = 3};
  using shared = sy::expert::with_shared<gated, 40>;
  CHECK(compare<deep, plain, every, shared, sy::backend::hopper, sy::bfloat16>({.tokens = 24, .chunks = 2}) == "");
}

TEST_CASE("what is wrong on one GPU is an error on all, and the group goes on", "[nccl]") {
  if (!have_devices(most_ranks)) return;
  using layer = sy::layer<dims, plain, every, gated, sy::backend::expert_parallel<cuda, nccl>, sy::bfloat16>;
  constexpr std::int64_t tokens = 20;
  constexpr int ranks = 3;
  problem<layer> const all(tokens * ranks);
  std::string const wrong = on_threads(ranks, [&](ncclUniqueId const& id, int rank) {
    communicator const of_all(id, rank, ranks);
    nccl transport(of_all);
    group_type group(transport, parallel::placement::blocks(dims.experts, ranks), {.time_out = 120.0});
    std::vector<std::byte, nccl::allocator<std::byte>> lists(
        layer::backend::host_workspace_bytes<layer>(tokens * ranks));
    std::span<int const> const here = group.placement().experts_of(rank);
    device_part<layer> const part(all, rank * tokens, tokens, {here.begin(), here.end()},
                                  layer::workspace_bytes(tokens * ranks));
    stream own;
    layer::context const right{.local = {.stream = own}, .group = &group, .host_workspace = lists};
    auto const says = [&](layer::args const& args, layer::context const& context, std::string const& sentence) {
      std::string said = "nothing";
      try {
        layer::forward(args, context);
      } catch (sy::error const& e) {
        said = e.what();
      }
      expect(said.find(sentence) != std::string::npos, "'" + said + "' has '" + sentence + "'");
    };
    for (int bad = 0; bad < ranks; ++bad) {
      // In its own arguments, before it has told anything.
      layer::args args = part.args({});
      if (rank == bad) args.weights.down_proj.data = nullptr;
      says(args, right, rank == bad ? "down_proj" : "rank " + std::to_string(bad) + " has failed");
      // Memory for the rank's tokens, but not for the rows of its experts.
      args = part.args({});
      if (rank == bad) {
        args.workspace =
            args.workspace.first(layer::backend::workspace_bytes<layer>(parallel::sizes{.tokens = tokens}));
      }
      says(args, right, "workspace of rank " + std::to_string(bad));
      layer::context other = right;
      if (rank == bad) other.host_workspace = other.host_workspace.first(1000);
      says(part.args({}), other,
           rank == bad ? "context.host_workspace" : "rank " + std::to_string(bad) + " has failed");
      other = right;
      if (rank == bad) other.chunks = 2;
      says(part.args({}), other, "context.chunks of rank");
    }
    // What no rank may ask for.
    layer::args asks = part.args({});
    device_array<sy::auxiliary_values> const auxiliary(1);
    asks.auxiliary = auxiliary.data();
    says(asks, right, "auxiliary");
    expect_cuda(cudaStreamBeginCapture(own, cudaStreamCaptureModeRelaxed));
    says(part.args({}), right, "a stream that is not captured");
    cudaGraph_t graph = nullptr;
    expect_cuda(cudaStreamEndCapture(own, &graph));
    expect_cuda(cudaGraphDestroy(graph));

    layer::forward(part.args({}), right);
    own.wait();
    expect(!group.broken(), "the group can be used again");
  });
  CHECK(wrong == "");
}

}  // namespace
