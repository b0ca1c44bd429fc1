#pragma once

#include <switchyard/sida/predictor.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "safetensors.hpp"

namespace tiny_lm {

/// SiDA's predictor of the shipped model's experts, as `train_predictor.py` writes it. It owns the weights.
class expert_predictor {
 public:
  /// Throws where the file is damaged, or of another form.
  explicit expert_predictor(safetensors const& file) {
    if (file.metadata("format") != format) {
      file.refuse("has the format '" + file.metadata("format") + "', expected '" + format + "'");
    }
    file.check_data();
    auto const config = nlohmann::json::parse(file.metadata("config"), nullptr, false);
    auto const size = [&](char const* key) -> std::int64_t {
      if (!config.is_object() || !config.contains(key) || !config[key].is_number_integer() || config[key] < 1 ||
          config[key] > most) {
        file.refuse(std::string("has a config without a size '") + key + "' from 1 to " + std::to_string(most));
      }
      return config[key];
    };
    std::int64_t const embedding = size("d"), hidden = size("hidden"), experts = size("E");
    std::int64_t const lstm_layers = size("lstm_layers"), layers = size("layers");
    if (config.value("gate_order", "") != "input, forget, cell, output") file.refuse("has gates in another order");
    std::string const form = config.value("sparsemax", "");
    if (form != "correct" && form != "published") file.refuse("has an unknown SparseMax '" + form + "'");

    weights_.reserve(static_cast<std::size_t>(4 + 4 * lstm_layers + 2 * layers));  // pointers stay
    auto const tensor = [&](std::string const& name, safetensors::shape const& shape) {
      return weights_.emplace_back(file.floats(name, shape)).data();
    };
    auto const linear = [&](std::string const& name, std::int64_t outputs, std::int64_t inputs) {
      return switchyard::sida::linear{tensor(name + ".weight", {outputs, inputs}), tensor(name + ".bias", {outputs})};
    };
    network_.embedding = static_cast<int>(embedding);
    network_.hidden = static_cast<int>(hidden);
    network_.experts = static_cast<int>(experts);
    network_.compress = linear("compress", hidden, embedding);
    for (std::int64_t i = 0; i < lstm_layers; ++i) {
      std::string const name = "lstm." + std::to_string(i) + ".";
      lstm_layers_.push_back({tensor(name + "weight_ih", {4 * hidden, hidden}),
                              tensor(name + "weight_hh", {4 * hidden, hidden}), tensor(name + "bias_ih", {4 * hidden}),
                              tensor(name + "bias_hh", {4 * hidden})});
    }
    network_.residual = linear("residual", hidden, hidden);
    for (std::int64_t i = 0; i < layers; ++i) heads_.push_back(linear("heads." + std::to_string(i), experts, hidden));
    if (file.size() != weights_.size()) {
      file.refuse("has " + std::to_string(file.size()) + " tensors, and the predictor has " +
                  std::to_string(weights_.size()));
    }
    network_.lstm_layers = lstm_layers_;
    network_.heads = heads_;
    network_.form =
        form == "published" ? switchyard::sida::sparsemax_form::published : switchyard::sida::sparsemax_form::correct;
  }
  expert_predictor(expert_predictor const&) = delete;
  expert_predictor& operator=(expert_predictor const&) = delete;

  switchyard::sida::predictor const& network() const { return network_; }

 private:
  static constexpr char const* format = "switchyard-sida-predictor-1";
  static constexpr std::int64_t most = 1 << 16;
  std::vector<std::vector<float>> weights_;
  std::vector<switchyard::sida::lstm> lstm_layers_;
  std::vector<switchyard::sida::linear> heads_;
  switchyard::sida::predictor network_;
};

}  // namespace tiny_lm
