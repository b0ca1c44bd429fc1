#pragma once

#include <switchyard/offload.hpp>
#include <switchyard/offload/pack_experts.hpp>
#include <switchyard/offload/packed_file.hpp>
#include <switchyard/offload/predict.hpp>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "model.hpp"
#include "moe.hpp"

namespace tiny_lm {

namespace offload = switchyard::offload;

/// A file that goes when this does.
class passing_file {
 public:
  explicit passing_file(std::string path) : path_(std::move(path)) {}
  passing_file(passing_file const&) = delete;
  ~passing_file() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  std::string const& path() const { return path_; }

 private:
  std::string path_;
};

/// The layers on the CPU with a part of their experts in memory, and the others in a file. The model's own copy of the experts
/// is given up.
template <class Kind>
class offloaded_layers final : public moe_layers {
  using resident = typename Kind::template others<sy::backend::cpu>;
  using layer = typename Kind::template others<sy::backend::offloaded<sy::backend::cpu>>;
  using cache_type = offload::expert_cache<offload::file_store>;

 public:
  /// `budget_bytes` of all experts in memory; `path` is where the others are written, and is removed at the end.
  offloaded_layers(std::vector<moe_weights>& weights, std::int64_t budget_bytes, std::string const& path)
      : weights_(weights), file_(path) {
    auto const views = views_of(weights);
    offload::pack(path, offload::weights_store<resident>(views));
    for (moe_weights& w : weights) w.gate_proj = w.up_proj = w.down_proj = {};
    store_ = std::make_unique<offload::file_store>(offload::open_packed<layer>(file_.path()));
    cache_ = std::make_unique<cache_type>(
        *store_, offload::cache_options<offload::by_next_use>{.budget_bytes = budget_bytes, .record_calls = 1 << 16});
  }
  static std::int64_t expert_bytes() { return offload::place_bytes(offload::piece<layer>::bytes); }
  static std::int64_t all_bytes() { return blocks * layer::dims.experts * expert_bytes(); }

  std::string describe() const override { return sy::describe<layer>(); }
  std::unique_ptr<moe_worker> worker() const override { return std::make_unique<offloaded_worker>(*this); }

  offload::cache_measures measure() const { return cache_->measure(); }
  bool reads_direct() const { return store_->direct(); }

 private:
  /// A cache serves one call at a time, so readers take turns.
  class offloaded_worker final : public moe_worker {
   public:
    explicit offloaded_worker(offloaded_layers const& of) : of_(of), workspace_(layer::workspace_bytes(context)) {}

    void forward(int block, float const* tokens, float const*, int rows, float* output, std::int64_t* used) override {
      std::int64_t load[layer::dims.experts];
      typename layer::args args{};
      args.tokens = layer::rows(tokens, rows);
      args.output = layer::rows(output, rows);
      args.workspace = workspace_;
      args.decisions.load = load;
      std::lock_guard const turn(of_.turn_);
      if (block + 1 < blocks) {  // what the next block's router makes of this block's input is a good guess
        args.weights.router = {.weight = of_.weights_[block + 1].router.data()};
        of_.cache_->expect(block + 1, next_.expected(args, {.threads = 1}));
      }
      args.weights.router = {.weight = of_.weights_[block].router.data()};
      args.weights.experts = of_.cache_->layer(block);
      layer::forward(args, {.threads = 1});
      for (int e = 0; e < layer::dims.experts; ++e) used[e] += load[e];
    }

   private:
    offloaded_layers const& of_;
    std::vector<std::byte> workspace_;
    offload::by_next_router<layer> next_{context};
  };

  static std::vector<typename resident::weights> views_of(std::vector<moe_weights> const& weights) {
    std::vector<typename resident::weights> result;
    for (moe_weights const& w : weights) {
      result.push_back({.gate_proj = resident::in_proj(w.gate_proj.data()),
                        .up_proj = resident::in_proj(w.up_proj.data()),
                        .down_proj = resident::out_proj(w.down_proj.data())});
    }
    return result;
  }

  std::vector<moe_weights> const& weights_;
  passing_file file_;
  std::unique_ptr<offload::file_store> store_;
  std::unique_ptr<cache_type> cache_;
  mutable std::mutex turn_;
};

}  // namespace tiny_lm
