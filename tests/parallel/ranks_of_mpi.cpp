#include <switchyard/core/pack_masked.hpp>
#include <switchyard/expert/stored_as.hpp>
#include <switchyard/parallel.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/quantise.hpp>
#include <switchyard/transport/mpi.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

/// `mpirun -n <ranks> ranks_of_mpi`: layers on several ranks against the same layers on one device, bit for bit. Every rank makes the whole
/// problem and computes it alone, too.
namespace {

namespace sy = switchyard;
namespace parallel = sy::parallel;
using transport = sy::transport::mpi;
using across = sy::backend::expert_parallel<sy::backend::cpu, transport>;

int failures = 0, checks = 0;
void check(bool right, std::string const& what) {
  ++checks;
  if (right) return;
  ++failures;
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  std::printf("rank %d: wrong: %s\n", rank, what.c_str());
}

template <class T>
bool same(std::vector<T> const& a, T const* b) {
  return a.empty() || std::memcmp(a.data(), b, a.size() * sizeof(T)) == 0;
}

struct random_numbers {
  std::mt19937 engine;
  template <class T>
  std::vector<T> operator()(std::int64_t count, float scale) {
    std::uniform_real_distribution<float> one(-scale, scale);
    std::vector<T> result(static_cast<std::size_t>(count));
    for (T& x : result) x = T(one(engine));
    return result;
  }
};

/// The matrices of some experts, one after the other.
template <class T>
struct experts_matrix {
  std::vector<T> all;
  std::int64_t of_one = 0;

  std::vector<T> of(std::span<int const> experts) const {
    std::vector<T> result;
    for (int const e : experts) result.insert(result.end(), all.begin() + e * of_one, all.begin() + (e + 1) * of_one);
    return result;
  }
};

/// Weights of a layer's policies on any backend.
template <class Layer>
struct model {
  using element = typename Layer::element;
  static constexpr sy::shape dims = Layer::dims;
  static constexpr sy::expert_traits traits = Layer::expert_traits;
  static constexpr std::int64_t hidden = dims.hidden, inner = dims.intermediate, shared = traits.shared_intermediate;

  explicit model(random_numbers draw)
      : router(draw.operator()<float>(4 * (Layer::all_experts + 8) * hidden, 0.5f)),
        bias(draw.operator()<float>(2 * Layer::all_experts, 0.2f)),
        gate{draw.operator()<element>(dims.experts * inner * hidden, 0.3f), inner * hidden},
        up{draw.operator()<element>(dims.experts * inner * hidden, 0.3f), inner * hidden},
        down{draw.operator()<element>(dims.experts * inner * hidden, 0.3f), inner * hidden},
        gate_bias{draw.operator()<element>(dims.experts * inner, 0.3f), inner},
        up_bias{draw.operator()<element>(dims.experts * inner, 0.3f), inner},
        down_bias{draw.operator()<element>(dims.experts * hidden, 0.3f), hidden},
        common(draw.operator()<element>((3 * shared + 8) * hidden + inner * hidden, 0.3f)) {}

  model of(std::span<int const> experts) const {
    model result = *this;
    for (auto member :
         {&model::gate, &model::up, &model::down, &model::gate_bias, &model::up_bias, &model::down_bias}) {
      (result.*member).all = (this->*member).of(experts);
    }
    return result;
  }

  /// Everything of a call that is a weight.
  template <class On>
  void set(typename On::args& args) const {
    auto& w = args.weights;
    if constexpr (requires { w.router.stratum; }) {
      float const* at = router.data();
      for (auto& of : w.router.stratum) {
        of.weight = at;
        at += Layer::all_experts * hidden;
      }
    } else if constexpr (requires { *w.router.weight; }) {
      w.router.weight = router.data();
      if constexpr (Layer::router_traits.bias) w.router.bias = bias.data();
      if constexpr (Layer::router_traits.correction_bias) w.router.correction_bias = bias.data();
    }
    if constexpr (traits.gated) w.gate_proj = stored<On, true>(gate);
    w.up_proj = stored<On, true>(up);
    w.down_proj = stored<On, false>(down);
    if constexpr (traits.bias) {
      if constexpr (traits.gated) w.bias.gate = On::in_bias(gate_bias.all.data());
      w.bias.up = On::in_bias(up_bias.all.data());
      w.bias.down = On::out_bias(down_bias.all.data());
    }
    if constexpr (traits.shared_intermediate > 0) {
      if constexpr (traits.gated) w.shared.gate_proj = On::shared_in_proj(common.data());
      w.shared.up_proj = On::shared_in_proj(common.data() + shared * hidden);
      w.shared.down_proj = On::shared_out_proj(common.data() + 2 * shared * hidden);
      if constexpr (traits.gate == sy::shared_gate::sigmoid) w.shared.gate = common.data() + 3 * shared * hidden;
    }
    if constexpr (traits.nulls.vectors() > 0) w.constant_experts.vectors = common.data() + 3 * shared * hidden;
  }

