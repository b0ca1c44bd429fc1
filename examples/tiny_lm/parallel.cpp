// The model with its experts on several processes: `mpirun -n 2 tiny_lm_parallel` gives the demo's score to the last bit. Every process
// computes attention for all bytes, has its share of the experts, and hands the layers its share of a window's bytes.
#include <switchyard/parallel.hpp>
#include <switchyard/transport/mpi.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "evaluate.hpp"
#include "file.hpp"
#include "model.hpp"
#include "moe.hpp"
#include "safetensors.hpp"

namespace {

using namespace tiny_lm;
using transport = sy::transport::mpi;
using layer = kinds::shipped::others<sy::backend::expert_parallel<sy::backend::cpu, transport>>;
using group = sy::parallel::group<transport>;

/// The rows of some experts of a matrix, [experts, ...].
std::vector<float> of_experts(std::vector<float> const& matrix, std::span<int const> experts) {
  std::int64_t const size = static_cast<std::int64_t>(matrix.size()) / layer::dims.experts;
  std::vector<float> result;
  for (int const e : experts) result.insert(result.end(), matrix.begin() + e * size, matrix.begin() + (e + 1) * size);
  return result;
}

/// The layers of all blocks. The process keeps the weights of its own experts alone.
class parallel_layers final : public moe_layers {
 public:
  parallel_layers(group& of_all, std::vector<moe_weights>& weights) : group_(of_all), weights_(weights) {
    std::span<int const> const experts = of_all.placement().experts_of(of_all.rank());
    for (moe_weights& w : weights) {
      for (std::vector<float>* matrix : {&w.gate_proj, &w.up_proj, &w.down_proj})
        *matrix = of_experts(*matrix, experts);
    }
  }
  std::string describe() const override { return sy::describe<layer>(); }
  std::unique_ptr<moe_worker> worker() const override { return std::make_unique<parallel_worker>(*this); }

 private:
  class parallel_worker final : public moe_worker {
   public:
    explicit parallel_worker(parallel_layers const& of) : of_(of), workspace_(layer::workspace_bytes(context)) {}

    void forward(int block, float const* tokens, float const*, int rows, float* output, std::int64_t* used) override {
      constexpr int hidden = layer::dims.hidden;
      group& all = of_.group_;
      std::vector<int> count, begin;
      for (int r = 0; r < all.ranks(); ++r) {
        begin.push_back(rows * r / all.ranks() * hidden);
        count.push_back(rows * (r + 1) / all.ranks() * hidden - begin.back());
      }
      auto const rank = static_cast<std::size_t>(all.rank());
      moe_weights const& w = of_.weights_[static_cast<std::size_t>(block)];
      std::int64_t load[layer::dims.experts];
      layer::args args{};
      args.tokens = layer::rows(tokens + begin[rank], count[rank] / hidden);
      args.output = layer::rows(output + begin[rank], count[rank] / hidden);
      args.workspace = workspace_;
      args.weights.router = {.weight = w.router.data()};
      args.weights.gate_proj = layer::in_proj(w.gate_proj.data());
      args.weights.up_proj = layer::in_proj(w.up_proj.data());
      args.weights.down_proj = layer::out_proj(w.down_proj.data());
      args.decisions.load = load;
      layer::forward(args, {.local = {.threads = 1}, .group = &all});
      MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_FLOAT, output, count.data(), begin.data(), MPI_FLOAT, MPI_COMM_WORLD);
      for (int e = 0; e < layer::dims.experts; ++e) used[e] += load[e];
    }

   private:
    parallel_layers const& of_;
    std::vector<std::byte> workspace_;
  };

  group& group_;
  std::vector<moe_weights> const& weights_;
};

/// Whether the score is that of one process. `bytes`: how many are scored; 0: all.
bool run(std::int64_t bytes) {
  transport carrier(MPI_COMM_WORLD);
  group all(carrier, sy::parallel::placement::blocks(layer::dims.experts, carrier.ranks()));
  safetensors const file = safetensors::load(TINY_LM_WEIGHTS);
  model<kinds::shipped> weights(file);
  parallel_layers const layers(all, weights.moe);
  std::vector<char> const text = read_file(TINY_LM_TEXT);
  std::vector<unsigned char> scored(text.begin(), text.end());
  if (bytes > 0 && bytes + 1 < static_cast<std::int64_t>(scored.size()))
    scored.resize(static_cast<std::size_t>(bytes) + 1);
  auto const quietly = [](long long, long long) {};
  auto const score = evaluate(weights, layers, std::span<unsigned char const>(scored), 1, quietly);
  if (all.rank() != 0) return true;
  std::printf("%d processes, %d blocks with %s\n", all.ranks(), blocks, layers.describe().c_str());
  std::printf("  %.6f bits per byte over %lld bytes, %.1f s\n", score.bits_per_byte,
              static_cast<long long>(score.bytes), score.seconds);
  model<kinds::shipped> const whole(file);
  cpu_layers<kinds::shipped> const alone(whole.moe, whole.router);
  double const expected = evaluate(whole, alone, std::span<unsigned char const>(scored), 1, quietly).bits_per_byte;
  bool const same = score.bits_per_byte == expected;
  std::printf("  %s\n",
              same ? "the score of one process to the last bit" : "not the score of one process: this is a fault");
  return same;
}

}  // namespace

int main(int count, char** arguments) {
  int provided = 0;  // a thread of its own reads the text, and is the only one to call MPI meanwhile
  MPI_Init_thread(&count, &arguments, MPI_THREAD_SERIALIZED, &provided);
  int result = 1;
  try {
    if (count > 2 || (count == 2 && std::atoll(arguments[1]) <= 0)) {
      throw std::runtime_error("usage: mpirun -n <processes> tiny_lm_parallel [<bytes of the text>]");
    }
    result = run(count == 2 ? std::atoll(arguments[1]) : 0) ? 0 : 1;
  } catch (std::exception const& wrong) {
    std::fprintf(stderr, "tiny_lm_parallel: %s\n", wrong.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return result;
}
