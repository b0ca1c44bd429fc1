#pragma once

#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "layers.hpp"
#include "reference.hpp"

/// What the tests of whole layers share: the reference's view of a layer, layers behind function pointers (so that
/// the tests are compiled once and not once per layer), random problems and pools of threads.
namespace support {

namespace sy = switchyard;

// ---- a layer in the words of the reference ----

inline void describe_score(reference::config& c, sy::router::scores::softmax) { c.scores = reference::score::softmax; }
inline void describe_score(reference::config& c, sy::router::scores::sigmoid) { c.scores = reference::score::sigmoid; }
inline void describe_score(reference::config& c, sy::router::scores::logits) { c.scores = reference::score::logits; }

inline void describe_selection(reference::config&, sy::router::selection::best) {}
inline void describe_selection(reference::config&, sy::router::selection::corrected) {}
template <int Groups, int KeptGroups, sy::router::selection::group_score Judge, class Inner>
void describe_selection(reference::config& c, sy::router::selection::grouped<Groups, KeptGroups, Judge, Inner>) {
  c.groups = Groups;
  c.kept_groups = KeptGroups;
  bool const by_best = Judge == sy::router::selection::group_score::max;
  c.group_by = by_best ? reference::group_score::max : reference::group_score::top2_sum;
}

inline void describe_weighting(reference::config&, sy::router::weighting::as_scored) {}
inline void describe_weighting(reference::config& c, sy::router::weighting::sum) { c.normalise = reference::norm::sum; }
inline void describe_weighting(reference::config& c, sy::router::weighting::l2) { c.normalise = reference::norm::l2; }
inline void describe_weighting(reference::config& c, sy::router::weighting::softmax) { c.softmax_after_top_k = true; }

// Named routers and wrappers inherit what they are made of, so an overload for a base takes all that has no own.
template <class Scores, class Selection, class Weighting>
void describe_router(reference::config& c, sy::router::top_k<Scores, Selection, Weighting> const*) {
  describe_score(c, Scores{});
  describe_selection(c, Selection{});
  describe_weighting(c, Weighting{});
}
template <int Numerator, int Denominator>
void describe_router(reference::config& c, sy::router::sparsemixer<Numerator, Denominator> const*) {
  c.scores = reference::score::sparsemixer;
  c.jitter = double(Numerator) / Denominator;
}
inline void describe_router(reference::config& c, sy::router::precomputed const*) {
  c.scores = reference::score::precomputed;
}
template <class Base, int Numerator, int Denominator>
void describe_router(reference::config& c, sy::router::scaled<Base, Numerator, Denominator> const*) {
  describe_router(c, static_cast<Base const*>(nullptr));
  c.scaling *= double(Numerator) / Denominator;
}

inline void describe_clustering(reference::clustering& to, sy::clustering_traits from) {
  to.scales = from.scales;
  if (from.measure == sy::dispersion::variance) to.measure = reference::spread::variance;
  to.alpha = double(from.alpha_numerator) / from.alpha_denominator;
  to.clip = double(from.clip_numerator) / from.clip_denominator;
  switch (from.scaling) {
    case sy::feature_scaling::per_feature: to.scaling = reference::feature_scaling::per_feature; break;
    case sy::feature_scaling::global: to.scaling = reference::feature_scaling::global; break;
    case sy::feature_scaling::none: to.scaling = reference::feature_scaling::none; break;
  }
  to.unit_rows = from.unit_rows;
  to.experts_see_scaled = from.experts_see_scaled;
  to.counts_empty = from.counts_empty;
}

inline void describe_capacity(reference::config&, sy::capacity::dropless const*) {}
template <std::int64_t Slots>
void describe_capacity(reference::config& c, sy::capacity::fixed<Slots> const*) {
  c.slots = Slots;
}
template <int Numerator, int Denominator>
void describe_capacity(reference::config& c, sy::capacity::share_of_tokens<Numerator, Denominator> const*) {
  c.slot_rule = [](reference::config const&, std::int64_t tokens) {
    return reference::slots_share(tokens, Numerator, Denominator);
  };
}
template <int Numerator, int Denominator, sy::capacity::rounding Rounding, int Minimum, int Alignment>
void describe_capacity(reference::config& c,
                       sy::capacity::factor<Numerator, Denominator, Rounding, Minimum, Alignment> const*) {
  c.slot_rule = [](reference::config const& of, std::int64_t tokens) {
    int const experts = of.experts, top_k = of.top_k;
    using sy::capacity::rounding;
    std::int64_t slots = 0;
    switch (Rounding) {
      case rounding::ceil: slots = reference::slots_ceil(tokens, experts, top_k, Numerator, Denominator); break;
      case rounding::mesh: slots = reference::slots_mesh(tokens, experts, Numerator, Denominator, 0); break;
      case rounding::fairseq: slots = reference::slots_fairseq(tokens, experts, Numerator, Denominator); break;
      case rounding::tutel: slots = reference::slots_tutel(tokens, experts, top_k, Numerator, Denominator); break;
    }
    return reference::ceil_div(std::max<std::int64_t>(slots, Minimum), Alignment) * Alignment;
  };
}

inline void describe_activation(reference::config& c, sy::relu) { c.act = reference::activation::relu; }
inline void describe_activation(reference::config& c, sy::relu_squared) { c.act = reference::activation::relu_squared; }
inline void describe_activation(reference::config& c, sy::gelu) { c.act = reference::activation::gelu; }
inline void describe_activation(reference::config& c, sy::gelu_tanh) { c.act = reference::activation::gelu_tanh; }
inline void describe_activation(reference::config& c, sy::silu) { c.act = reference::activation::silu; }
template <int LimitNumerator, int LimitDenominator, int AlphaNumerator, int AlphaDenominator>
void describe_activation(reference::config& c,
                         sy::clamped_swiglu<LimitNumerator, LimitDenominator, AlphaNumerator, AlphaDenominator>) {
  c.act = reference::activation::clamped_swiglu;
  c.clamp_limit = double(LimitNumerator) / LimitDenominator;
  c.clamp_alpha = double(AlphaNumerator) / AlphaDenominator;
}

template <class Layer>
reference::config reference_config() {
  reference::config c;
  c.hidden = Layer::dims.hidden;
  c.intermediate = Layer::dims.intermediate;
  c.experts = Layer::dims.experts;
  c.top_k = Layer::dims.top_k;
  describe_router(c, static_cast<typename Layer::router const*>(nullptr));
  c.weight_on_input = Layer::router_traits.weighs_input;
  describe_clustering(c.clusters, Layer::router_traits.clustering);
  constexpr sy::stratification_traits strata = Layer::router_traits.stratification;
  if constexpr (strata.strata > 0) {
    for (int i = 0; i < strata.strata; ++i) {
      c.strata.push_back(Layer::router::first_expert(i + 1) - Layer::router::first_expert(i));
    }
    c.stratum_norms = strata.norms;
    c.normalised_residual = strata.normalised_residual || !strata.norms;
  }

  describe_capacity(c, static_cast<typename Layer::capacity const*>(nullptr));
  switch (Layer::capacity_traits.order) {
    case sy::queue::token_order: c.order = reference::queue::token; break;
    case sy::queue::choice_order: c.order = reference::queue::choice; break;
    case sy::queue::priority: c.order = reference::queue::priority; break;
  }
  switch (Layer::capacity_traits.on_drop) {
    case sy::dropped::zero: c.dropped = reference::dropped_output::zero; break;
    case sy::dropped::weighted_input: c.dropped = reference::dropped_output::weighted_input; break;
    case sy::dropped::input: c.dropped = reference::dropped_output::input; break;
  }
  if (Layer::capacity_traits.renormalises) {
    c.normalise = reference::norm::sum;
    c.normalise_after_dropping = true;
  }

  constexpr sy::expert_traits expert = Layer::expert_traits;
  describe_activation(c, typename Layer::expert::activation{});
  c.gated = expert.gated;
  c.expert_output_scale = double(expert.scale_numerator) / expert.scale_denominator;
  c.shared_intermediate = expert.shared_intermediate;
  if (expert.shared_intermediate > 0) {
    bool const gated = expert.gate == sy::shared_gate::sigmoid;
    c.shared = gated ? reference::shared_expert::sigmoid_gated : reference::shared_expert::plain;
  }
  return c;
}

// ---- a layer behind function pointers ----

/// Of the layers that the tests know.
inline constexpr int most_strata = 4;

using any_matrix = sy::weight_view<void>;
using any_vector = sy::bias_view<void>;

/// `forward_args` of any layer. What a layer does not have is not read.
struct any_args {
  void const* tokens = nullptr;
  std::int64_t rows = 0;
  std::int64_t token_stride = 0;
  void const* residual = nullptr;
  std::int64_t residual_stride = 0;
  sy::router_weights router[most_strata] = {};  ///< a layer without strata has the first
  sy::layer_norm norm[most_strata] = {};
  any_matrix gate_proj, up_proj, down_proj;
  any_vector gate_bias, up_bias, down_bias;
  any_matrix shared_gate_proj, shared_up_proj, shared_down_proj;
  void const* shared_gate = nullptr;
  void* output = nullptr;
  std::int64_t output_stride = 0;
  std::span<std::byte> workspace;
  sy::precomputed_routes routes;
  sy::token_clusters clusters;
  std::int64_t tokens_per_group = 0;
  std::uint8_t const* active = nullptr;
  sy::decisions decisions;
  sy::auxiliary_values* auxiliary = nullptr;
};

/// Memory that a layer's arguments point to. Null functions: the host's.
struct memory_space {
  void* (*allocate)(std::size_t bytes) = nullptr;  ///< at a multiple of 256
  void (*release)(void* memory) = nullptr;
  void (*copy_in)(void* to, void const* from, std::size_t bytes) = nullptr;
  void (*copy_out)(void* to, void const* from, std::size_t bytes) = nullptr;
};

/// How the tests reach a backend: `memory` and `forward<Layer>(args, context)`, which returns when the work is done.
template <class Backend>
struct reached;
template <>
struct reached<sy::backend::cpu> {
  static memory_space memory() { return {}; }
  template <class Layer>
  static void forward(typename Layer::args const& args, sy::cpu_context const& context) {
    Layer::forward(args, context);
  }
};

struct any_layer {
  std::string name;
  sy::router_traits router;
  sy::capacity_traits capacity;
  sy::expert_traits expert;
  reference::config reference;
  std::string_view element;
  std::size_t element_bytes;
  memory_space memory;
  std::size_t (*workspace_bytes)(std::int64_t tokens);
  void (*forward)(any_args const& args, sy::cpu_context const& context);
  void (*store)(double const* from, std::size_t count, void* to);  ///< as elements
  void (*load)(void const* from, std::size_t count, float* to);
};

template <class Layer>
void forward_any(any_args const& from, sy::cpu_context const& context) {
  using element = typename Layer::element;
  auto const data = [](void const* p) { return static_cast<element const*>(p); };
  auto const matrix = [&](any_matrix const& m) {
    return sy::weight_view<element>{data(m.data), m.expert_stride, m.row_stride, m.column_stride};
  };
  auto const vector = [&](any_vector const& v) {
    return sy::bias_view<element>{data(v.data), v.expert_stride, v.stride};
  };
  typename Layer::args args{};
  args.tokens = {data(from.tokens), from.rows, Layer::dims.hidden, from.token_stride};
  args.output = {static_cast<element*>(from.output), from.rows, Layer::dims.hidden, from.output_stride};
  [[maybe_unused]] auto const set_router = [&](auto& router) {
    if constexpr (Layer::router_traits.stratification.strata > 0) {
      std::copy(from.router, from.router + Layer::strata_or_one, router.gate);
    } else {
      router = from.router[0];
    }
  };
  if constexpr (Layer::router_traits.precomputed) {
    args.routes = from.routes;
  } else if constexpr (Layer::router_traits.gate == sy::gate_owner::model) {
    set_router(args.shared_router);
  } else {
    set_router(args.weights.router);
  }
  if constexpr (Layer::router_traits.stratification.strata > 0) {
    args.residual = {data(from.residual), from.rows, Layer::dims.hidden, from.residual_stride};
    if constexpr (Layer::router_traits.stratification.norms) {
      std::copy(from.norm, from.norm + Layer::strata_or_one, args.weights.norm.after);
    }
  }
  if constexpr (Layer::expert_traits.gated) args.weights.gate_proj = matrix(from.gate_proj);
  args.weights.up_proj = matrix(from.up_proj);
  args.weights.down_proj = matrix(from.down_proj);
  if constexpr (Layer::expert_traits.bias) {
    args.weights.bias = {vector(from.gate_bias), vector(from.up_bias), vector(from.down_bias)};
  }
  if constexpr (Layer::expert_traits.shared_intermediate > 0) {
    args.weights.shared = {matrix(from.shared_gate_proj), matrix(from.shared_up_proj), matrix(from.shared_down_proj),
                           data(from.shared_gate)};
  }
  if constexpr (Layer::router_traits.clustering.scales) args.clusters = from.clusters;
  args.workspace = from.workspace;
  args.tokens_per_group = from.tokens_per_group;
  args.active = from.active;
  args.decisions = from.decisions;
  if constexpr (!Layer::router_traits.precomputed) args.auxiliary = from.auxiliary;
  reached<typename Layer::backend>::template forward<Layer>(args, context);
}

template <class Element>
void store_elements(double const* from, std::size_t count, void* to) {
  for (std::size_t i = 0; i < count; ++i) static_cast<Element*>(to)[i] = Element(static_cast<float>(from[i]));
}

template <class Element>
void load_elements(void const* from, std::size_t count, float* to) {
  for (std::size_t i = 0; i < count; ++i) to[i] = static_cast<float>(static_cast<Element const*>(from)[i]);
}

template <class Layer>
any_layer erase() {
  using element = typename Layer::element;
  return {.name = sy::describe<Layer>(),
          .router = Layer::router_traits,
          .capacity = Layer::capacity_traits,
          .expert = Layer::expert_traits,
          .reference = reference_config<Layer>(),
          .element = sy::element_name<element>,
          .element_bytes = sizeof(element),
          .memory = reached<typename Layer::backend>::memory(),
          .workspace_bytes = &Layer::workspace_bytes,
          .forward = &forward_any<Layer>,
          .store = &store_elements<element>,
          .load = &load_elements<element>};
}

/// The layers that the program has compiled, from the lists of layers.hpp.
inline std::vector<any_layer>& compiled_layers() {
  static std::vector<any_layer> all;
  return all;
}

template <class... Layers>
bool compile_all(std::tuple<Layers...> const*) {
  (compiled_layers().push_back(erase<Layers>()), ...);
  return true;
}

/// Compiles a list of layers, moved to a backend, and adds it: for the initialiser of a static object.
template <class List, class Backend>
bool compile() {
  return compile_all(static_cast<tested::on<List, Backend> const*>(nullptr));
}

inline any_layer const& compiled(std::string const& name) {
  for (any_layer const& l : compiled_layers()) {
    if (l.name == name) return l;
  }
  throw std::logic_error("no file compiles the layer " + name);
}

// ---- pools of threads ----

/// A thread per worker, started anew for each piece of work: slow, and all that a test needs.
struct thread_per_worker {
  static void run(void*, int workers, void (*body)(void* argument, int worker), void* argument) {
    std::vector<std::thread> threads;
    for (int w = 0; w < workers; ++w) threads.emplace_back(body, argument, w);
    for (std::thread& t : threads) t.join();
  }
  static sy::thread_pool pool(int workers) { return {nullptr, workers, &run}; }
};

/// All workers on the calling thread, the last one first.
struct one_after_the_other {
  static void run(void*, int workers, void (*body)(void* argument, int worker), void* argument) {
    for (int w = workers - 1; w >= 0; --w) body(argument, w);
  }
  static sy::thread_pool pool(int workers) { return {nullptr, workers, &run}; }
};

// ---- memory with guards ----

/// An array between two guards, in a pattern that is a NaN as a float. `past` bytes beyond a multiple of 64.
class guarded {
 public:
  explicit guarded(std::size_t bytes, std::size_t past = 0) : bytes_(bytes), memory_(bytes + 64 + past + 2 * guard) {
    std::memset(memory_.data(), pattern, memory_.size());
    auto const address = reinterpret_cast<std::uintptr_t>(memory_.data());
    first_ = guard + (64 - (address + guard) % 64) % 64 + past;
  }
  std::byte* data() { return memory_.data() + first_; }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data());
  }
  std::size_t size() const { return bytes_; }
  std::vector<std::byte>& with_guards() { return memory_; }
  bool guards_intact() const { return untouched(0, first_) && untouched(first_ + bytes_, memory_.size()); }
  bool untouched() const { return untouched(0, memory_.size()); }

  static constexpr int pattern = 0xff;

 private:
  static constexpr std::size_t guard = 64;

  bool untouched(std::size_t begin, std::size_t end) const {
    for (std::size_t i = begin; i < end; ++i) {
      if (memory_[i] != std::byte{pattern}) return false;
    }
    return true;
  }

  std::size_t bytes_, first_;
  std::vector<std::byte> memory_;
};

