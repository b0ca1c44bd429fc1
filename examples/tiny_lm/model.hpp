#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe.hpp"
#include "safetensors.hpp"

/// A byte-level transformer: causal attention with rotary positions and a Mixture-of-Experts layer in each block,
/// both on normalised input and added to the residual stream. model.py is the same in PyTorch.
namespace tiny_lm {

inline constexpr int vocabulary = 256;
inline constexpr int heads = 4;
inline constexpr double rope_theta = 10000.0;
inline constexpr double norm_epsilon = 1e-5;

/// Root-mean-square normalisation.
struct rms_norm {
  std::vector<float> weight;

  void operator()(float const* x, int rows, float* y) const {
    std::size_t const hidden = weight.size();
    for (int row = 0; row < rows; ++row, x += hidden, y += hidden) {
      float square = 0.0f;
      for (std::size_t i = 0; i < hidden; ++i) square += x[i] * x[i];
      float const scale = 1.0f / std::sqrt(square / static_cast<float>(hidden) + static_cast<float>(norm_epsilon));
      for (std::size_t i = 0; i < hidden; ++i) y[i] = x[i] * scale * weight[i];
    }
  }
};

/// y = x . weight^T, without a bias.
class linear {
 public:
  /// `weight` is [out, in] as in every checkpoint. It is kept as [in, out]: the innermost loop then runs over sums
  /// that do not depend on each other, which a compiler vectorises without leave to reorder additions.
  linear(std::vector<float> const& weight, int in, int out) : in_(in), out_(out), weight_(weight.size()) {
    if (out % tile != 0) throw std::logic_error("linear: the number of outputs is not a multiple of the tile");
    for (int o = 0; o < out; ++o) {
      for (int i = 0; i < in; ++i) weight_[i * out + o] = weight[o * in + i];
    }
  }

  void operator()(float const* x, int rows, float* y) const {
    for (int first = 0; first < out_; first += tile) {
      for (int row = 0; row < rows; ++row) {
        float sum[tile] = {};
        float const* w = weight_.data() + first;
        for (int i = 0; i < in_; ++i, w += out_) {
          for (int o = 0; o < tile; ++o) sum[o] += x[row * in_ + i] * w[o];
        }
        std::copy(sum, sum + tile, y + row * out_ + first);
      }
    }
  }

 private:
  static constexpr int tile = 32;
  int in_, out_;
  std::vector<float> weight_;
};

/// The weights, immutable once loaded: any number of readers share them.
template <class Kind>
class model {
 public:
  static constexpr sy::shape dims = Kind::template first<sy::backend::cpu>::dims;
  static constexpr int hidden = dims.hidden, experts = dims.experts;
  static constexpr bool is_dense = experts == 1;
  static constexpr bool is_gated = Kind::template first<sy::backend::cpu>::expert_traits.gated;
  static constexpr bool is_memory = kinds::is_memory<typename Kind::template first<sy::backend::cpu>>;
  using router_policy = typename Kind::template others<sy::backend::cpu>::router;
  static constexpr bool owns_router = router_policy::traits.owner == sy::router_owner::model;
  static constexpr bool scales_features = sy::router::are_scaled_by_cluster<typename router_policy::features>;
  static constexpr int strata =
      sy::router::climbs<typename router_policy::schedule> ? router_policy::schedule::passes : 0;

  struct block {
    rms_norm attention_norm;
    linear q, k, v, o;
    rms_norm moe_norm;
  };