  /// A projection as the layer has it stored.
  template <class On, bool In>
  auto stored(experts_matrix<element> const& from) const {
    constexpr int rows = In ? dims.intermediate : dims.hidden, columns = In ? dims.hidden : dims.intermediate;
    using operand = std::conditional_t<In, typename On::weights::in_operand, typename On::weights::out_operand>;
    int const experts = static_cast<int>(static_cast<std::int64_t>(from.all.size()) / from.of_one);
    if (experts == 0) return operand{};
    auto const keep = [&](auto made) {
      auto const kept = std::make_shared<decltype(made)>(std::move(made));
      alive.push_back(kept);
      return kept;
    };
    if constexpr (sy::has_sparse_change<operand>) {
      std::vector<float> change(from.all.begin(), from.all.end());
      for (std::size_t i = 0; i < change.size(); ++i) change[i] *= i % 4 == 1 ? 1.0f : 0.0f;
      auto const packed = keep(sy::pack_masked<element>(change.data(), nullptr, experts, rows, columns));
      if constexpr (In) return On::in_proj(common.data(), packed->view());
      if constexpr (!In) return On::out_proj(common.data(), packed->view());
    } else if constexpr (requires(operand w) { w.of; }) {
      std::vector<float> const dense(from.all.begin(), from.all.end());
      using format = decltype(operand{}.of);
      auto const made = keep(sy::quantised::quantise<format>(dense.data(), experts, rows, columns));
      return operand{made->view()};
    } else {
      if constexpr (In) return On::in_proj(from.all.data());
      if constexpr (!In) return On::out_proj(from.all.data());
    }
  }

  mutable std::vector<std::shared_ptr<void>> alive;
  std::vector<float> router, bias;
  experts_matrix<element> gate, up, down, gate_bias, up_bias, down_bias;
  std::vector<element> common;
};

/// Tokens of all ranks, and what else a call takes of them.
template <class Layer>
struct batch {
  using element = typename Layer::element;

  batch(random_numbers draw, std::int64_t count)
      : tokens(count),
        x(draw.operator()<element>(count * Layer::dims.hidden, 1.0f)),
        residual(draw.operator()<element>(count * Layer::dims.hidden, 1.0f)),
        weights(draw.operator()<float>(count * Layer::dims.top_k, 1.0f)),
        norm(draw.operator()<float>(16 * Layer::dims.hidden, 0.5f)) {
    for (std::int64_t i = 0; i < count * Layer::dims.top_k; ++i) {
      ids.push_back(static_cast<std::int32_t>(draw.engine() % (Layer::dims.experts + 1)) - 1);
      labels.push_back(static_cast<std::int32_t>(draw.engine() % Layer::dims.experts));
    }
    for (std::int64_t t = 0; t < count; ++t) active.push_back(draw.engine() % 9 != 0);
  }

  /// The call of the tokens from `first` on.
  template <class On>
  void set(typename On::args& args, std::int64_t first, std::int64_t count, bool padding) const {
    args.tokens = On::rows(x.data() + first * On::dims.hidden, count);
    if (padding) args.active = active.data() + first;
    if constexpr (requires { *args.inputs.labels; }) {
      args.inputs.labels = labels.data() + first * 2;
      args.inputs.choices = 2;
    }
    if constexpr (requires { args.inputs.seed.exists; }) args.inputs.seed = 5;
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(args.inputs)>, sy::precomputed_routes>) {
      args.inputs.experts = ids.data() + first * On::dims.top_k;
      args.inputs.weights = weights.data() + first * On::dims.top_k;
    }
    if constexpr (requires { args.inputs.norm.after; }) {
      args.inputs.residual = On::rows(residual.data() + first * On::dims.hidden, count);
      float const* at = norm.data();
      for (auto& n : args.inputs.norm.after) {
        n = {at, at + On::dims.hidden, 1e-5f};
        at += 2 * On::dims.hidden;
      }
    }
  }

  std::int64_t tokens;
  std::vector<element> x, residual;
  std::vector<float> weights, norm;
  std::vector<std::int32_t> ids, labels;
  std::vector<std::uint8_t> active;
};