/// Where the buffers of one call are: the host's own, or copies in a memory space.
class placement {
 public:
  explicit placement(memory_space const& space) : space_(space) {}
  placement(placement const&) = delete;
  ~placement() {
    for (void* p : allocated_) space_.release(p);
  }

  /// What the layer only reads.
  template <class T>
  T const* place(T const* first, std::size_t bytes) {
    if (space_.allocate == nullptr || bytes == 0) return first;
    void* const copy = allocate(bytes);
    space_.copy_in(copy, first, bytes);
    return static_cast<T const*>(copy);
  }
  template <class T>
  T const* place(std::vector<T> const& values) {
    return place(values.data(), values.size() * sizeof(T));
  }

  /// What the layer may write: with its guards, as far past a multiple of 64 as on the host. Without `contents` only the
  /// guards are written, so that a tool can tell what the layer reads before it writes.
  std::byte* place(guarded& buffer, bool contents = true) {
    if (space_.allocate == nullptr) return buffer.data();
    std::vector<std::byte>& all = buffer.with_guards();
    std::size_t const begin = static_cast<std::size_t>(buffer.data() - all.data());
    std::byte* const copy =
        static_cast<std::byte*>(allocate(all.size() + 64)) + reinterpret_cast<std::uintptr_t>(all.data()) % 64;
    if (contents) {
      space_.copy_in(copy, all.data(), all.size());
    } else {
      space_.copy_in(copy, all.data(), begin);
      space_.copy_in(copy + begin + buffer.size(), buffer.data() + buffer.size(), all.size() - begin - buffer.size());
    }
    written_.push_back({&buffer, copy, contents});
    return copy + begin;
  }