  /// Throws std::runtime_error with one sentence when the file is for another model.
  explicit model(safetensors const& file)
      : embedding(checked(file).floats("embedding.weight", {vocabulary, hidden})),
        unembed(embedding, hidden, vocabulary),
        final_norm{file.floats("final_norm.weight", {hidden})} {
    if constexpr (owns_router) {
      if (file.has("blocks.0.moe.router.weight")) {
        file.refuse("has a router for each block, where one for all is expected: none of them may take its place");
      }
      router = file.floats("router.weight", {experts, hidden});
    }
    for (int i = 0; i < tiny_lm::blocks; ++i) {
      std::string const prefix = "blocks." + std::to_string(i) + ".";
      blocks.push_back(read_block(file, prefix));
      moe.push_back(read_moe(file, prefix + "moe.", i));
    }
    std::size_t known = 2 + (owns_router ? 1 : 0);
    for (moe_weights const& w : moe) {
      known += (is_gated || is_memory ? 9 : 8) +
               (strata > 0                     ? 3 * strata
                : is_dense || w.router.empty() ? 0
                                               : 1) +
               (w.feature_scale.empty() ? 0 : 1);
    }
    if (file.size() != known) {
      file.refuse("has " + std::to_string(file.size()) + " tensors, and the model has " + std::to_string(known));
    }
  }

  std::vector<float> embedding;  ///< [vocabulary, hidden]
  linear unembed;                ///< the same matrix, for the way out
  rms_norm final_norm;
  std::vector<block> blocks;
  std::vector<moe_weights> moe;  ///< of each block
  std::vector<float> router;     ///< [experts, hidden], where the model owns it

 private:
  static block read_block(safetensors const& file, std::string const& prefix) {
    auto const norm = [&](char const* name) { return rms_norm{file.floats(prefix + name, {hidden})}; };
    auto const square = [&](char const* name) {
      return linear(file.floats(prefix + name, {hidden, hidden}), hidden, hidden);
    };
    return {.attention_norm = norm("attention_norm.weight"),
            .q = square("attention.q.weight"),
            .k = square("attention.k.weight"),
            .v = square("attention.v.weight"),
            .o = square("attention.o.weight"),
            .moe_norm = norm("moe_norm.weight")};
  }

  static moe_weights read_moe(safetensors const& file, std::string const& prefix, int block) {
    constexpr int inner = dims.intermediate;
    moe_weights w;
    if constexpr (is_dense) {
      w.router.assign(hidden, 0.0f);
      if constexpr (is_gated) w.gate_proj = file.floats(prefix + "gate.weight", {inner, hidden});
      w.up_proj = file.floats(prefix + "up.weight", {inner, hidden});
      w.down_proj = file.floats(prefix + "down.weight", {hidden, inner});
      return w;
    } else if constexpr (is_memory) {
      w.first_keys = file.floats(prefix + "router.first_keys", {router_policy::heads, router_policy::keys, hidden / 2});
      w.second_keys =
          file.floats(prefix + "router.second_keys", {router_policy::heads, router_policy::keys, hidden / 2});
      w.values = file.floats(prefix + "experts.values", {experts, hidden});
      return w;
    }
    if constexpr (strata > 0) {
      auto const append = [&](std::vector<float>& to, std::string const& name, auto... sizes) {
        std::vector<float> const values = file.floats(prefix + name, {sizes...});
        to.insert(to.end(), values.begin(), values.end());
      };
      for (int i = 0; i < strata; ++i) {
        std::string const number = std::to_string(i);
        int const open = experts - router_policy::schedule::first_expert(i);
        append(w.router, "router." + number + ".weight", open, hidden);
        append(w.norm, "norm." + number + ".weight", hidden);
        append(w.norm, "norm." + number + ".bias", hidden);
      }
    } else if constexpr (!owns_router) {
      w.router = file.floats(prefix + "router.weight", {experts, hidden});
    }
    if (scales_features && block > 0) {
      w.feature_scale = file.floats(prefix + "router.feature_scale", {experts, hidden});
    }
    w.gate_proj = file.floats(prefix + "experts.gate_proj", {experts, inner, hidden});
    w.up_proj = file.floats(prefix + "experts.up_proj", {experts, inner, hidden});
    w.down_proj = file.floats(prefix + "experts.down_proj", {experts, hidden, inner});
    return w;
  }