template <class Layer>
struct outcome {
  static constexpr std::int64_t passes = Layer::router::schedule::passes;
  std::vector<typename Layer::element> y;
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::vector<std::uint8_t> dropped;
  std::vector<std::int64_t> counts, load;
  sy::auxiliary_values auxiliary;

  explicit outcome(std::int64_t tokens)
      : y(static_cast<std::size_t>(tokens * Layer::dims.hidden)),
        experts(static_cast<std::size_t>(passes * tokens * Layer::dims.top_k)),
        weights(experts.size()),
        dropped(experts.size()),
        counts(Layer::all_experts),
        load(Layer::all_experts) {}

  template <class On>
  void ask(typename On::args& args, std::int64_t tokens) {
    args.output = On::rows(y.data(), tokens);
    args.decisions = {experts.data(), weights.data(), dropped.data(), counts.data(), load.data()};
    if constexpr (requires { *args.auxiliary; }) args.auxiliary = &auxiliary;
  }
};

/// Where a rank's tokens begin: uneven, and some ranks may have none.
std::int64_t first_token(int rank, int ranks, std::int64_t tokens) {
  return rank >= ranks ? tokens : tokens * rank * rank / (ranks * ranks);
}

std::vector<std::pair<std::string, parallel::placement>> placements(int experts, int ranks) {
  std::vector<std::pair<std::string, parallel::placement>> result{
      {"blocks", parallel::placement::blocks(experts, ranks)}};
  std::vector<std::vector<int>> uneven(static_cast<std::size_t>(ranks)), copied = uneven;
  for (int i = 0; i < experts; ++i) {
    int const e = (i * 5 + 3) % experts, r = ranks == 1 ? 0 : (i * i + i / 3) % (ranks - 1);  // the last rank has none
    uneven[static_cast<std::size_t>(r)].push_back(e);
    for (int copy = 0; copy < std::min(ranks, 1 + e % 3); ++copy) {
      copied[static_cast<std::size_t>((e + copy) % ranks)].push_back(e);
    }
  }
  result.emplace_back("uneven", parallel::placement(experts, uneven));
  result.emplace_back("replicas", parallel::placement(experts, copied));
  return result;
}

struct settings {
  sy::cpu_context local{.threads = 1};
  int chunks = 0;
  parallel::sums sums = parallel::sums::in_order_of_choice;
  bool padding = false;
  std::int64_t tokens_per_group = 0;
  std::int64_t (*first)(int rank, int ranks, std::int64_t tokens) = &first_token;
};

/// A layer of these policies on all ranks, and on one device.
template <sy::shape Dims, class Router, class Capacity, class Expert, class Element>
void compare(transport& carrier, std::string const& title, std::int64_t tokens, settings const& how = {}) {
  using alone = sy::layer<Dims, Router, Capacity, Expert, sy::backend::cpu, Element>;
  using shared_out = sy::layer<Dims, Router, Capacity, Expert, across, Element>;
  static_assert(Dims.experts % 5 != 0);
  int const rank = carrier.rank(), ranks = carrier.ranks();
  model<alone> const whole(random_numbers{std::mt19937(7)});
  batch<alone> const all(random_numbers{std::mt19937(11)}, tokens);

  outcome<alone> expected(tokens);
  {
    typename alone::args args{};
    whole.template set<alone>(args);
    all.template set<alone>(args, 0, tokens, how.padding);
    args.tokens_per_group = how.tokens_per_group;
    expected.template ask<alone>(args, tokens);
    std::vector<std::byte> workspace(alone::workspace_bytes(tokens));
    args.workspace = workspace;
    alone::forward(args, how.local);
  }
  std::int64_t const first = how.first(rank, ranks, tokens), count = how.first(rank + 1, ranks, tokens) - first;
  for (auto const& [name, where] : placements(Dims.experts, ranks)) {
    parallel::group<transport> group(carrier, where, {.time_out = 120.0});
    model<alone> const part = whole.of(where.experts_of(rank));
    outcome<alone> got(count);
    typename shared_out::args args{};
    part.template set<shared_out>(args);
    all.template set<shared_out>(args, first, count, how.padding);
    args.tokens_per_group = how.tokens_per_group;
    got.template ask<shared_out>(args, count);
    std::vector<std::byte> workspace(shared_out::workspace_bytes(tokens), std::byte{0xff});
    args.workspace = workspace;
    std::string const what =
        title + ", " + std::to_string(tokens) + " tokens, " + name + ", " + std::to_string(how.chunks) + " chunks";
    try {
      shared_out::forward(args, {.local = how.local, .group = &group, .sums = how.sums, .chunks = how.chunks});
    } catch (sy::error const& e) {
      check(false, what + ": " + e.what());
      continue;
    }
    if (how.sums == parallel::sums::in_order_of_choice) {
      check(same(got.y, expected.y.data() + first * Dims.hidden), what + ": output");
    } else {
      double worst = 0.0;
      for (std::size_t i = 0; i < got.y.size(); ++i) {
        double const other = static_cast<float>(expected.y[static_cast<std::size_t>(first * Dims.hidden) + i]);
        worst = std::max(worst, std::abs(static_cast<double>(static_cast<float>(got.y[i])) - other));
      }
      check(worst < 1e-4, what + ": sums by rank, off by " + std::to_string(worst));
    }
    std::int64_t const pairs = count * Dims.top_k;
    for (std::int64_t p = 0; p < outcome<alone>::passes; ++p) {
      auto const at = static_cast<std::size_t>((p * tokens + first) * Dims.top_k),
                 own = static_cast<std::size_t>(p * pairs);
      auto const bytes = static_cast<std::size_t>(pairs);
      check(pairs == 0 || (std::memcmp(&got.experts[own], &expected.experts[at], bytes * 4) == 0 &&
                           std::memcmp(&got.weights[own], &expected.weights[at], bytes * 4) == 0 &&
                           std::memcmp(&got.dropped[own], &expected.dropped[at], bytes) == 0),
            what + ": decisions");
    }
    check(got.counts == expected.counts && got.load == expected.load, what + ": counts and load");
    float const* const a = &got.auxiliary.balance_first_choice;
    float const* const b = &expected.auxiliary.balance_first_choice;
    for (std::size_t i = 0; i < sizeof(sy::auxiliary_values) / sizeof(float); ++i) {
      check(std::abs(a[i] - b[i]) <= 2e-7f * std::abs(b[i]), what + ": auxiliary value " + std::to_string(i));
    }
  }
}