  /// Brings back what the layer wrote.
  void fetch() {
    for (auto const& [buffer, copy, contents] : written_) {
      std::vector<std::byte>& all = buffer->with_guards();
      std::size_t const begin = static_cast<std::size_t>(buffer->data() - all.data()), end = begin + buffer->size();
      if (contents) {
        space_.copy_out(all.data(), copy, all.size());
      } else {
        space_.copy_out(all.data(), copy, begin);
        space_.copy_out(all.data() + end, copy + end, all.size() - end);
      }
    }
  }

 private:
  struct written_buffer {
    guarded* buffer;
    std::byte* copy;
    bool contents;
  };

  void* allocate(std::size_t bytes) {
    allocated_.push_back(space_.allocate(bytes));
    return allocated_.back();
  }

  memory_space space_;
  std::vector<void*> allocated_;
  std::vector<written_buffer> written_;
};

// ---- random problems ----

/// Where tokens are sent: all over, all to one expert (as first choice), or none to half of the experts.
enum class routing { free, one_expert, half_of_the_experts };

inline constexpr char const* name_of(routing r) {
  return r == routing::free ? "free" : r == routing::one_expert ? "one expert" : "half of the experts";
}

/// Weights and tokens, in double but exact in the layer's element type, so that reference and layer see the same.
struct problem {
  any_layer const* layer = nullptr;
  reference::config config;
  reference::weights weights;
  reference::numbers tokens;
  reference::inputs inputs;
};

