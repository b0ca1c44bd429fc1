#include <switchyard/parallel.hpp>
#include <switchyard/transport/mpi.hpp>

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

/// `mpirun -n <ranks> faults_of_mpi`: what goes wrong on one rank is an error with its number on all others, within the time-out, and an
/// output is written whole or not at all. `faults_of_mpi dies`, by `mpirun --enable-recovery`: the last rank kills itself in a call.
namespace {

namespace sy = switchyard;
namespace parallel = sy::parallel;
using transport = sy::transport::mpi;
using across = sy::backend::expert_parallel<sy::backend::cpu, transport>;
template <int Hidden>
using layer = sy::layer<sy::shape{.hidden = Hidden, .intermediate = 16, .experts = 6, .top_k = 2},
                        sy::router::softmax_top_k, sy::capacity::dropless, sy::expert::mlp<sy::relu>, across>;
using usual = layer<32>;
constexpr std::int64_t tokens = 20;
constexpr double time_out = 2.0;

int failures = 0;
void check(bool right, std::string const& what) {
  if (right) return;
  ++failures;
  std::printf("wrong: %s\n", what.c_str());
}

/// A call that is right, to be changed.
template <class Layer>
struct call {
  std::vector<float> x, weights, output;
  std::vector<std::byte> workspace;
  typename Layer::args args{};
  typename Layer::context context{};

  explicit call(parallel::group<transport>& group, std::int64_t count = tokens)
      : x(static_cast<std::size_t>(count * Layer::dims.hidden)),
        weights(static_cast<std::size_t>(6 * 16 * Layer::dims.hidden)),
        output(x.size(), -7.0f),
        workspace(Layer::workspace_bytes(count * group.ranks())) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>((i * 37 + 11) % 64) / 32.0f - 1.0f;
    for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>((i * 29 + 5) % 128) / 64.0f - 1.0f;
    args.tokens = Layer::rows(static_cast<float const*>(x.data()), count);
    args.output = Layer::rows(output.data(), count);
    args.weights.router.weight = weights.data();
    args.weights.up_proj = Layer::in_proj(weights.data());
    args.weights.down_proj = Layer::out_proj(weights.data());
    args.workspace = workspace;
    context = {.local = {.threads = 1}, .group = &group};
  }

  /// What it throws, or nothing.
  std::string said() {
    try {
      Layer::forward(args, context);
    } catch (std::exception const& e) {
      return e.what();
    }
    return {};
  }
  bool untouched() const {
    for (float const y : output) {
      if (y != -7.0f) return false;
    }
    return true;
  }
};

