#include "support/margins.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>

namespace support {
namespace {

bool apart(double a, double b, double margin = least_margin) {
  if (std::isinf(a) || std::isinf(b)) return true;
  return std::abs(a - b) > margin * std::max(std::abs(a), std::abs(b));
}

/// The largest `count` values and the next one are in an order that rounding does not change.
bool order_is_clear(reference::numbers values, int count, double margin = least_margin) {
  std::sort(values.begin(), values.end(), std::greater<>());
  for (int i = 0; i < count && i + 1 < static_cast<int>(values.size()); ++i) {
    if (!apart(values[i], values[i + 1], margin)) return false;
  }
  return true;
}

}  // namespace

bool choice_is_clear(reference::config const& c, reference::numbers const& logits, reference::numbers const& correction,
                     double margin, std::vector<std::uint8_t> const& masked) {
  using namespace reference;
  if (c.scores == score::sparsemixer) {
    if (!order_is_clear(logits, c.top_k, margin)) return false;
    for (int chosen : largest(logits, c.top_k)) {
      for (double l : logits) {
        double const s = logits[chosen];
        if (s != l && !apart((s - l) / std::max(std::abs(l), s), 2.0 * c.jitter, margin)) return false;
      }
    }
    return true;
  }
  numbers keys = logits;
  if (c.scores == score::softmax) keys = softmax(logits);
  if (c.scores == score::sigmoid) {
    for (double& k : keys) k = sigmoid(k);
  }
  // Masked experts are chosen in the order of their scores, after any number of others.
  if (!masked.empty() && !order_is_clear(keys, c.experts, margin)) return false;
  for (std::size_t e = 0; e < correction.size(); ++e) keys[e] += correction[e];
  if (!masked.empty() && !order_is_clear(keys, c.experts, margin)) return false;
  for (std::size_t e = 0; e < masked.size(); ++e) {
    if (masked[e]) keys[e] = -std::numeric_limits<double>::infinity();
  }
  if (c.groups > 1) {
    int const size = c.experts / c.groups;
    numbers judged;
    for (int g = 0; g < c.groups; ++g) {
      numbers members(keys.begin() + g * size, keys.begin() + (g + 1) * size);
      std::sort(members.begin(), members.end(), std::greater<>());
      judged.push_back(c.group_by == group_score::max ? members[0] : members[0] + members[1]);
    }
    if (!order_is_clear(judged, c.kept_groups, margin)) return false;
    close_groups(c, keys);
  }
  return order_is_clear(keys, c.top_k, margin);
}

bool units_are_clear(reference::numbers inner, int kept, double margin) {
  std::sort(inner.begin(), inner.end(), std::greater<>());
  double const last = inner[kept - 1], next = inner[kept];
  return (last == 0.0 && next == 0.0) ||
         last - next > margin * std::max(std::abs(inner.front()), std::abs(inner.back()));
}

}  // namespace support
