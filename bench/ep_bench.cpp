#include <switchyard/parallel.hpp>
#include <switchyard/transport/mpi.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <span>
#include <vector>

/// `mpirun -n <ranks> ep_bench [--smoke]`: a layer on several ranks, in both orders of its sums, against the same layer as one writes it with
/// MPI: routes, MPI_Alltoall of counts, MPI_Alltoallv of a row for every pair of a token and an expert, products, MPI_Alltoallv back, weighted
/// sums. Both have this library's routes and products. Prints the least and the median of calls that take turns, and bytes between ranks.
namespace {

namespace sy = switchyard;
namespace parallel = sy::parallel;

/// The transport, with the bytes that it sends counted.
struct counted : sy::transport::mpi {
  using mpi::mpi;
  std::int64_t bytes = 0;

  void start(int tag, std::span<sy::message const> sends, std::span<sy::message const> receives) {
    for (sy::message const& m : sends) bytes += m.bytes;
    mpi::start(tag, sends, receives);
  }
};

constexpr sy::shape dims{.hidden = 1024, .intermediate = 512, .experts = 64, .top_k = 8};
constexpr sy::shape of_pairs{.hidden = 1024, .intermediate = 512, .experts = 64, .top_k = 1};
using element = float;
using expert = sy::expert::gated_mlp<sy::silu>;
template <class Backend>
using layer = sy::layer<dims, sy::router::softmax_top_k, sy::capacity::dropless, expert, Backend, element>;
using alone = layer<sy::backend::cpu>;
using across = layer<sy::backend::expert_parallel<sy::backend::cpu, counted>>;
using pairs_layer =
    sy::layer<of_pairs, sy::router::precomputed, sy::capacity::dropless, expert, sy::backend::cpu, element>;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct problem {
  int rank, ranks;
  std::int64_t tokens;
  std::vector<float> router;
  std::vector<element> gate, up, down, x, y;
  parallel::placement where;

  template <class Layer>
  void set_weights(typename Layer::args& args) {
    args.weights.gate_proj = Layer::in_proj(gate.data());
    args.weights.up_proj = Layer::in_proj(up.data());
    args.weights.down_proj = Layer::out_proj(down.data());
  }
};

/// The layer by a user of MPI.
class plain {
 public:
  explicit plain(problem& of) : p_(of), route_space_(alone::workspace_bytes(of.tokens)) {}

  std::int64_t bytes = 0;

