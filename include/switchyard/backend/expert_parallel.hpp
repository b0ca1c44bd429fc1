#pragma once

#include <switchyard/backend/backend_policy.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/text.hpp>
#include <switchyard/parallel/group.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace switchyard {

namespace parallel {

/// What a call's memory depends on.
struct sizes {
  std::int64_t tokens = 0;      ///< of this rank
  std::int64_t all_tokens = 0;  ///< of all ranks together
  std::int64_t rows = 0;        ///< that this rank's experts compute
  int ranks = 1;
};

/// The layer on one rank: a backend of that kind has a specialisation of its own (backend/cpu/expert_parallel.hpp, cuda/expert_parallel.cuh), with
/// `workspace_bytes<Layer>(sizes)` and `forward(args, context)`.
template <class Local>
struct steps {
  static_assert(
      sizeof(Local) == 0,
      "switchyard: backend::expert_parallel goes around backend::cpu, with switchyard/parallel.hpp, and around "
      "backend::cuda and backend::hopper, with switchyard/parallel.cuh. Around this backend it does not.");
};

}  // namespace parallel

namespace backend {

/// Runs a layer on several ranks, each of which has tokens of its own and some of the experts: `Local` computes, and `Transport` carries
/// tokens to the ranks of their experts and results back (transport/). All ranks of a group call `forward` together, each with any number of
/// tokens, or none. A call is that of one device with the tokens of all ranks, one rank's after the other's, and with
/// `sums::in_order_of_choice` its outputs have the same bits, for any number of ranks and any placement.
///
/// - `.weights` of routed experts are those of the rank's experts alone, in the order of the placement; a rank without experts leaves them
///   out. The router's, the shared expert's and all else that every token meets stand on every rank.
/// - `.decisions` by token are those of the rank's tokens; `.counts` and `.load`, auxiliary values and what is reported of clusters are
///   those of all ranks. Double sums of auxiliary values are added rank by rank, so that the last bit of a double may differ.
/// - Where something is wrong on one rank, all ranks throw `error`, which names it: see `parallel::group`.
///
/// `forward` waits for other ranks. It allocates nothing but what the transport's library does.
template <class Local, transport_policy Transport>
struct expert_parallel {
  static constexpr auto label =
      "expert_parallel<" + switchyard::name_of<Local>() + "," + switchyard::name_of<Transport>() + ">";
  static constexpr std::string_view name = label;

  struct context {
    typename Local::context local = {};
    parallel::group<Transport>* group = nullptr;
    parallel::sums sums = parallel::sums::in_order_of_choice;
    parallel::capacity_scope capacity = parallel::capacity_scope::all_ranks;
    /// Parts that a rank's experts are cut into, 1 to `parallel::most_chunks`: while one is computed, rows of the next one come, and
    /// results of the last one go. 0: 1.
    int chunks = 0;
    /// Where GPUs keep what the host decides and tells: pinned memory, of `host_workspace_bytes`. The CPU takes none. Calls with one and the
    /// same are on one stream.
    std::span<std::byte> host_workspace = {};
  };

  template <class Layer>
  static constexpr std::string_view name_for() {
    return name;
  }

  /// Bytes that are enough on every rank, whatever the tokens choose: `tokens` are those of all ranks together.
  template <class Layer>
  static constexpr std::size_t workspace_bytes(std::int64_t tokens) {
    return workspace_bytes<Layer>(
        parallel::sizes{.tokens = tokens, .all_tokens = tokens, .rows = tokens * Layer::dims.top_k});
  }
  /// Bytes for a rank whose experts have so many rows at most. Where there are more, the call is an error on all ranks.
  template <class Layer>
  static constexpr std::size_t workspace_bytes(parallel::sizes const& of) {
    return parallel::steps<Local>::template workspace_bytes<Layer>(of);
  }

  /// The same of `context::host_workspace`.
  template <class Layer>
  static constexpr std::size_t host_workspace_bytes(std::int64_t tokens) {
    return host_workspace_bytes<Layer>(
        parallel::sizes{.tokens = tokens, .all_tokens = tokens, .rows = tokens * Layer::dims.top_k});
  }
  template <class Layer>
  static constexpr std::size_t host_workspace_bytes(parallel::sizes const& of) {
    return parallel::steps<Local>::template host_workspace_bytes<Layer>(of);
  }

  template <class Layer>
  static void forward(typename Layer::args const& args, context const& where) {
    if (where.group == nullptr) {
      fail("layer::forward, context.group", "the parallel::group that this rank calls with", "a null pointer");
    }
    parallel::steps<Local>::template forward<Layer>(args, where);
  }
};

}  // namespace backend

template <class Local, class Transport>
struct expert_storage<backend::expert_parallel<Local, Transport>> {
  static constexpr bool in_cache = false;
  static constexpr bool in_parts = true;
  template <class Computation>
  using computation = Computation;
};

}  // namespace switchyard
