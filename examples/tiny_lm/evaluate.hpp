#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <future>
#include <span>
#include <vector>

#include "model.hpp"

namespace tiny_lm {

template <class Kind>
struct evaluation {
  double bits_per_byte = 0.0;
  std::int64_t bytes = 0;  ///< that were predicted
  double seconds = 0.0;
  typename reader<Kind>::usage used{};
};

/// What it costs to say `byte`, in bits: -log2 of its softmax.
inline double bits(std::span<float const> logits, unsigned char byte) {
  float const largest = *std::max_element(logits.begin(), logits.end());
  double total = 0.0;
  for (float l : logits) total += std::exp(l - largest);
  return (std::log(total) + static_cast<double>(largest) - static_cast<double>(logits[byte])) / std::log(2.0);
}

/// Bits per byte of a text of at least 2 bytes.
///
/// The text is cut at every `context` bytes. Each window is read as a text of its own and predicts the bytes after
/// each of its bytes, so every byte but the first is predicted once. Windows are read side by side by `threads`
/// threads and added up in order: the result does not depend on their number.
/// `progress(done, windows)` is called now and then.
template <class Kind, class Progress>
evaluation<Kind> evaluate(model<Kind> const& weights, moe_layers const& layers, std::span<unsigned char const> text,
                          int threads, Progress&& progress) {
  std::int64_t const predicted = static_cast<std::int64_t>(text.size()) - 1;
  std::int64_t const windows = (predicted + context - 1) / context;
  std::vector<double> window_bits(windows);
  std::atomic<std::int64_t> next{0}, done{0};

  auto const work = [&] {
    reader<Kind> read(weights, layers);
    for (std::int64_t window; (window = next++) < windows; ++done) {
      std::int64_t const begin = window * context;
      std::int64_t const size = std::min<std::int64_t>(context, predicted - begin);
      read.forget();
      std::span<float const> const logits = read.read(text.subspan(begin, size));
      for (std::int64_t i = 0; i < size; ++i) {
        window_bits[window] += bits(logits.subspan(i * vocabulary, vocabulary), text[begin + i + 1]);
      }
    }
    return read.used();
  };

  auto const start = std::chrono::steady_clock::now();
  std::vector<std::future<typename reader<Kind>::usage>> workers;
  for (int i = 0; i < threads; ++i) workers.push_back(std::async(std::launch::async, work));
  evaluation<Kind> result{.bytes = predicted};
  for (auto& worker : workers) {
    while (worker.wait_for(std::chrono::milliseconds(100)) != std::future_status::ready) progress(done, windows);
    auto const used = worker.get();
    for (int block = 0; block < blocks; ++block) {
      for (int e = 0; e < model<Kind>::experts; ++e) result.used[block][e] += used[block][e];
    }
  }
  for (double b : window_bits) result.bits_per_byte += b / static_cast<double>(predicted);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace tiny_lm