  void forward() {
    constexpr int k = dims.top_k, h = dims.hidden;
    alone::args args{};
    args.tokens = alone::rows(static_cast<element const*>(p_.x.data()), p_.tokens);
    args.output = alone::rows(p_.y.data(), p_.tokens);
    args.workspace = route_space_;
    args.weights.router.weight = p_.router.data();
    p_.set_weights<alone>(args);
    sy::backend::cpu::route(args, {.threads = 1});
    sy::cpu_routes const routes = sy::backend::cpu::routes_of(args);

    std::vector<int> send(static_cast<std::size_t>(p_.ranks)), receive(send.size());
    std::int64_t const pairs = p_.tokens * k;
    auto const rank_of = [&](std::int64_t pair) {
      return static_cast<std::size_t>(p_.where.ranks_of(routes.experts[pair])[0]);
    };
    for (std::int64_t pair = 0; pair < pairs; ++pair) ++send[rank_of(pair)];
    MPI_Alltoall(send.data(), 1, MPI_INT, receive.data(), 1, MPI_INT, MPI_COMM_WORLD);
    std::vector<int> send_at(send.size() + 1), receive_at(send.size() + 1);
    for (std::size_t r = 0; r < send.size(); ++r) {
      send_at[r + 1] = send_at[r] + send[r];
      receive_at[r + 1] = receive_at[r] + receive[r];
      if (static_cast<int>(r) != p_.rank) bytes += send[r] * (4 + 4 * h) + receive[r] * 4 * h + 4;
    }
    std::vector<element> rows(static_cast<std::size_t>(pairs * h)), back(rows.size());
    std::vector<std::int32_t> ids(static_cast<std::size_t>(pairs)), place(ids.size());
    std::vector<int> next(send_at);
    for (std::int64_t pair = 0; pair < pairs; ++pair) {
      int const at = next[rank_of(pair)]++;
      place[static_cast<std::size_t>(pair)] = at;
      ids[static_cast<std::size_t>(at)] = p_.where.local(static_cast<int>(rank_of(pair)), routes.experts[pair]);
      std::copy_n(p_.x.data() + pair / k * h, h, rows.data() + std::int64_t{at} * h);
    }
    std::int64_t const here = receive_at.back();
    std::vector<element> received(static_cast<std::size_t>(here * h)), results(received.size());
    std::vector<std::int32_t> received_ids(static_cast<std::size_t>(here));
    std::vector<float> const ones(received_ids.size(), 1.0f);
    MPI_Alltoallv(ids.data(), send.data(), send_at.data(), MPI_INT32_T, received_ids.data(), receive.data(),
                  receive_at.data(), MPI_INT32_T, MPI_COMM_WORLD);
    MPI_Datatype row;
    MPI_Type_contiguous(h, MPI_FLOAT, &row);
    MPI_Type_commit(&row);
    MPI_Alltoallv(rows.data(), send.data(), send_at.data(), row, received.data(), receive.data(), receive_at.data(),
                  row, MPI_COMM_WORLD);
    pairs_layer::args of_rows{};
    of_rows.tokens = pairs_layer::rows(static_cast<element const*>(received.data()), here);
    of_rows.output = pairs_layer::rows(results.data(), here);
    of_rows.inputs = {received_ids.data(), ones.data()};
    p_.set_weights<pairs_layer>(of_rows);
    if (space_.size() < pairs_layer::workspace_bytes(here)) space_.resize(pairs_layer::workspace_bytes(here));
    of_rows.workspace = space_;
    pairs_layer::forward(of_rows, {.threads = 1});
    MPI_Alltoallv(results.data(), receive.data(), receive_at.data(), row, back.data(), send.data(), send_at.data(), row,
                  MPI_COMM_WORLD);
    MPI_Type_free(&row);
    for (std::int64_t t = 0; t < p_.tokens; ++t) {
      element* const y = p_.y.data() + t * h;
      std::fill_n(y, h, 0.0f);
      for (int c = 0; c < k; ++c) {
        std::int64_t const pair = t * k + c;
        element const* const from = back.data() + std::int64_t{place[static_cast<std::size_t>(pair)]} * h;
        for (int i = 0; i < h; ++i) y[i] += routes.weights[pair] * from[i];
      }
    }
  }