constexpr sy::shape dims{.hidden = 64, .intermediate = 48, .experts = 8, .top_k = 3};
constexpr sy::shape odd{.hidden = 40, .intermediate = 24, .experts = 7, .top_k = 2};
constexpr sy::shape blocks{.hidden = 64, .intermediate = 32, .experts = 8, .top_k = 3};
constexpr sy::shape one{.hidden = 64, .intermediate = 48, .experts = 8, .top_k = 1};

using gated = sy::expert::gated_mlp<sy::silu>;
using plain = sy::router::softmax_top_k;
using every = sy::capacity::dropless;

/// Each rank has slots and a queue of its own: what one device with its tokens alone would do.
void compare_capacity_of_each_rank(transport& carrier) {
  using capacity = sy::capacity::factor<3, 4>;
  using alone = sy::layer<dims, plain, capacity, gated>;
  using shared_out = sy::layer<dims, plain, capacity, gated, across>;
  std::int64_t const tokens = 20 + carrier.rank();
  model<alone> const whole(random_numbers{std::mt19937(7)});
  batch<alone> const own(random_numbers{std::mt19937(static_cast<unsigned>(carrier.rank()))}, tokens);
  parallel::group<transport> group(carrier, parallel::placement::blocks(dims.experts, carrier.ranks()));
  model<alone> const part = whole.of(group.placement().experts_of(carrier.rank()));
  outcome<alone> expected(tokens), got(tokens);
  std::vector<std::byte> workspace(alone::workspace_bytes(tokens)),
      shared(shared_out::workspace_bytes(40 * carrier.ranks()));
  alone::args args{};
  whole.set<alone>(args);
  own.set<alone>(args, 0, tokens, false);
  expected.ask<alone>(args, tokens);
  args.workspace = workspace;
  alone::forward(args, {.threads = 1, .least_panel_rows = 1 << 20});
  shared_out::args of_rank{};
  part.set<shared_out>(of_rank);
  own.set<shared_out>(of_rank, 0, tokens, false);
  got.ask<shared_out>(of_rank, tokens);
  of_rank.workspace = shared;
  shared_out::forward(of_rank, {.local = {.threads = 1, .least_panel_rows = 1 << 20},
                                .group = &group,
                                .capacity = parallel::capacity_scope::per_rank});
  check(got.dropped == expected.dropped && got.experts == expected.experts, "capacity per rank: drops");
  check(same(got.y, expected.y.data()), "capacity per rank: output");
  std::int64_t dropped = 0;
  for (auto const d : got.dropped) dropped += d;
  check(dropped > 0, "capacity per rank: none is dropped");
}