  /// The file, if it is undamaged and was made for the model that this program was compiled for.
  static safetensors const& checked(safetensors const& file) {
    constexpr char const* format = "switchyard-tiny-lm-1";
    if (file.metadata("format") != format) {
      file.refuse("has the format '" + file.metadata("format") + "', expected '" + format + "'");
    }
    if (file.metadata("model") != Kind::name) {
      file.refuse("has a model of kind '" + file.metadata("model") + "', expected '" + std::string(Kind::name) + "'");
    }
    auto const config = nlohmann::json::parse(file.metadata("config"), nullptr, false);
    if (!config.is_object()) file.refuse("has a 'config' in its metadata that is not a JSON object");
    std::pair<char const*, double> const expected[] = {{"vocabulary", vocabulary},
                                                       {"context", context},
                                                       {"hidden", hidden},
                                                       {"blocks", tiny_lm::blocks},
                                                       {"heads", heads},
                                                       {"experts", Kind::sizes.experts},
                                                       {"top_k", Kind::sizes.top_k},
                                                       {"intermediate", Kind::sizes.intermediate},
                                                       {"rope_theta", rope_theta},
                                                       {"norm_epsilon", norm_epsilon}};
    for (auto const& [key, want] : expected) {
      nlohmann::json const have = config.value(key, nlohmann::json());
      if (!have.is_number() || std::abs(have.template get<double>() - want) > 1e-6 * want) {
        char number[32];
        std::snprintf(number, sizeof number, "%g", want);
        file.refuse("was made for another model: expected " + std::string(key) + " = " + number + ", got " +
                    have.dump());
      }
    }
    file.check_data();
    return file;
  }
};

/// One reader of text: the keys and values of the bytes read so far, and the memory to read more.
template <class Kind>
class reader {
 public:
  static constexpr int hidden = model<Kind>::hidden;
  static constexpr int experts = model<Kind>::experts;
  static constexpr int head = hidden / heads;

  /// How often each expert of each block was chosen.
  using usage = std::array<std::array<std::int64_t, experts>, blocks>;

  /// `layers` are those of `weights`, on the CPU or elsewhere; the rest of the model is plain loops on the CPU.
  reader(model<Kind> const& weights, moe_layers const& layers) : model_(weights), moe_(layers.worker()) {
    for (int position = 0; position < context; ++position) {
      for (int i = 0; i < head / 2; ++i) {
        double const angle = position * std::pow(rope_theta, -2.0 * i / head);
        cos_.push_back(static_cast<float>(std::cos(angle)));
        sin_.push_back(static_cast<float>(std::sin(angle)));
      }
    }
  }

  /// How many more bytes fit the context.
  int room() const { return context - position_; }

  /// Starts a new text.
  void forget() { position_ = 0; }

  /// Reads at most `room()` bytes that follow those already read. For each, returns the logits of the byte after
  /// it: [bytes, vocabulary], valid until the next call.
  std::span<float const> read(std::span<unsigned char const> bytes) {
    int const rows = static_cast<int>(bytes.size());
    if (rows > room()) throw std::logic_error("reader::read: the context is full");
    for (int row = 0; row < rows; ++row) {
      std::copy_n(model_.embedding.data() + bytes[row] * hidden, hidden, residual_.data() + row * hidden);
    }
    for (int i = 0; i < blocks; ++i) {
      attend(model_.blocks[i], caches_[i], rows);
      feed_forward(i, rows);
    }
    position_ += rows;
    model_.final_norm(residual_.data(), rows, normed_.data());
    model_.unembed(normed_.data(), rows, logits_.data());
    return {logits_.data(), static_cast<std::size_t>(rows) * vocabulary};
  }

  /// Counted since construction.
  usage const& used() const { return used_; }

 private:
  using matrix = std::vector<float>;

