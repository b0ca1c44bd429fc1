#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace switchyard::offload {

/// What the calls of one layer met.
struct layer_measures {
  std::int64_t calls = 0;
  std::int64_t needed = 0;      ///< experts with rows, summed over the calls
  std::int64_t hits = 0;        ///< of those, resident when the call began
  std::int64_t on_the_way = 0;  ///< of those, being read when the call began
  std::int64_t loads = 0;       ///< pieces of the layer that were read, ahead or not
  double waiting_seconds = 0;   ///< that calls had nothing to compute
};

/// One call.
struct call_measures {
  int layer = 0, needed = 0, hits = 0, on_the_way = 0;
  std::int64_t moved_bytes = 0;     ///< read so far by the cache when the call ended
  std::int64_t resident_bytes = 0;  ///< of places in use when the call ended, pieces on their way included
  double begin_seconds = 0;         ///< since the cache was made
  double seconds = 0, waiting_seconds = 0;
};

/// What a cache has done since it was made, or since `reset_measures`.
struct cache_measures {
  std::int64_t budget_bytes = 0;    ///< of all places
  std::int64_t place_bytes = 0;     ///< what one piece takes up
  std::int64_t piece_bytes = 0;     ///< what is read for one piece
  std::int64_t resident_bytes = 0;  ///< now, pieces on their way included
  std::int64_t peak_bytes = 0;      ///< the most that was
  std::int64_t moved_bytes = 0;     ///< read from the store
  std::int64_t unused_loads = 0;    ///< pieces that were read ahead and given up before a call used them
  std::vector<layer_measures> layers = {};
  std::vector<call_measures> calls = {};  ///< the first `record_calls` of them

  /// The sum over the layers.
  layer_measures all() const {
    layer_measures sum;
    for (layer_measures const& l : layers) {
      sum.calls += l.calls;
      sum.needed += l.needed;
      sum.hits += l.hits;
      sum.on_the_way += l.on_the_way;
      sum.loads += l.loads;
      sum.waiting_seconds += l.waiting_seconds;
    }
    return sum;
  }
};

namespace detail {

struct json_object {
  std::string text = "{";
  template <class Number>
  json_object& add(char const* name, Number value) {
    text += (text.size() > 1 ? ", \"" : "\"") + std::string(name) + "\": " + std::to_string(value);
    return *this;
  }
  std::string end() { return text + "}"; }
};

}  // namespace detail

/// The same as JSON, on one line.
inline std::string to_json(cache_measures const& m) {
  detail::json_object result;
  result.add("budget_bytes", m.budget_bytes)
      .add("place_bytes", m.place_bytes)
      .add("piece_bytes", m.piece_bytes)
      .add("resident_bytes", m.resident_bytes)
      .add("peak_bytes", m.peak_bytes)
      .add("moved_bytes", m.moved_bytes)
      .add("unused_loads", m.unused_loads);
  auto const list = [&](char const* name, auto const& items, auto const& object_of) {
    result.text += std::string(", \"") + name + "\": [";
    for (std::size_t i = 0; i < items.size(); ++i) result.text += (i > 0 ? ", " : "") + object_of(items[i]);
    result.text += "]";
  };
  list("layers", m.layers, [](layer_measures const& l) {
    return detail::json_object()
        .add("calls", l.calls)
        .add("needed", l.needed)
        .add("hits", l.hits)
        .add("on_the_way", l.on_the_way)
        .add("loads", l.loads)
        .add("waiting_seconds", l.waiting_seconds)
        .end();
  });
  list("calls", m.calls, [](call_measures const& c) {
    return detail::json_object()
        .add("layer", c.layer)
        .add("needed", c.needed)
        .add("hits", c.hits)
        .add("on_the_way", c.on_the_way)
        .add("moved_bytes", c.moved_bytes)
        .add("resident_bytes", c.resident_bytes)
        .add("begin_seconds", c.begin_seconds)
        .add("seconds", c.seconds)
        .add("waiting_seconds", c.waiting_seconds)
        .end();
  });
  return result.end();
}

}  // namespace switchyard::offload