void compare_layers(transport& carrier) {
  for (std::int64_t const tokens : {0, 1, 5, 37, 200}) {
    compare<dims, plain, every, gated, float>(carrier, "plain", tokens);
    compare<dims, plain, every, gated, float>(carrier, "plain", tokens, {.chunks = 3, .padding = true});
  }
  compare<dims, plain, every, gated, float>(carrier, "by rank", 37, {.chunks = 2, .sums = parallel::sums::by_rank});

  // Experts and elements.
  using shared = sy::expert::with_shared<sy::expert::with_bias<gated>, 40, sy::shared_gate::sigmoid>;
  compare<odd, sy::router::on_input<sy::router::sigmoid_top_k>, every, shared, sy::bfloat16>(carrier, "shared", 150,
                                                                                             {.chunks = 2});
  using kept = sy::expert::top_k_units<sy::expert::mlp<sy::relu>, 5>;
  compare<odd, plain, every, kept, sy::half>(carrier, "kept units", 40, {.chunks = 4});
  using nulls = sy::expert::with_null_experts<gated, sy::null_experts{.constant = 1, .identity = 1, .zero = 1}>;
  compare<dims, plain, every, nulls, float>(carrier, "null experts", 50, {.chunks = 2});

  using bytes = sy::expert::stored_as<gated, sy::quantised::block_matrix<sy::quantised::q8_0>>;
  compare<blocks, plain, every, bytes, float>(carrier, "q8_0", 200, {.chunks = 2});
  compare<blocks, plain, every, bytes, float>(
      carrier, "q8_0 in int8", 200,
      {.local = {.threads = 1, .quantised = sy::quantised_products::tokens_in_int8}, .chunks = 2});
  for (std::int64_t const tokens : {5, 8, 9}) {  // up to 8 tokens meet centre and change apart
    compare<blocks, plain, every, sy::expert::residual<gated>, float>(carrier, "residuals", tokens, {.chunks = 2});
  }

  // Capacities, over all ranks.
  using sy::capacity::factor;
  using sy::capacity::on_drop;
  using sy::capacity::queued;
  using choice_order = on_drop<factor<3, 4>, sy::dropped::weighted_input>;
  using priority = sy::capacity::renormalised<queued<factor<3, 4>, sy::queue::priority>>;
  using token_order =
      on_drop<queued<sy::capacity::counting_padding<factor<1, 2>>, sy::queue::token_order>, sy::dropped::input>;
  for (std::int64_t const tokens : {3, 60}) {
    compare<dims, plain, choice_order, gated, float>(carrier, "choice order", tokens, {.chunks = 2, .padding = true});
    compare<dims, plain, choice_order, gated, float>(
        carrier, "groups", 4 * tokens * carrier.ranks(),
        {.padding = true, .tokens_per_group = 4, .first = [](int rank, int ranks, std::int64_t all) {
           return all / ranks * rank;
         }});
    compare<dims, plain, priority, gated, float>(carrier, "priority", tokens, {.padding = true});
    compare<dims, plain, token_order, gated, float>(carrier, "token order", tokens, {.padding = true});
  }

  // Routers.
  compare<odd, sy::router::precomputed, every, gated, float>(carrier, "precomputed", 30, {.padding = true});
  compare<odd, sy::router::with_expert_dropout<sy::router::sigma_moe, 1, 3>, every, gated, float>(carrier, "dropout",
                                                                                                  30);
  compare<odd, sy::router::s_base<>, factor<1>, gated, float>(carrier, "s_base", 150, {.padding = true});
  compare<odd, sy::router::s_base<>, every, gated, float>(carrier, "s_base", 3);
  for (std::int64_t const tokens : {2, 90}) {
    compare<odd, sy::router::adaptive_clustering<plain>, every, gated, float>(carrier, "clusters", tokens,
                                                                              {.padding = true});
    compare<one, sy::router::stratified<sy::router::switch_top1, 2, 2, 4>, factor<1>, gated, float>(
        carrier, "strata", tokens, {.chunks = 2, .padding = true});
  }
}

}  // namespace

int main(int count, char** arguments) {
  int provided = 0;
  MPI_Init_thread(&count, &arguments, MPI_THREAD_FUNNELED, &provided);
  {
    transport carrier(MPI_COMM_WORLD);
    compare_layers(carrier);
    compare_capacity_of_each_rank(carrier);
    int const own = failures;
    MPI_Allreduce(&own, &failures, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (carrier.rank() == 0) {
      std::printf("%d ranks: %d checks on each, %d failed\n", carrier.ranks(), checks, failures);
    }
  }
  MPI_Finalize();
  return failures == 0 ? 0 : 1;
}