 private:
  problem& p_;
  std::vector<std::byte> route_space_, space_;
};

/// What a rank sends at least in a call that sums by rank: rows to other ranks, and rows back to them.
std::int64_t least_bytes(parallel::group<counted>& group) {
  std::int64_t rows = 0;
  for (int r = 0; r < group.ranks(); ++r) {
    if (r == group.rank()) continue;
    rows += group.sent_counts(r)[0] + group.received_counts(r)[parallel::most_chunks];
  }
  return rows * dims.hidden * 4;
}

std::vector<float> drawn(std::mt19937& random, std::int64_t count, float scale) {
  std::uniform_real_distribution<float> one(-scale, scale);
  std::vector<float> result(static_cast<std::size_t>(count));
  for (float& x : result) x = one(random);
  return result;
}

/// Milliseconds of each of some ways, in turns: of the slowest rank.
template <class Way>
void measure(int turns, int ways, Way const& way, std::vector<std::vector<double>>& to) {
  to.assign(static_cast<std::size_t>(ways), {});
  for (int turn = -1; turn < turns; ++turn) {
    for (int i = 0; i < ways; ++i) {
      MPI_Barrier(MPI_COMM_WORLD);
      double const begin = now();
      way(i);
      double took = (now() - begin) * 1e3, slowest = 0.0;
      MPI_Allreduce(&took, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
      if (turn >= 0) to[static_cast<std::size_t>(i)].push_back(slowest);
    }
  }
  for (auto& of : to) std::sort(of.begin(), of.end());
}

}  // namespace

int main(int count, char** arguments) {
  int provided = 0;
  MPI_Init_thread(&count, &arguments, MPI_THREAD_FUNNELED, &provided);
  bool const smoke = count > 1 && std::strcmp(arguments[1], "--smoke") == 0;
  int const turns = smoke ? 1 : count > 1 ? std::atoi(arguments[1]) : 9;
  {
    counted carrier(MPI_COMM_WORLD);
    int const rank = carrier.rank(), ranks = carrier.ranks();
    parallel::group<counted> group(carrier, parallel::placement::blocks(dims.experts, ranks));
    if (rank == 0) {
      std::printf("%d ranks, one thread each: hidden %d, intermediate %d, %d experts, top %d, float\n", ranks,
                  dims.hidden, dims.intermediate, dims.experts, dims.top_k);
      std::printf("%8s | %19s | %19s | %19s | %19s | %9s | %6s %6s %6s %6s\n", "tokens", "Alltoallv, ms",
                  "in order, 1 chunk", "in order, 2 chunks", "by rank, 1 chunk", "plain/our", "MB", "order", "rank",
                  "/least");
    }
    auto const here = static_cast<std::int64_t>(group.placement().experts_of(rank).size());
    constexpr std::int64_t matrix = std::int64_t{dims.hidden} * dims.intermediate;
    std::mt19937 common(1), own(static_cast<unsigned>(rank + 2));
    problem p{rank,
              ranks,
              0,
              drawn(common, std::int64_t{dims.experts} * dims.hidden, 1.0f),
              drawn(own, here * matrix, 0.05f),
              drawn(own, here * matrix, 0.05f),
              drawn(own, here * matrix, 0.05f),
              {},
              {},
              group.placement()};
    // The plain way calls a layer that believes to have all experts.
    for (auto* weights : {&p.gate, &p.up, &p.down}) weights->resize(static_cast<std::size_t>(dims.experts * matrix));
    for (std::int64_t const tokens : {1, 8, 64, 256}) {
      if (smoke && tokens > 8) break;
      p.tokens = tokens;
      p.x = drawn(own, tokens * dims.hidden, 1.0f);
      p.y.assign(p.x.size(), 0.0f);
      std::vector<std::byte> space(across::workspace_bytes(tokens * ranks));
      plain user(p);
      std::int64_t sent[4] = {}, least = 0;
      std::vector<float> outputs[4];
      auto const way = [&](int i) {
        if (i == 0) {
          user.bytes = 0;
          user.forward();
          sent[0] = user.bytes;
        } else {
          across::args args{};
          args.tokens = across::rows(static_cast<element const*>(p.x.data()), tokens);
          args.output = across::rows(p.y.data(), tokens);
          args.workspace = space;
          args.weights.router.weight = p.router.data();
          p.set_weights<across>(args);
          carrier.bytes = 0;
          across::forward(args, {.local = {.threads = 1},
                                 .group = &group,
                                 .sums = i == 3 ? parallel::sums::by_rank : parallel::sums::in_order_of_choice,
                                 .chunks = i == 2 ? 2 : 1});
          sent[i] = carrier.bytes;
          if (i == 3) least = least_bytes(group);
        }
        outputs[i] = p.y;
      };
      std::vector<std::vector<double>> times;
      measure(turns, 4, way, times);
      double all_bytes[4], all_least = 0.0;
      for (int i = 0; i < 4; ++i) {
        auto const bytes = static_cast<double>(sent[i]);
        MPI_Allreduce(&bytes, &all_bytes[i], 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        for (std::size_t at = 0; at < p.y.size(); ++at) {
          if (std::abs(outputs[i][at] - outputs[0][at]) > 1e-4f) std::abort();
        }
      }
      auto const own_least = static_cast<double>(least);
      MPI_Allreduce(&own_least, &all_least, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
      if (rank != 0) continue;
      std::printf("%8lld |", static_cast<long long>(tokens));
      for (auto const& of : times) std::printf(" %8.3f (%8.3f) |", of.front(), of[of.size() / 2]);
      std::printf(" %4.2f (%4.2f) | %6.2f %6.2f %6.2f %6.3f\n", times[0].front() / times[1].front(),
                  times[0][times[0].size() / 2] / times[1][times[1].size() / 2], all_bytes[0] / 1e6, all_bytes[1] / 1e6,
                  all_bytes[3] / 1e6, all_least > 0.0 ? all_bytes[3] / all_least : 1.0);
    }
  }
  MPI_Finalize();
}