class random_numbers {
 public:
  explicit random_numbers(unsigned seed) : engine_(seed) {}
  double normal() {  // by the central limit: the same numbers with every standard library
    double sum = 0;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum - 6.0;
  }
  double uniform() { return static_cast<double>(engine_()) / 4294967296.0; }
  int below(int count) { return static_cast<int>(engine_() % static_cast<unsigned>(count)); }

 private:
  std::mt19937 engine_;
};

/// Random numbers of a deviation that the element type holds exactly.
inline reference::numbers random_elements(any_layer const& layer, random_numbers& random, std::size_t count,
                                          double deviation) {
  reference::numbers values(count);
  for (double& v : values) v = deviation * random.normal();
  std::vector<std::byte> stored(count * layer.element_bytes);
  std::vector<float> loaded(count);
  layer.store(values.data(), count, stored.data());
  layer.load(stored.data(), count, loaded.data());
  return {loaded.begin(), loaded.end()};
}

/// Random numbers that a float holds exactly.
inline reference::numbers random_floats(random_numbers& random, std::size_t count, double deviation) {
  reference::numbers values(count);
  for (double& v : values) v = static_cast<float>(deviation * random.normal());
  return values;
}

/// Relative distance of two scores that a decision depends on. Float logits are accurate to 1e-6 or so, so their
/// order is that of the reference.
inline constexpr double least_margin = 1e-3;
/// The same for the places of two tokens in a queue: over a hundred of them have to differ.
inline constexpr double least_queue_margin = 1e-5;

inline bool apart(double a, double b, double margin = least_margin) {
  if (a == b) return std::isinf(a);
  return std::abs(a - b) > margin * std::max(std::abs(a), std::abs(b));
}

/// The largest `count` values and the next one are in an order that rounding does not change.
inline bool order_is_clear(reference::numbers values, int count, double margin = least_margin) {
  std::sort(values.begin(), values.end(), std::greater<>());
  for (int i = 0; i < count && i + 1 < static_cast<int>(values.size()); ++i) {
    if (!apart(values[i], values[i + 1], margin)) return false;
  }
  return true;
}

