#pragma once

#include <switchyard/core/checks.hpp>
#include <switchyard/core/counter_random.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/lanes.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/core/with.hpp>
#include <switchyard/router/by_logits.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// A seed, or none: a number makes one.
struct optional_seed {
  constexpr optional_seed() = default;
  constexpr optional_seed(std::uint64_t number) : value(number), exists(true) {}

  std::uint64_t value = 0;
  bool exists = false;
};

/// What `router::with_expert_dropout` draws its masks from. They depend on nothing else, so one seed gives one mask on every backend and
/// for any number of threads. Layers and training steps take seeds of their own; calls with parts of a batch say where theirs begin.
/// A CUDA graph has the seed that was captured.
struct expert_dropout {
  optional_seed seed = {};       ///< none: nothing is masked, as in evaluation
  std::int64_t first_token = 0;  ///< the number of the call's first token, from 0
};

namespace router {

/// The experts that are masked for one token.
class expert_mask {
 public:
  SWITCHYARD_HD constexpr expert_mask(expert_dropout const& from, std::int64_t token, int experts, float probability)
      : random_{from.seed.value, stream},
        first_(static_cast<std::uint64_t>(from.first_token + token) * static_cast<std::uint64_t>(experts)),
        probability_(from.seed.exists ? probability : 0.0f) {}

  SWITCHYARD_HD constexpr bool hides(int expert) {
    if (!(probability_ > 0.0f)) return false;
    std::uint64_t const number = first_ + static_cast<std::uint64_t>(expert);
    if (!has_block_ || number / 4 != block_number_) {  // a lane with all experts draws four at once
      block_number_ = number / 4;
      block_ = random_.block(block_number_);
      has_block_ = true;
    }
    std::uint32_t word = block_.word[0];  // an index that varies would put the block into memory
    for (std::uint64_t i = 1; i < 4; ++i) word = i == number % 4 ? block_.word[i] : word;
    return counter_random::uniform_of(word) < probability_;
  }

 private:
  static constexpr std::uint64_t stream = std::uint64_t{1} << 63;  // far from those that users count from 0

  counter_random random_;
  std::uint64_t first_;  // the number of expert 0
  float probability_;
  bool has_block_ = false;
  std::uint64_t block_number_ = 0;
  philox_block block_{};
};

/// Expert dropout, for training: every expert is masked for every token with the probability `Numerator / Denominator`, independently and
/// before the choice. What is left is not rescaled, for scores are those of all experts.
///
/// Expert e is masked for token t of a call where number (first_token + t) * experts + e of the uniform ones of `counter_random`, stream
/// 2^63, is less than the probability. Where fewer than `top_k` experts are left, masked ones are chosen in the order of their scores,
/// with a weight of 0: they take rows as any choice does, and the weights of the others are made as if those were the only ones. Logits
/// and what is made of them, such as the entropy term, see no mask.
/// Source: Csordás et al. 2023, Approximating Two-Layer Feedforward Networks for Efficient Transformers, section 5, with its code; its
/// later code gives choices beyond what is left a score of minus infinity.
template <class Base, int Numerator, int Denominator>
struct with_expert_dropout : Base {
  static_assert(
      requires(serial_lanes lanes, per_expert<1, serial_lanes> const& logits, router_weights const& weights,
               expert_mask mask) { Base::template select_masked<1>(lanes, logits, weights, mask); } &&
          std::is_same_v<typename Base::features, features_as_they_are> &&
          std::is_same_v<typename Base::schedule, one_pass> && !Base::traits.takes_inputs,
      "switchyard: router::with_expert_dropout hides experts from the choice of a router whose scores see no mask, "
      "which router::top_k and "
      "its named forms are alone. Wrap one of those, before router::scaled and other wrappers.");
  static_assert(
      Numerator >= 0 && Numerator < Denominator,
      "switchyard: router::with_expert_dropout takes a probability as a fraction, at least 0 and less than 1: "
      "with_expert_dropout<sigma_moe, 1, 20> masks one expert in twenty.");
  static constexpr auto label =
      "with_expert_dropout<" + name_of<Base>() + "," + ratio_text<Numerator, Denominator>() + ">";
  static constexpr std::string_view name = label;
  static constexpr router_traits traits = with(Base::traits, &router_traits::takes_inputs, true);

  template <class Layer>
  using inputs = expert_dropout;

  SWITCHYARD_HD static constexpr expert_mask mask_of(expert_dropout const& from, std::int64_t token, int experts) {
    return {from, token, experts, static_cast<float>(Numerator) / static_cast<float>(Denominator)};
  }

  template <class Layer>
  static void check(forward_args<Layer> const& args) {
    Base::template check<Layer>(args);
    if (args.inputs.first_token < 0) {
      fail("layer::forward, inputs.first_token", "the number of the first token, at least 0",
           std::to_string(args.inputs.first_token));
    }
  }
};

}  // namespace router
}  // namespace switchyard
