#pragma once

#include <switchyard/core/bfloat16.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

/// The layer that a user of a library of matrix products writes: a loop over experts, on given routes.
namespace switchyard::bench::peers {

/// How threads share the work.
enum class threading {
  one_expert_each,  ///< OpenMP over experts, the library on one thread in each
  inside_products   ///< experts one after the other, the library on all threads
};

/// A layer whose experts are silu-gated, or plain with relu.
template <class Element>
struct problem {
  int hidden, intermediate, experts, top_k;
  bool gated;
  /// For every copy of the weights, as in the checkpoint: [experts, intermediate, hidden] twice, [experts, hidden,
  /// intermediate]. `gate_proj` is null where there is no gate.
  struct weights {
    Element const *gate_proj, *up_proj, *down_proj;
  };
  std::vector<weights> copies;

  /// Features of the first product: of gate and up together.
  int in_features() const { return gated ? 2 * intermediate : intermediate; }
};

template <class Element>
struct call {
  std::int64_t tokens;
  Element const* input;        ///< [tokens, hidden]
  std::int32_t const* routes;  ///< [tokens, top_k] expert ids
  float const* weights;        ///< [tokens, top_k] combine weights
  Element* output;             ///< [tokens, hidden]
  std::size_t copy;            ///< of the weights
};

/// What a library multiplies. Row counts are announced before the first call with them, so that a library that compiles
/// kernels does it then.
template <class Element>
class products {
 public:
  virtual ~products() = default;
  virtual void announce(std::int64_t rows) = 0;
  /// Before a call: how many threads one product has.
  virtual void use_threads(int threads) = 0;
  /// gate_up[rows, in_features] = tokens[rows, hidden] times the gate and up weights of an expert.
  virtual void in(std::size_t copy, int expert, std::int64_t rows, Element const* tokens, float* gate_up) = 0;
  /// outer[rows, hidden] = inner[rows, intermediate] times the down weights.
  virtual void out(std::size_t copy, int expert, std::int64_t rows, Element const* inner, float* outer) = 0;
};

// Whatever a library throws means that it does not make such products here. Its name is known before.
std::string openblas_name();
std::unique_ptr<products<float>> openblas(problem<float> const& of);

std::string onednn_name();
/// Weights are packed once, as the library likes them best: that is not timed.
template <class Element>
std::unique_ptr<products<Element>> onednn(problem<Element> const& of, int threads);

/// The layer around the products; gathers tokens, activates, weighs and adds. Temporaries are kept between calls.
template <class Element>
class loop_over_experts {
 public:
  loop_over_experts(problem<Element> const& of, std::unique_ptr<products<Element>> with, int threads)
      : of_(of), with_(std::move(with)), threads_(threads) {}

  /// Before the first call with such routes.
  void prepare(std::int64_t tokens, std::int32_t const* routes);
  void forward(call<Element> const& c, threading how);

 private:
  void group(std::int64_t tokens, std::int32_t const* routes);
  void expert(call<Element> const& c, int e);
  void combine(call<Element> const& c, std::int64_t token) const;

  problem<Element> of_;
  std::unique_ptr<products<Element>> with_;
  int threads_;
  std::vector<std::int64_t> offsets_, next_;
  std::vector<std::int64_t> pair_of_, row_of_;
  std::vector<Element> gathered_, inner_;
  std::vector<float> gate_up_, outer_;
};

}  // namespace switchyard::bench::peers