/// Whether rounding cannot change what a token with these logits is sent to.
inline bool choice_is_clear(reference::config const& c, reference::numbers const& logits,
                            reference::numbers const& correction, double margin = least_margin) {
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
  for (std::size_t e = 0; e < correction.size(); ++e) keys[e] += correction[e];
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

/// Draws tokens again until no decision of a layer with clusters hangs on rounding: the weights of the features depend on
/// all tokens. One cluster in four has no token.
inline void redraw_until_clear(problem& p, random_numbers& random) {
  reference::config const& c = p.config;
  std::size_t const hidden = c.hidden, tokens = p.tokens.size() / hidden;
  p.inputs.label_choices = 2;
  for (std::size_t t = 0; t < tokens; ++t) {
    int label = 0;
    do label = random.below(c.experts);
    while (label % 4 == 1);
    p.inputs.labels.insert(p.inputs.labels.end(), {label, random.below(c.experts)});
  }
  for (int round = 0; round < 10000; ++round) {
    reference::cluster_table const table = reference::cluster_features(c, p.tokens, p.inputs);
    reference::numbers const logits =
        reference::router_logits(c, p.weights, reference::scaled_tokens(c, p.tokens, p.inputs, table.scale));
    bool clear = true;
    std::vector<double> queue;
    for (std::size_t t = 0; t < tokens; ++t) {
      reference::numbers const mine(logits.begin() + t * c.experts, logits.begin() + (t + 1) * c.experts);
      double const priority = reference::route(c, mine, p.weights.correction_bias).priority;
      auto const close = [&](double other) { return std::abs(other - priority) < least_queue_margin; };
      bool const tied = c.order == reference::queue::priority && std::any_of(queue.begin(), queue.end(), close);
      queue.push_back(priority);
      if (!tied && choice_is_clear(c, mine, p.weights.correction_bias)) continue;
      clear = false;
      reference::numbers token = random_elements(*p.layer, random, hidden, 1.0);
      token[0] = 1.0;
      std::copy(token.begin(), token.end(), p.tokens.begin() + t * hidden);
    }
    if (clear) return;
  }
  throw std::logic_error("no tokens with a margin: " + p.layer->name);
}

/// The same for a layer with strata, whose later passes see what earlier ones made, stored as elements.
inline void redraw_until_each_pass_is_clear(problem& p, random_numbers& random) {
  reference::config const& c = p.config;
  std::size_t const hidden = c.hidden;
  for (int round = 0; round < 10000; ++round) {
    std::vector<std::int64_t> unclear;
    for (reference::result::pass const& pass : reference::forward(c, p.weights, p.tokens, p.inputs).made) {
      reference::config of_pass = c;
      int closed = 0;
      std::size_t router_row = 0;
      for (int i = 0; i < pass.stratum; ++i) {
        router_row += c.experts - closed;
        closed += c.strata[i];
      }
      of_pass.experts = c.experts - closed;
      of_pass.top_k = std::min(c.top_k, of_pass.experts);
      reference::numbers correction = p.weights.correction_bias;
      if (!correction.empty()) {
        correction.assign(p.weights.correction_bias.begin() + router_row,
                          p.weights.correction_bias.begin() + router_row + of_pass.experts);
      }
      double const margin = pass.stratum > 0 && p.layer->element_bytes < 4 ? 2e-2 : least_margin;
      std::vector<double> queue;
      for (std::size_t row = 0; row < pass.tokens.size(); ++row) {
        auto const first = pass.logits.begin() + row * of_pass.experts;
        reference::numbers const mine(first, first + of_pass.experts);
        double const priority = reference::route(of_pass, mine, correction).priority;
        auto const close = [&](double other) { return std::abs(other - priority) < least_queue_margin; };
        bool const tied = c.order == reference::queue::priority && std::any_of(queue.begin(), queue.end(), close);
        queue.push_back(priority);
        if (tied || !choice_is_clear(of_pass, mine, correction, margin)) unclear.push_back(pass.tokens[row]);
      }
    }
    if (unclear.empty()) return;
    for (std::int64_t t : unclear) {
      reference::numbers token = random_elements(*p.layer, random, hidden, 1.0);
      token[0] = 1.0;
      std::copy(token.begin(), token.end(), p.tokens.begin() + t * hidden);
    }
  }
  throw std::logic_error("no tokens with a margin: " + p.layer->name);
}

/// A random problem whose decisions do not hang on rounding: tokens near a tie are drawn again.
inline problem random_problem(any_layer const& layer, std::int64_t tokens, routing where, unsigned seed) {
  random_numbers random(seed);
  problem p;
  p.layer = &layer;
  p.config = layer.reference;
  reference::config const& c = p.config;
  std::size_t const matrix = std::size_t(c.hidden) * c.intermediate;
  double const in = 1.0 / std::sqrt(c.hidden), out = 1.0 / std::sqrt(c.intermediate);
  auto const elements = [&](std::size_t count, double deviation) {
    return random_elements(layer, random, count, deviation);
  };
  reference::weights& w = p.weights;
  w.up_proj = elements(c.experts * matrix, in);
  w.down_proj = elements(c.experts * matrix, out);
  if (c.gated) w.gate_proj = elements(c.experts * matrix, in);
  if (layer.expert.bias) {
    w.up_bias = elements(std::size_t(c.experts) * c.intermediate, 0.5);
    w.down_bias = elements(std::size_t(c.experts) * c.hidden, 0.5);
    if (c.gated) w.gate_bias = elements(std::size_t(c.experts) * c.intermediate, 0.5);
  }
  if (c.shared_intermediate > 0) {
    std::size_t const shared = std::size_t(c.hidden) * c.shared_intermediate;
    w.shared_up_proj = elements(shared, in);
    w.shared_down_proj = elements(shared, 1.0 / std::sqrt(c.shared_intermediate));
    if (c.gated) w.shared_gate_proj = elements(shared, in);
    if (layer.expert.gate == sy::shared_gate::sigmoid) w.shared_gate = elements(c.hidden, in);
  }

  // The first feature of every token is 1, so the first column of the router weight moves all tokens.
  int const hot = c.experts / 2;
  auto const closed = [&](int e) {
    return where == routing::half_of_the_experts && e >= std::max(c.top_k, c.experts / 2);
  };
  if (c.scores != reference::score::precomputed) {
    std::size_t const rows = reference::router_rows(c);
    w.router = random_floats(random, rows * c.hidden, in);
    for (int e = 0; e < c.experts; ++e) {  // with strata: of the first gate
      double& constant = w.router[std::size_t(e) * c.hidden];
      if (closed(e)) constant = -8.0;
      if (where == routing::one_expert && e == hot) constant = 5.0;
    }
    if (layer.router.bias) w.router_bias = random_floats(random, rows, 0.5);
    if (layer.router.correction_bias) w.correction_bias = random_floats(random, rows, 0.1);
  }
  if (!c.strata.empty()) {
    w.norm_weight = random_floats(random, c.strata.size() * c.hidden, 0.2);
    for (double& v : w.norm_weight) v = static_cast<float>(v + 1.0);
    w.norm_bias = random_floats(random, c.strata.size() * c.hidden, 0.2);
    p.inputs.residual = elements(std::size_t(tokens) * c.hidden, 1.0);
  }

  std::vector<double> queue;
  int tries = 0;
  for (std::int64_t t = 0; t < tokens;) {
    if (++tries > 100000) throw std::logic_error("no tokens with a margin: " + layer.name);
    reference::numbers token = elements(c.hidden, 1.0);
    token[0] = 1.0;
    reference::choice chosen;
    if (!c.strata.empty()) {
      p.tokens.insert(p.tokens.end(), token.begin(), token.end());
      ++t;
      continue;
    }
    if (c.scores == reference::score::precomputed) {
      int const open = where == routing::half_of_the_experts ? std::max(c.top_k, c.experts / 2) : c.experts;
      while (static_cast<int>(chosen.ids.size()) < c.top_k) {
        int const id = where == routing::one_expert && chosen.ids.empty() ? hot : random.below(open);
        if (std::find(chosen.ids.begin(), chosen.ids.end(), id) == chosen.ids.end()) chosen.ids.push_back(id);
      }
      chosen.weights = random_floats(random, c.top_k, 1.0);
      chosen.priority = chosen.weights[0];
    } else {
      reference::numbers const logits = reference::router_logits(c, w, token);
      if (!choice_is_clear(c, logits, w.correction_bias)) continue;
      chosen = reference::route(c, logits, w.correction_bias);
    }
    if (c.order == reference::queue::priority) {
      auto const close = [&](double other) { return std::abs(other - chosen.priority) < least_queue_margin; };
      if (std::any_of(queue.begin(), queue.end(), close)) continue;
      queue.push_back(chosen.priority);
    }
    if (c.scores == reference::score::precomputed) {
      p.inputs.ids.insert(p.inputs.ids.end(), chosen.ids.begin(), chosen.ids.end());
      p.inputs.id_weights.insert(p.inputs.id_weights.end(), chosen.weights.begin(), chosen.weights.end());
    }
    p.tokens.insert(p.tokens.end(), token.begin(), token.end());
    ++t;
  }
  if (c.clusters.scales) redraw_until_clear(p, random);
  if (!c.strata.empty()) redraw_until_each_pass_is_clear(p, random);
  return p;
}

// ---- one call of forward ----

/// How the experts' matrices are stored.
enum class layout {
  separate,                 ///< gate and up apart
  concatenated,             ///< one tensor, first all gate features
  interleaved,              ///< one tensor, features take turns
  transposed,               ///< gate and up apart, input features first
  transposed_concatenated,  ///< one tensor, input features first
  transposed_interleaved
};

inline constexpr layout all_layouts[] = {layout::separate,
                                         layout::concatenated,
                                         layout::interleaved,
                                         layout::transposed,
                                         layout::transposed_concatenated,
                                         layout::transposed_interleaved};

inline constexpr char const* name_of(layout l) {
  constexpr char const* names[] = {
      "separate", "concatenated", "interleaved", "transposed", "transposed_concatenated", "transposed_interleaved"};
  return names[static_cast<int>(l)];
}

/// How `run` calls a layer.
struct call {
  sy::cpu_context context{.threads = 1};
  layout stored = layout::separate;
  bool in_place = false;
  bool onto_residual = false;  ///< the output is the residual of a stratified layer
  std::int64_t padding = 0;    ///< elements between the rows of tokens and output
  bool decisions = true;
};

/// What a call decided and computed.
struct outcome {
  std::vector<float> output;
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::vector<std::uint8_t> dropped;
  std::vector<std::int64_t> counts, load;
  std::vector<float> logits;
  std::vector<float> feature_scale, dispersion;
  std::vector<std::uint8_t> passes;
  sy::auxiliary_values auxiliary;
  bool guards_intact = true;  ///< nothing was written beside what was asked for, nor to gaps between rows
};

/// The matrices [matrices, rows, columns] of gate and up in one layout, and views of them.
struct stored_input {
  std::vector<std::byte> memory;
  any_matrix gate, up;
};

inline stored_input store_input(any_layer const& layer, reference::numbers const& gate, reference::numbers const& up,
                                std::int64_t rows, std::int64_t columns, layout l) {
  std::int64_t const matrices = static_cast<std::int64_t>(up.size()) / (rows * columns);
  bool const gated = !gate.empty(), by_input = l >= layout::transposed;
  int const order = static_cast<int>(l) % 3;
  bool const concatenated = gated && order == 1, interleaved = gated && order == 2;
  std::int64_t const features = concatenated || interleaved ? 2 * rows : rows;
  std::int64_t const matrix = features * columns;
  std::int64_t const row = by_input ? 1 : columns, column = by_input ? features : 1;
  std::int64_t const up_begin = concatenated ? rows * row : interleaved ? row : gated ? matrices * matrix : 0;

  reference::numbers values(gate.size() + up.size());
  for (std::int64_t m = 0; m < matrices; ++m) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < columns; ++c) {
        std::int64_t const at = m * matrix + (interleaved ? 2 * r : r) * row + c * column;
        std::int64_t const from = (m * rows + r) * columns + c;
        if (gated) values[at] = gate[from];
        values[up_begin + at] = up[from];
      }
    }
  }
  stored_input out;
  out.memory.resize(values.size() * layer.element_bytes);
  layer.store(values.data(), values.size(), out.memory.data());
  auto const view_of = [&](sy::weight_view<double> const& v) {
    std::int64_t const bytes = (v.data - values.data()) * static_cast<std::int64_t>(layer.element_bytes);
    return any_matrix{out.memory.data() + bytes, v.expert_stride, v.row_stride, v.column_stride};
  };
  using matrices_of = sy::weight_view<double>;
  auto const apart = [&](double const* first) {
    return by_input ? matrices_of::transposed(first, rows, columns) : matrices_of::packed(first, rows, columns);
  };
  if (concatenated || interleaved) {
    auto const views = sy::split_gate_up<double>(
        values.data(), rows, columns, concatenated ? sy::gate_up_order::concatenated : sy::gate_up_order::interleaved,
        by_input ? sy::storage::input_major : sy::storage::output_major);
    out.gate = view_of(views.gate);
    out.up = view_of(views.up);
  } else {
    if (gated) out.gate = view_of(apart(values.data()));
    out.up = view_of(apart(values.data() + up_begin));
  }
  return out;
}