bool has(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

/// Errors that all ranks learn of before rows travel; the group goes on.
void in_step(transport& carrier) {
  int const rank = carrier.rank(), last = carrier.ranks() - 1;
  std::string const name = "rank " + std::to_string(last);
  parallel::group<transport> group(carrier, parallel::placement::blocks(6, carrier.ranks()), {.time_out = 60.0});
  auto const all_throw = [&](call<usual>& c, std::string const& what, std::string const& part) {
    std::string const said = c.said();
    check(has(said, what) && has(said, part) && c.untouched(),
          "rank " + std::to_string(rank) + ", " + what + ", " + part + ": " + said);
    call<usual> right(group);
    check(right.said().empty() && !right.untouched(), "the group goes on after: " + what);
  };
  {
    call<usual> c(group);
    if (rank == last) c.x[5] = std::numeric_limits<float>::quiet_NaN();
    all_throw(c, rank == last ? "router logits" : name + " has failed", "token 0");
  }
  {
    call<usual> c(group);
    if (rank == last) c.args.weights.up_proj = {};
    all_throw(c, rank == last ? "weights.up_proj" : name + " has failed", "weights.up_proj");
  }
  {
    call<usual> c(group);
    if (rank == last) c.args.tokens_per_group = 4;
    all_throw(c, "tokens_per_group of " + name, "expected 0 as on rank 0");
  }
  {
    call<usual> c(group);
    if (rank == last) c.context.sums = parallel::sums::by_rank;
    all_throw(c, "context.sums of " + name, "got 1");
  }
  {
    parallel::group<transport> other(carrier, parallel::placement(6, [&] {
                                       auto of = std::vector<std::vector<int>>(static_cast<std::size_t>(last + 1));
                                       of[static_cast<std::size_t>(rank == last ? 0 : last)] = {0, 1, 2, 3, 4, 5};
                                       return of;
                                     }()));
    call<usual> c(group);
    c.context.group = &other;
    all_throw(c, "placement (a number made of it) of " + name, "as on rank 0");
  }
  {
    call<usual> c(group);
    std::string said;
    if (rank == last) {
      call<layer<48>> wider(group);
      said = wider.said();
      check(wider.untouched(), "an output of another layer");
    } else {
      said = c.said();
    }
    check(has(said, "shape.hidden of " + name) && has(said, "32 as on rank 0") && has(said, "got 48") && c.untouched(),
          "another shape: " + said);
  }
  {  // a workspace that is exact, and one that lacks a byte for the rows of the last rank's experts
    call<usual> right(group);
    check(right.said().empty(), "a right call");
    auto const kept = [&](int r) { return reinterpret_cast<std::int32_t const*>(group.values(r)); };
    std::size_t const exact = across::workspace_bytes<usual>({.tokens = tokens,
                                                              .all_tokens = tokens * group.ranks(),
                                                              .rows = parallel::rows_of_rank(group, rank, 6, 0, kept),
                                                              .ranks = group.ranks()});
    check(exact <= right.workspace.size(), "bytes for the worst case are enough");
    call<usual> c(group);
    c.workspace.assign(exact + 64, std::byte{0x5a});
    c.args.workspace = {c.workspace.data(), exact};
    std::string said = c.said();
    bool guarded = true;
    for (std::size_t i = exact; i < c.workspace.size(); ++i) guarded = guarded && c.workspace[i] == std::byte{0x5a};
    check(said.empty() && c.output == right.output && guarded, "an exact workspace: " + said);
    call<usual> lacking(group);
    lacking.args.workspace = {c.workspace.data(), exact - (rank == last ? 64 : 0)};
    all_throw(lacking, "workspace of " + name, "with the rows that its experts have");
  }
}

/// A pool that fails after some calls.
struct failing_pool {
  int left;
  static void run(void* state, int workers, void (*body)(void*, int), void* argument) {
    if (--static_cast<failing_pool*>(state)->left == 0) throw std::runtime_error("the pool has broken");
    for (int i = 0; i < workers; ++i) body(argument, i);
  }
};

/// Errors in the middle of a call: the group is broken.
void midway(transport& carrier, int calls_before) {
  int const rank = carrier.rank(), last = carrier.ranks() - 1;
  parallel::group<transport> group(carrier, parallel::placement::blocks(6, carrier.ranks()), {.time_out = time_out});
  call<usual> c(group);
  failing_pool breaks{calls_before};
  sy::thread_pool const pool{&breaks, 2, &failing_pool::run};
  if (rank == last) c.context.local = {.threads = 2, .pool = &pool};
  std::string const said = c.said();
  check(breaks.left <= 0 || rank != last, "the pool broke");
  check(c.untouched() && has(said, "the pool has broken") &&
            (rank == last || has(said, "rank " + std::to_string(last) + " has failed")),
        "a rank that throws in the middle: " + said);
  if (rank != last || group.broken()) {
    call<usual> again(group);
    check(has(again.said(), group.broken() ? "left broken" : "") && again.untouched(), "a broken group is refused");
  }
}

/// The last rank does not call.
void missing(transport& carrier) {
  int const last = carrier.ranks() - 1;
  parallel::group<transport> group(carrier, parallel::placement::blocks(6, carrier.ranks()), {.time_out = time_out});
  if (carrier.rank() == last) return;
  call<usual> c(group);
  auto const begin = std::chrono::steady_clock::now();
  std::string const said = c.said();
  std::chrono::duration<double> const took = std::chrono::steady_clock::now() - begin;
  check(has(said, "rank " + std::to_string(last)) && c.untouched(), "a rank that never comes: " + said);
  check(took.count() < 2.0 * time_out, "the time-out: " + std::to_string(took.count()) + " s");
}

/// The last rank is killed in its products.
int dies(transport& carrier) {
  int const last = carrier.ranks() - 1;
  parallel::group<transport> group(carrier, parallel::placement::blocks(6, carrier.ranks()), {.time_out = time_out});
  call<usual> c(group);
  sy::thread_pool const pool{nullptr, 2, [](void*, int, void (*)(void*, int), void*) { std::raise(SIGKILL); }};
  if (carrier.rank() == last) c.context.local = {.threads = 2, .pool = &pool};
  std::string const said = c.said();
  bool const right = has(said, "rank " + std::to_string(last)) && c.untouched();
  std::printf("rank %d %s: %s\n", carrier.rank(), right ? "was told" : "is wrong", said.c_str());
  std::fflush(stdout);
  _exit(right ? 0 : 1);  // there is no MPI_Finalize without the other
}

}  // namespace

int main(int count, char** arguments) {
  int provided = 0;
  MPI_Init_thread(&count, &arguments, MPI_THREAD_FUNNELED, &provided);
  {
    transport carrier(MPI_COMM_WORLD);
    if (count > 1 && std::strcmp(arguments[1], "dies") == 0) return dies(carrier);
    in_step(carrier);
  }
  for (int const calls : {2, 4, 6}) {
    transport carrier(MPI_COMM_WORLD);
    midway(carrier, calls);
    MPI_Barrier(MPI_COMM_WORLD);
  }
  {
    transport carrier(MPI_COMM_WORLD);
    missing(carrier);
    MPI_Barrier(MPI_COMM_WORLD);
  }
  int const own = failures;
  MPI_Allreduce(&own, &failures, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank == 0) std::printf("%d failed\n", failures);
  MPI_Finalize();
  return failures == 0 ? 0 : 1;
}
