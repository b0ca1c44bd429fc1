#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string_view>
#include <vector>

#include "model.hpp"

namespace tiny_lm {

/// Draws a byte from the softmax of logits / temperature; temperature 0 takes the likeliest.
inline unsigned char draw(std::span<float const> logits, double temperature, std::mt19937_64& random) {
  auto const largest = std::max_element(logits.begin(), logits.end());
  if (temperature == 0.0) return static_cast<unsigned char>(largest - logits.begin());
  double weight[vocabulary], total = 0.0;
  for (int i = 0; i < vocabulary; ++i) total += weight[i] = std::exp((logits[i] - *largest) / temperature);
  // Not a distribution of the standard library: those differ between libraries, and a seed is to mean one text.
  double left = static_cast<double>(random() >> 11) * 0x1p-53 * total;
  int byte = 0;
  while (byte < vocabulary - 1 && (left -= weight[byte]) >= 0.0) ++byte;
  return static_cast<unsigned char>(byte);
}

/// Continues a prompt by `count` bytes and hands each to `emit` as soon as it is known.
///
/// Only the end of a prompt that is longer than the context is read. When the context is full, the model goes on
/// from the last half of it: keys carry their positions, so the half is read again from position 0.
template <class Kind, class Emit>
void generate(model<Kind> const& weights, moe_layers const& layers, std::string_view prompt, int count,
              double temperature, std::uint64_t seed, Emit&& emit) {
  std::vector<unsigned char> text(prompt.begin(), prompt.end());
  if (text.empty()) text.push_back('\n');  // the model begins after a byte: nothing is best said by a new line
  std::span<unsigned char const> unread(text);
  if (unread.size() > context) unread = unread.last(context);
  reader<Kind> read(weights, layers);
  std::mt19937_64 random(seed);
  for (int i = 0; i < count; ++i) {
    if (read.room() == 0) {
      read.forget();
      unread = std::span<unsigned char const>(text).last(context / 2);
    }
    unsigned char const byte = draw(read.read(unread).last(vocabulary), temperature, random);
    emit(byte);
    text.push_back(byte);
    unread = std::span<unsigned char const>(text).last(1);
  }
}

}  // namespace tiny_lm