/// Runs a layer once, on memory of exactly the sizes that it asks for, each between guards.
inline outcome run(problem const& p, call const& how = {}) {
  any_layer const& layer = *p.layer;
  reference::config const& c = p.config;
  reference::weights const& w = p.weights;
  auto const tokens = static_cast<std::int64_t>(p.tokens.size()) / c.hidden;
  auto const elements = [&](reference::numbers const& values) {
    std::vector<std::byte> memory(values.size() * layer.element_bytes);
    layer.store(values.data(), values.size(), memory.data());
    return memory;
  };
  auto const floats = [](reference::numbers const& values) { return std::vector<float>(values.begin(), values.end()); };

  stored_input const in = store_input(layer, w.gate_proj, w.up_proj, c.intermediate, c.hidden, how.stored);
  stored_input const down = store_input(layer, {}, w.down_proj, c.hidden, c.intermediate, how.stored);
  std::vector<std::byte> const gate_bias = elements(w.gate_bias), up_bias = elements(w.up_bias);
  std::vector<std::byte> const down_bias = elements(w.down_bias), shared_gate = elements(w.shared_gate);
  std::vector<float> const router = floats(w.router), bias = floats(w.router_bias);
  std::vector<float> const correction = floats(w.correction_bias);

  placement placed(layer.memory);
  std::map<void const*, std::byte const*> tensors;  // gate and up may be in one, and then are so for the layer, too
  auto const matrix_of = [&](stored_input const& stored, any_matrix view) {
    auto const [tensor, is_new] = tensors.try_emplace(stored.memory.data());
    if (is_new) tensor->second = placed.place(stored.memory);
    auto const offset = static_cast<std::byte const*>(view.data) - stored.memory.data();
    return any_matrix{tensor->second + offset, view.expert_stride, view.row_stride, view.column_stride};
  };
  any_args args;
  args.rows = tokens;
  std::vector<float> const norm_weight = floats(w.norm_weight), norm_bias = floats(w.norm_bias);
  {
    float const *const weight = placed.place(router), *const b = placed.place(bias),
                       *const cb = placed.place(correction);
    float const *const norms = placed.place(norm_weight), *const norm_biases = placed.place(norm_bias);
    int row = 0, closed = 0;
    for (std::size_t i = 0; i < std::max<std::size_t>(c.strata.size(), 1); ++i) {
      args.router[i] = {weight + std::int64_t{row} * c.hidden, b == nullptr ? nullptr : b + row,
                        cb == nullptr ? nullptr : cb + row};
      if (c.strata.empty()) break;
      args.norm[i] = {norms + i * c.hidden, norm_biases + i * c.hidden};
      row += c.experts - closed;
      closed += c.strata[i];
    }
  }
  if (!w.gate_proj.empty()) args.gate_proj = matrix_of(in, in.gate);
  args.up_proj = matrix_of(in, in.up);
  args.down_proj = matrix_of(down, down.up);
  args.gate_bias = {placed.place(gate_bias), c.intermediate, 1};
  args.up_bias = {placed.place(up_bias), c.intermediate, 1};
  args.down_bias = {placed.place(down_bias), c.hidden, 1};
  stored_input shared_in, shared_down;
  if (c.shared_intermediate > 0) {
    shared_in = store_input(layer, w.shared_gate_proj, w.shared_up_proj, c.shared_intermediate, c.hidden, how.stored);
    shared_down = store_input(layer, {}, w.shared_down_proj, c.hidden, c.shared_intermediate, how.stored);
    if (!w.shared_gate_proj.empty()) args.shared_gate_proj = matrix_of(shared_in, shared_in.gate);
    args.shared_up_proj = matrix_of(shared_in, shared_in.up);
    args.shared_down_proj = matrix_of(shared_down, shared_down.up);
    args.shared_gate = placed.place(shared_gate);
  }

  // The pattern between rows is a NaN, so that it is seen in the output if it is read.
  std::int64_t const stride = c.hidden + how.padding;
  std::size_t const row_bytes = static_cast<std::size_t>(c.hidden) * layer.element_bytes;
  std::size_t const stride_bytes = static_cast<std::size_t>(stride) * layer.element_bytes;
  std::size_t const all_bytes = tokens == 0 ? 0 : static_cast<std::size_t>(tokens - 1) * stride_bytes + row_bytes;
  guarded x(all_bytes), y(all_bytes), residual(c.strata.empty() ? 0 : all_bytes);
  for (std::int64_t t = 0; t < tokens; ++t) {
    layer.store(p.tokens.data() + t * c.hidden, c.hidden, x.data() + t * stride_bytes);
    if (c.strata.empty()) continue;
    layer.store(p.inputs.residual.data() + t * c.hidden, c.hidden, residual.data() + t * stride_bytes);
  }
  std::byte* const tokens_at = placed.place(x);
  args.tokens = tokens_at;
  args.token_stride = args.output_stride = stride;
  std::byte* const residual_at = placed.place(residual);
  args.residual = residual_at;
  args.residual_stride = stride;
  args.output = how.in_place ? tokens_at : how.onto_residual ? residual_at : placed.place(y);

  // The workspace is exactly as large as asked for, at an address that is a multiple of 16 and of nothing more.
  guarded workspace(layer.workspace_bytes(tokens), sy::workspace_alignment);
  args.workspace = {placed.place(workspace, false), workspace.size()};

  std::vector<std::int32_t> const ids(p.inputs.ids.begin(), p.inputs.ids.end());
  std::vector<float> const id_weights = floats(p.inputs.id_weights), feature_scale = floats(p.inputs.feature_scale);
  std::vector<std::int32_t> const labels(p.inputs.labels.begin(), p.inputs.labels.end());
  args.routes = {placed.place(ids), placed.place(id_weights)};
  args.clusters = {placed.place(labels), p.inputs.label_choices,
                   feature_scale.empty() ? nullptr : placed.place(feature_scale)};
  args.tokens_per_group = c.tokens_per_group;
  if (!p.inputs.active.empty()) args.active = placed.place(p.inputs.active);

  std::size_t const passes = std::max<std::size_t>(c.strata.size(), 1);
  std::size_t const pairs = passes * static_cast<std::size_t>(tokens * c.top_k), experts = c.experts;
  bool const has_logits = !layer.router.precomputed && c.strata.empty();
  guarded expert_ids(pairs * sizeof(std::int32_t)), weights(pairs * sizeof(float)), dropped(pairs);
  guarded counts(experts * sizeof(std::int64_t)), load(experts * sizeof(std::int64_t));
  guarded logits(has_logits ? static_cast<std::size_t>(tokens) * experts * sizeof(float) : 0);
  guarded auxiliary(sizeof(sy::auxiliary_values)), made(c.strata.empty() ? 0 : static_cast<std::size_t>(tokens));
  std::size_t const table = c.clusters.scales ? experts * static_cast<std::size_t>(c.hidden) * sizeof(float) : 0;
  guarded scale_used(table), dispersion(feature_scale.empty() ? table : 0);
  outcome out;
  if (how.decisions) {
    auto const at = [&]<class T>(guarded& buffer, T*& pointer) {
      pointer = reinterpret_cast<T*>(placed.place(buffer));
    };
    at(expert_ids, args.decisions.experts);
    at(weights, args.decisions.weights);
    at(dropped, args.decisions.dropped);
    at(counts, args.decisions.counts);
    at(load, args.decisions.load);
    if (has_logits) at(logits, args.decisions.logits);
    if (!layer.router.precomputed) at(auxiliary, args.auxiliary);
    if (!c.strata.empty()) at(made, args.decisions.passes);
    if (scale_used.size() > 0) at(scale_used, args.decisions.feature_scale);
    if (dispersion.size() > 0) at(dispersion, args.decisions.dispersion);
  }

  layer.forward(args, how.context);
  placed.fetch();
  if (how.decisions && !layer.router.precomputed) out.auxiliary = *auxiliary.as<sy::auxiliary_values>();

  guarded& written = how.in_place ? x : how.onto_residual ? residual : y;
  out.output.resize(p.tokens.size());
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::byte const* const row = written.data() + t * stride_bytes;
    layer.load(row, c.hidden, out.output.data() + t * c.hidden);
    for (std::size_t i = row_bytes; t + 1 < tokens && i < stride_bytes; ++i) {
      out.guards_intact = out.guards_intact && row[i] == std::byte{guarded::pattern};
    }
  }
  for (guarded* g : {&x, &y, &residual, &workspace, &expert_ids, &weights, &dropped, &counts, &load, &logits,
                     &auxiliary, &scale_used, &dispersion, &made}) {
    out.guards_intact = out.guards_intact && g->guards_intact();
  }
  auto const copy = [](auto& to, guarded& from) {
    to.resize(from.size() / sizeof(to[0]));
    if (!to.empty()) std::memcpy(to.data(), from.data(), from.size());
  };
  copy(out.experts, expert_ids);
  copy(out.weights, weights);
  copy(out.dropped, dropped);
  copy(out.counts, counts);
  copy(out.load, load);
  copy(out.logits, logits);
  copy(out.feature_scale, scale_used);
  copy(out.dispersion, dispersion);
  copy(out.passes, made);
  return out;
}

template <class T>
bool same_bits(std::vector<T> const& a, std::vector<T> const& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

inline bool same_bits(outcome const& a, outcome const& b) {
  return same_bits(a.output, b.output) && same_bits(a.experts, b.experts) && same_bits(a.weights, b.weights) &&
         same_bits(a.dropped, b.dropped) && same_bits(a.counts, b.counts) && same_bits(a.load, b.load) &&
         same_bits(a.logits, b.logits) && same_bits(a.feature_scale, b.feature_scale) &&
         same_bits(a.dispersion, b.dispersion) && same_bits(a.passes, b.passes) &&
         std::memcmp(&a.auxiliary, &b.auxiliary, sizeof a.auxiliary) == 0;
}

/// |a - b| / |b| in the Frobenius norm; infinite where a value is not finite.
template <class A, class B>
double relative_error(std::vector<A> const& a, std::vector<B> const& b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    double const d = double(a[i]) - double(b[i]);
    difference += d * d;
    size += double(b[i]) * double(b[i]);
  }
  if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
  return difference == 0 ? 0 : std::sqrt(difference / size);
}

}  // namespace support