  struct cache {
    matrix keys = matrix(hidden * context);    // [hidden, context]: scores of many positions are one vector loop
    matrix values = matrix(context * hidden);  // [context, hidden]
  };

  void attend(typename model<Kind>::block const& block, cache& past, int rows) {
    block.attention_norm(residual_.data(), rows, normed_.data());
    block.q(normed_.data(), rows, queries_.data());
    block.k(normed_.data(), rows, keys_.data());
    block.v(normed_.data(), rows, past.values.data() + position_ * hidden);
    rotate(queries_.data(), rows);
    rotate(keys_.data(), rows);
    for (int i = 0; i < hidden; ++i) {
      for (int row = 0; row < rows; ++row) past.keys[i * context + position_ + row] = keys_[row * hidden + i];
    }
    for (int row = 0; row < rows; ++row) {
      for (int h = 0; h < head * heads; h += head) {
        attend(queries_.data() + row * hidden + h, past.keys.data() + h * context, past.values.data() + h,
               position_ + row + 1, mixed_.data() + row * hidden + h);
      }
    }
    block.o(mixed_.data(), rows, added_.data());
    add(rows);
  }

  /// One head of one query over the first `length` positions.
  static void attend(float const* query, float const* keys, float const* values, int length, float* output) {
    float weight[context] = {};
    for (int i = 0; i < head; ++i) {
      for (int position = 0; position < length; ++position) weight[position] += query[i] * keys[i * context + position];
    }
    float const largest = *std::max_element(weight, weight + length);
    float const scale = 1.0f / std::sqrt(static_cast<float>(head));
    float total = 0.0f;
    for (int position = 0; position < length; ++position) {
      weight[position] = std::exp((weight[position] - largest) * scale);
      total += weight[position];
    }
    float sum[head] = {};
    for (int position = 0; position < length; ++position) {
      for (int i = 0; i < head; ++i) sum[i] += weight[position] * values[position * hidden + i];
    }
    for (int i = 0; i < head; ++i) output[i] = sum[i] / total;
  }

  /// Turns each pair (i, i + head / 2) of every head by its position's angle.
  /// Source: Su et al. 2021, RoFormer, section 3.2, with the pairing of the Llama reference codes.
  void rotate(float* x, int rows) const {
    for (int row = 0; row < rows; ++row) {
      float const* const cos = cos_.data() + (position_ + row) * (head / 2);
      float const* const sin = sin_.data() + (position_ + row) * (head / 2);
      for (float* part = x + row * hidden; part < x + (row + 1) * hidden; part += head) {
        for (int i = 0; i < head / 2; ++i) {
          float const a = part[i], b = part[i + head / 2];
          part[i] = a * cos[i] - b * sin[i];
          part[i + head / 2] = b * cos[i] + a * sin[i];
        }
      }
    }
  }

  void feed_forward(int block, int rows) {
    model_.blocks[block].moe_norm(residual_.data(), rows, normed_.data());
    moe_->forward(block, normed_.data(), residual_.data(), rows, added_.data(), used_[block].data());
    if constexpr (model<Kind>::strata > 0) {
      std::copy_n(added_.data(), rows * hidden, residual_.data());  // the layer has added the residual
    } else {
      add(rows);
    }
  }

  void add(int rows) {
    for (int i = 0; i < rows * hidden; ++i) residual_[i] += added_[i];
  }

  model<Kind> const& model_;
  std::unique_ptr<moe_worker> moe_;
  std::vector<float> cos_, sin_;  // [context, head / 2]
  int position_ = 0;
  std::array<cache, blocks> caches_;
  usage used_{};
  // All [context, hidden], of which a call uses the first rows.
  matrix residual_ = matrix(context * hidden), normed_ = residual_, added_ = residual_;
  matrix queries_ = residual_, keys_ = residual_, mixed_ = residual_;
  matrix logits_ = matrix(context * vocabulary);
};

}  // namespace tiny_lm
