#pragma once

#include <switchyard/core/text.hpp>
#include <switchyard/router/router_policy.hpp>
#include <switchyard/router/take_top_k.hpp>

/// The second step of a top-k router: scores to the keys by which experts are chosen. The keys never reach
/// the combine weights. `needs_order_alone`: what is chosen depends on the order of the scores only, not on their values.
namespace switchyard::router::selection {

/// The best scores win.
struct best {
  static constexpr auto label = text("best");
  static constexpr bool correction_bias = false, needs_order_alone = true;
  template <int TopK, int Experts, class Lanes>
  SWITCHYARD_HD static void apply(Lanes, per_expert<Experts, Lanes>&, router_weights const&) {}
};

/// Score plus correction bias; one of minus infinity closes its expert.
/// Source: DeepSeek-AI 2024, DeepSeek-V3 Technical Report, section 2.1.2 (auxiliary-loss-free balancing).
struct corrected {
  static constexpr auto label = text("corrected");
  static constexpr bool correction_bias = true, needs_order_alone = false;
  template <int TopK, int Experts, class Lanes>
  SWITCHYARD_HD static void apply(Lanes lanes, per_expert<Experts, Lanes>& keys, router_weights const& weights) {
    using share = per_expert<Experts, Lanes>;
    for (int i = 0; i < share::size; ++i) {
      int const id = share::expert(lanes, i);
      if (id < Experts) keys.value[i] += weights.correction_bias[id];
    }
  }
};

/// How a group of experts is judged.
enum class group_score {
  max,      ///< by its best expert (DeepSeek-V2)
  top2_sum  ///< by the sum of its two best experts (DeepSeek-V3)
};

namespace detail {

template <group_score Judge>
constexpr auto judge_label() {
  if constexpr (Judge == group_score::max) {
    return text("max");
  } else {
    return text("top2_sum");
  }
}

}  // namespace detail

/// Only experts of the best `KeptGroups` of `Groups` equal, consecutive groups stay open; `Inner` makes the
/// keys first.
/// Source: DeepSeek-AI 2024, DeepSeek-V2, section 2.2.2 (device-limited routing), and DeepSeek-V3, 2.1.2.
/// Experts of other groups are closed. Some published codes overwrite their keys by 0 instead, which differs only
/// where a chosen key is not positive.
template <int Groups, int KeptGroups, group_score Judge, class Inner = best>
struct grouped {
  static constexpr auto label = "grouped<" + decimal<Groups>() + "," + decimal<KeptGroups>() + "," +
                                detail::judge_label<Judge>() + "," + Inner::label + ">";
  static constexpr bool correction_bias = Inner::correction_bias;
  static constexpr bool needs_order_alone = Judge == group_score::max && Inner::needs_order_alone;

  template <int TopK, int Experts, class Lanes>
  SWITCHYARD_HD static void apply(Lanes lanes, per_expert<Experts, Lanes>& keys, router_weights const& weights) {
    static_assert(Groups >= 1 && Experts % Groups == 0,
                  "switchyard: selection::grouped needs groups of equal size. Choose Groups so that it divides "
                  "shape.experts.");
    static_assert(1 <= KeptGroups && KeptGroups <= Groups,
                  "switchyard: selection::grouped keeps at least one group and at most all. Choose KeptGroups from "
                  "1 to Groups.");
    static_assert(Groups < 1 || TopK <= KeptGroups * (Experts / (Groups < 1 ? 1 : Groups)),
                  "switchyard: selection::grouped leaves fewer experts open than shape.top_k. Keep more groups or "
                  "lower top_k.");
    static_assert(Judge == group_score::max || Experts / (Groups < 1 ? 1 : Groups) >= 2,
                  "switchyard: group_score::top2_sum needs two experts per group. Use group_score::max or fewer "
                  "groups.");
    using share = per_expert<Experts, Lanes>;
    constexpr int group_size = Experts / Groups;
    Inner::template apply<TopK>(lanes, keys, weights);

    per_expert<Groups, serial_lanes> judged;  // every lane knows every group
#if defined(__CUDA_ARCH__)
#pragma unroll  // or the array is one in memory
#endif
    for (int group = 0; group < Groups; ++group) {
      candidate const first = best_of(lanes, keys, group * group_size, group_size, -1);
      judged.value[group] = first.value;
      if constexpr (Judge == group_score::top2_sum) {
        judged.value[group] += best_of(lanes, keys, group * group_size, group_size, first.id).value;
      }
    }
    chosen<KeptGroups> const kept = take_top_k<KeptGroups>(serial_lanes{}, judged);
    for (int i = 0; i < share::size; ++i) {
      int const group = share::expert(lanes, i) / group_size;
      bool open = false;
      for (candidate const& c : kept.choice) open = open || c.id == group;
      if (!open) keys.value[i] = share::closed;
    }
  }

 private:
  /// The best expert of ids `first` to `first + count - 1` other than `except`, on every lane.
  template <int Experts, class Lanes>
  SWITCHYARD_HD static candidate best_of(Lanes lanes, per_expert<Experts, Lanes> const& keys, int first, int count,
                                         int except) {
    using share = per_expert<Experts, Lanes>;
    candidate result = after_all;
    for (int i = 0; i < share::size; ++i) {
      candidate const c{keys.value[i], share::expert(lanes, i)};
      if (c.id >= first && c.id < first + count && c.id != except && precedes(c, result)) result = c;
    }
    return lanes.best(result);
  }
};

}  // namespace switchyard::router::selection
