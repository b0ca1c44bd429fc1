#pragma once

#include <switchyard/backend/cpu/clustering.hpp>
#include <switchyard/backend/cpu/combine.hpp>
#include <switchyard/backend/cpu/context.hpp>
#include <switchyard/backend/cpu/cpu.hpp>
#include <switchyard/backend/cpu/experts.hpp>
#include <switchyard/backend/cpu/route.hpp>
#include <switchyard/backend/cpu/sinkhorn.hpp>
#include <switchyard/backend/cpu/steps.hpp>
#include <switchyard/backend/cpu/strata.hpp>
#include <switchyard/backend/expert_parallel.hpp>
#include <switchyard/core/checks.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/dispatch/pass.hpp>
#include <switchyard/dispatch/plan.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/parallel/exchange.hpp>
#include <switchyard/parallel/group.hpp>
#include <switchyard/router/expert_dropout.hpp>
#include <switchyard/version.hpp>

#include <algorithm>
#include <bit>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

/// `backend::expert_parallel` around `backend::cpu`:
///
///   route -> who goes where -> numbers to all ranks -> rows out -> products, chunk by chunk -> results back -> combine
///
/// Routing, products and combine are those of `backend::cpu`.
namespace switchyard::parallel {

namespace detail {

/// Tags of the messages of a call; those of chunks have the chunk added.
enum tag { gather_tag = 1, slice_tag, table_tag, word_tag, row_tag, back_tag = row_tag + most_chunks };

/// Whether a router's features or logits are balanced or scaled by what all tokens are, or masks depend on a token's number: ranks then
/// learn of each other's tokens before they route.
template <class Features>
struct clusters_of {
  static constexpr bool exist = false;
};
template <clustering_traits Form>
struct clusters_of<router::features_scaled_by_cluster<Form>> {
  static constexpr bool exist = true;
  static constexpr clustering_traits form = Form;
};
template <class Source>
struct balance_of {
  static constexpr bool exists = false;
};
template <sinkhorn_traits Form>
struct balance_of<router::from_balanced_logits<Form>> {
  static constexpr bool exists = true;
  static constexpr sinkhorn_traits form = Form;
};
template <class Layer>
inline constexpr bool clusters = clusters_of<typename Layer::router::features>::exist;
template <class Layer>
inline constexpr bool balances = balance_of<typename Layer::router::source>::exists;
template <class Layer>
inline constexpr bool drops_out =
    std::is_same_v<typename Layer::router::template inputs<Layer>, switchyard::expert_dropout>;

constexpr std::int64_t number_of(std::string_view text, std::int64_t hash = 1469598103934665603) {
  auto mixed = static_cast<std::uint64_t>(hash);
  for (char const c : text) mixed = (mixed ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return static_cast<std::int64_t>(mixed >> 1);
}

/// All temporaries of a pass, in three parts: what a rank needs for its own tokens, what it learns of all, and what its experts need.
template <class Layer>
struct pass_memory {
  using element = typename Layer::element;
  using routing = cpu::route_step<typename Layer::router::source>;
  static constexpr shape dims = Layer::dims;
  static constexpr int all_experts = Layer::all_experts;
  static constexpr int shared_intermediate = Layer::expert_traits.shared_intermediate;
  static constexpr bool drops = Layer::capacity_traits.drops;

  constexpr explicit pass_memory(carver const& rest) : from(rest) {}

  constexpr void take_home(std::int64_t tokens) {
    std::int64_t const pairs = tokens * dims.top_k;
    static_cast<void>(of_routing(tokens));
    routed = {from.take<std::int32_t>(pairs), from.take<float>(pairs), from.take<float>(tokens)};
    dropped = from.take<std::uint8_t>(pairs);
    order = from.take<std::int32_t>(Layer::capacity_traits.order == queue::priority ? tokens : 0);
    used = from.take<std::int32_t>(all_experts);
    sums = from.take<double>(switchyard::detail::auxiliary_doubles * all_experts);
    destination = from.take<std::int32_t>(pairs);
    entry_token = from.take<std::int32_t>(pairs);
    words_out = from.take<std::int32_t>(3 * pairs);
    home_row = from.take<std::int32_t>(pairs);
    home_weight = from.take<float>(pairs);
    rows_out = from.take<element>(pairs * dims.hidden);
    if constexpr (shared_intermediate > 0) {
      std::int64_t const padded = tokens + cpu::least_rows_of_panels - 1;
      shared_activated = from.take<float>(padded * cpu::row_floats(shared_intermediate));
      shared_results = from.take<float>(padded * cpu::row_floats(dims.hidden));
    }
  }
  constexpr void take_gathered(std::int64_t tokens, std::int64_t all_tokens, int ranks) {
    if constexpr (drops) {
      all_expert_ids = from.take<std::int32_t>(all_tokens * dims.top_k);
      all_priority = from.take<float>(all_tokens);
      all_active = from.take<std::uint8_t>(all_tokens);
      all_dropped = from.take<std::uint8_t>(all_tokens * dims.top_k);
      all_order = from.take<std::int32_t>(Layer::capacity_traits.order == queue::priority ? all_tokens : 0);
    }
    if constexpr (balances<Layer>) {
      all_logits = from.take<float>(all_tokens * all_experts);
      if constexpr (!drops) all_active = from.take<std::uint8_t>(all_tokens);
      std::int64_t const partial = divide_up(all_tokens, cpu::balance_tokens) * all_experts;
      balance.sum = from.take<double>(partial);
      balance.most = from.take<float>(partial);
      balance.bias = from.take<float>(all_experts);
      balance.counted = from.take<std::uint8_t>(all_tokens);
    }
    if constexpr (clusters<Layer>) {
      std::int64_t const width = divide_up(dims.hidden, ranks), table = std::int64_t{dims.experts} * dims.hidden;
      slices_out = from.take<element>(tokens * dims.hidden);
      slices = from.take<element>(all_tokens * width);
      all_labels = from.take<std::int32_t>(all_tokens * 2);
      tables = from.take<float>(table);
      of_slice.scale = from.take<float>(dims.experts * width);
      of_slice.sums = from.take<double>(dims.experts * width);
      of_slice.counts = from.take<std::int32_t>(dims.experts);
      of_slice.counted = from.take<std::uint8_t>(all_tokens);
    }
  }
  constexpr void take_experts(std::int64_t tokens, std::int64_t all_tokens, std::int64_t rows) {
    std::int64_t const entries = std::min(rows, all_tokens);
    words_in = from.take<std::int32_t>(entries + 2 * rows);
    received = from.take<element>(entries * dims.hidden);
    offsets = from.take<std::int32_t>(dims.experts + 1);
    next_row = from.take<std::int32_t>(dims.experts);
    pair_of = from.take<std::int32_t>(rows);
    weights_in = from.take<float>(entries * dims.top_k);
    row_of_pair = from.take<std::int32_t>(rows);
    first_pair_of = from.take<std::int32_t>(rows);
    pairs_of = from.take<std::int32_t>(rows);
    // Replicas of an expert with many rows are computed by panels, however few they have.
    std::int64_t const padded = rows + std::min<std::int64_t>(rows, dims.experts) * (cpu::least_rows_of_panels - 1);
    first_padded_row = from.take<std::int64_t>(dims.experts + 1);
    first_item = from.take<std::int64_t>(dims.experts + 1);
    activated = from.take<float>(padded * cpu::row_floats(dims.intermediate));
    // Rows that come back stand behind the results of the rank's own experts, as rows of the same matrix.
    first_returned_row = divide_up(padded * cpu::row_floats(dims.hidden), dims.hidden);
    results = from.take<float>((first_returned_row + tokens * dims.top_k) * dims.hidden);
    results_out = from.take<float>(rows * dims.hidden);
    if constexpr (has_sparse_change<typename Layer::weights::in_operand>) {
      apart = {from, entries, dims.top_k, dims.hidden, dims.intermediate};
    }
  }

  constexpr typename routing::template memory<Layer> of_routing(std::int64_t tokens) { return {from, tokens}; }

  carver from;
  cpu::routes routed{};
  std::uint8_t* dropped = nullptr;
  std::int32_t *order = nullptr, *used = nullptr;
  double* sums = nullptr;
  std::int32_t *destination = nullptr, *entry_token = nullptr, *words_out = nullptr, *home_row = nullptr;
  float* home_weight = nullptr;
  element* rows_out = nullptr;
  float *shared_activated = nullptr, *shared_results = nullptr;

  std::int32_t* all_expert_ids = nullptr;
  float* all_priority = nullptr;
  std::uint8_t *all_active = nullptr, *all_dropped = nullptr;
  std::int32_t* all_order = nullptr;
  float* all_logits = nullptr;
  cpu::balance_memory balance;
  element *slices_out = nullptr, *slices = nullptr;
  std::int32_t* all_labels = nullptr;
  float* tables = nullptr;
  cpu::clustering_memory of_slice;

  std::int32_t* words_in = nullptr;
  element* received = nullptr;
  std::int32_t *offsets = nullptr, *next_row = nullptr, *pair_of = nullptr;
  float* weights_in = nullptr;
  std::int32_t *row_of_pair = nullptr, *first_pair_of = nullptr, *pairs_of = nullptr;
  std::int64_t *first_padded_row = nullptr, *first_item = nullptr;
  float *activated = nullptr, *results = nullptr, *results_out = nullptr;
  std::int64_t first_returned_row = 0;
  cpu::apart_memory apart;
};

/// Bytes of a pass.
template <class Layer>
constexpr std::int64_t bytes_of_pass(sizes const& of) {
  pass_memory<Layer> m{carver()};
  m.take_home(of.tokens);
  m.take_gathered(of.tokens, of.all_tokens, of.ranks);
  m.take_experts(of.tokens, of.all_tokens, of.rows);
  return m.from.taken();
}

/// to[i] += weight * from[i], as `cpu::combine` adds.
inline void add_weighted(float* to, float weight, float const* from, int count) {
  for (int i = 0; i < count; ++i) to[i] += weight * from[i];
}

/// One pass of a layer on this rank.
template <class Layer, class Context>
class pass {
  using element = typename Layer::element;
  using router_type = typename Layer::router;
  using routing = cpu::route_step<typename router_type::source>;
  using products = cpu::experts_step<expert::two_products>;
  using args_type = forward_args<Layer>;
  static constexpr shape dims = Layer::dims;
  static constexpr int all_experts = Layer::all_experts, hidden = dims.hidden, top_k = dims.top_k;
  static constexpr capacity_traits capacity = Layer::capacity_traits;
  static constexpr float scale = static_cast<float>(Layer::expert_traits.scale_numerator) /
                                 static_cast<float>(Layer::expert_traits.scale_denominator);
  static constexpr bool shared = Layer::expert_traits.shared_intermediate > 0;
  static constexpr bool learns_first = clusters<Layer> || balances<Layer> || drops_out<Layer>;

 public:
  pass(args_type const& args, Context const& context, facts const& of_call, std::string_view layer, int first_expert,
       cpu::names const& called, std::byte* memory, std::int64_t bytes)
      : args_(args),
        context_(context),
        all_(*context.group),
        facts_(of_call),
        layer_(layer),
        first_expert_(first_expert),
        called_(called),
        bytes_(bytes),
        m_(carver(memory)),
        of_routing_(home_memory()) {}

  /// Whether any rank had a token for it.
  bool run() {
    if constexpr (learns_first) {
      if constexpr (clusters<Layer>) all_.in_step([&] { check_labels(); });
      announce(0);
      m_.take_gathered(tokens(), all_.all_tokens(), all_.ranks());
    }
    route();
    if constexpr (capacity.drops) {
      if (context_.capacity == capacity_scope::all_ranks && !learns_first) announce(0);
    }
    if constexpr (!learns_first && capacity.drops) {
      m_.take_gathered(tokens(), context_.capacity == capacity_scope::all_ranks ? all_.all_tokens() : 0, all_.ranks());
    }
    drop();
    plan();
    count_rows();
    if (all_.all_tokens() == 0) return false;
    all_.midway([&] {
      compute();
      combine();
    });
    return true;
  }

 private:
  std::int64_t tokens() const { return args_.tokens.rows; }
  std::int64_t pairs() const { return tokens() * top_k; }
  int ranks() const { return all_.ranks(); }
  int rank() const { return all_.rank(); }

  /// The first part of the memory. The routing's own begins it.
  typename routing::template memory<Layer> home_memory() {
    carver const begin = m_.from;
    all_.in_step([&] {
      pass_memory<Layer> needed{carver()};
      needed.take_home(tokens());
      check_bytes(rank(), needed.from.taken(), bytes_);
    });
    m_.take_home(tokens());
    carver again = begin;
    return {again, tokens()};
  }
  static void check_bytes(int rank, std::int64_t needed, std::int64_t there) {
    if (there >= needed) return;
    fail("backend::expert_parallel, workspace of rank " + std::to_string(rank),
         "at least " + std::to_string(needed) + " bytes for this pass, with the rows that its experts have",
         std::to_string(there));
  }

  /// Tells the others, and looks whether all ranks have memory for all that is known so far.
  void announce(int values) {
    all_.announce(facts_, layer_, tokens(), bytes_, values);
    std::int64_t const all_tokens = all_.all_tokens();
    constexpr std::int64_t most_tokens = (std::int64_t{1} << 31) / top_k - 1;  // pairs are numbered with 32 bits
    if (all_tokens > most_tokens) checks::fail_tokens("backend::expert_parallel, all ranks", most_tokens, all_tokens);
    for (int r = 0; r < ranks(); ++r) {
      std::int64_t const rows =
          values == 0 ? 0 : rows_of_rank(all_, r, dims.experts, first_expert_, [&](int s) { return kept_of(s); });
      bool const gathers = learns_first || (capacity.drops && context_.capacity == capacity_scope::all_ranks);
      pass_memory<Layer> needed{carver()};
      needed.take_home(all_.tokens_of(r));
      needed.take_gathered(all_.tokens_of(r), gathers ? all_tokens : 0, ranks());
      needed.take_experts(all_.tokens_of(r), all_tokens, rows);
      check_bytes(r, needed.from.taken(), all_.workspace_of(r));
    }
  }

  // Values of a rank: rows kept of each expert and load of each, int32, then words with sums of auxiliary values.
  static constexpr int load_at = dims.experts, sums_at = (load_at + all_experts + 1) / 2;
  static constexpr int sum_count = 6 * all_experts, scalars_at = sums_at + sum_count, value_count = scalars_at + 7;
  std::int32_t const* kept_of(int rank) const { return reinterpret_cast<std::int32_t const*>(all_.values(rank)); }

  bool wants_auxiliary() const {
    if constexpr (makes_logits<router_type>) return args_.auxiliary != nullptr;
    return false;
  }

  void route() {
    args_type seen = args_;
    if constexpr (drops_out<Layer>) seen.inputs.first_token += all_.first_token(rank());
    if constexpr (clusters<Layer>) {
      if (seen.inputs.feature_scale == nullptr) {
        all_.midway([&] { make_feature_scale(); });
        seen.inputs.feature_scale = of_routing_.of_features.clusters.scale;
      }
    }
    if constexpr (balances<Layer>) {
      using by_logits = cpu::route_step<router::from_logits>;
      by_logits::template logits_of<Layer>(seen, context_.local, of_routing_);
      gather(of_routing_.logits, m_.all_logits, all_experts);
      gather_active();
      router_weights weights = router::weights_of(seen);
      cpu::balance_experts(balance_of<typename router_type::source>::form, m_.all_logits, all_.all_tokens(),
                           all_experts, m_.all_active, Layer::router_traits.bias ? weights.bias : nullptr,
                           context_.local, m_.balance);
      weights.correction_bias = m_.balance.bias;
      all_.in_step(
          [&] { by_logits::template choose<Layer>(seen, context_.local, of_routing_, weights, m_.routed, called_); });
    } else {
      all_.in_step([&] { routing::template run<Layer>(seen, context_.local, of_routing_, m_.routed, called_); });
    }
    routing::template report<Layer>(seen, of_routing_);
    tokens_of_experts_ = routing::template tokens_of_experts<Layer>(seen, of_routing_);
  }

  // What all ranks' tokens are, on every rank.

  /// `columns` values of each token.
  template <class T>
  void gather(T const* own, T* to, std::int64_t columns) {
    auto const at = [&](int r) {
      return part{to + all_.first_token(r) * columns,
                  all_.tokens_of(r) * columns * static_cast<std::int64_t>(sizeof(T))};
    };
    std::copy(own, own + tokens() * columns, to + all_.first_token(rank()) * columns);
    all_.start(
        gather_tag, [&](int) { return at(rank()); }, at);
    all_.wait(gather_tag);
  }
  void gather_active() {
    std::uint8_t* const own = m_.all_active + all_.first_token(rank());
    for (std::int64_t t = 0; t < tokens(); ++t) own[t] = cpu::is_active(args_.active, t) ? 1 : 0;
    gather<std::uint8_t>(own, m_.all_active, 1);
  }

  void check_labels() {
    if (context_.local.unroutable == unroutable_tokens::throw_error) {
      cpu::check_labels(args_.inputs, tokens(), args_.active, dims.experts);
    }
  }
  /// The weights of features by cluster, from the tokens of all ranks: each rank sums some features of all tokens, in their order.
  void make_feature_scale() {
    constexpr clustering_traits form = clusters_of<typename router_type::features>::form;
    constexpr auto element_bytes = static_cast<std::int64_t>(sizeof(element));
    auto const& to = of_routing_.of_features.clusters;
    auto const& given = args_.inputs;
    std::int64_t const all_tokens = all_.all_tokens(), first = all_.first_token(rank());
    auto const begin_of = [&](int r) { return std::int64_t{hidden} * r / ranks(); };
    auto const width_of = [&](int r) { return begin_of(r + 1) - begin_of(r); };
    cpu::count_tokens(args_.tokens, args_.active, given, hidden, dims.experts, context_.local, to.counted);
    for (std::int64_t t = 0; t < tokens(); ++t) {
      std::int32_t const* const label = given.labels + t * given.choices;
      std::int32_t* const own = m_.all_labels + (first + t) * 2;
      own[0] = label[0];
      own[1] = *std::max_element(label, label + given.choices);
      for (int r = 0; r < ranks(); ++r) {
        element const* const x = args_.tokens.row(t) + begin_of(r);
        element* const slice = r == rank() ? m_.slices + (first + t) * width_of(r)
                                           : m_.slices_out + tokens() * begin_of(r) + t * width_of(r);
        std::copy(x, x + width_of(r), slice);
      }
    }
    all_.start(
        slice_tag,
        [&](int r) {
          return part{m_.slices_out + tokens() * begin_of(r), tokens() * width_of(r) * element_bytes};
        },
        [&](int r) {
          return part{m_.slices + all_.first_token(r) * width_of(rank()),
                      all_.tokens_of(r) * width_of(rank()) * element_bytes};
        });
    gather<std::int32_t>(m_.all_labels + first * 2, m_.all_labels, 2);
    gather<std::uint8_t>(to.counted, m_.of_slice.counted, 1);
    all_.wait(slice_tag);

    token_clusters const labelled{.labels = m_.all_labels, .choices = 2};
    int const known = cpu::count_clusters(all_tokens, labelled, dims.experts, m_.of_slice);
    std::copy(m_.of_slice.counts, m_.of_slice.counts + dims.experts, to.counts);
    int const width = static_cast<int>(width_of(rank()));
    cpu::make_deviations<form>(view<element const>{m_.slices, all_tokens, width}, labelled, width, dims.experts,
                               context_.local, m_.of_slice);
    auto const table_of = [&](int r) {
      return part{m_.tables + dims.experts * begin_of(r),
                  dims.experts * width_of(r) * static_cast<std::int64_t>(sizeof(float))};
    };
    std::copy(m_.of_slice.scale, m_.of_slice.scale + std::int64_t{dims.experts} * width,
              m_.tables + dims.experts * begin_of(rank()));
    all_.start(
        table_tag, [&](int) { return table_of(rank()); }, table_of);
    all_.wait(table_tag);
    for (int r = 0; r < ranks(); ++r) {
      for (int e = 0; e < dims.experts; ++e) {
        float const* const from = m_.tables + dims.experts * begin_of(r) + e * width_of(r);
        std::copy(from, from + width_of(r), to.scale + std::int64_t{e} * hidden + begin_of(r));
      }
    }
    cpu::deviations_to_weights<form>(known, hidden, dims.experts, to);
  }

  void drop() {
    dispatch::assignment own{.tokens = tokens(),
                             .tokens_per_group = args_.tokens_per_group,
                             .active = args_.active,
                             .experts = m_.routed.experts,
                             .weights = m_.routed.weights,
                             .priority = m_.routed.priority,
                             .dropped = m_.dropped,
                             .used = m_.used,
                             .order = m_.order};
    if (!capacity.drops || context_.capacity == capacity_scope::per_rank) {
      dispatch::drop_pairs<typename Layer::capacity, dims, all_experts>(own);
    } else if constexpr (capacity.drops) {
      gather(m_.routed.experts, m_.all_expert_ids, top_k);
      if constexpr (capacity.order == queue::priority) gather(m_.routed.priority, m_.all_priority, 1);
      if constexpr (!balances<Layer>) gather_active();
      dispatch::assignment all = own;
      all.tokens = all_.all_tokens();
      all.active = m_.all_active;
      all.experts = m_.all_expert_ids;
      all.priority = m_.all_priority;
      all.dropped = m_.all_dropped;
      all.order = m_.all_order;
      dispatch::drop_pairs<typename Layer::capacity, dims, all_experts>(all);
      std::uint8_t const* const mine = m_.all_dropped + all_.first_token(rank()) * top_k;
      std::copy(mine, mine + pairs(), m_.dropped);
    }
    if constexpr (capacity.renormalises) dispatch::detail::renormalise(own, top_k);
  }

  /// Where this rank's pairs go.
  void plan() {
    auto* const kept = reinterpret_cast<std::int32_t*>(all_.values(rank()));
    plan_sends(all_, outgoing(), kept);
    std::int32_t* const load = kept + load_at;
    std::fill(load, load + all_experts, 0);
    for (std::int64_t pair = 0; pair < pairs(); ++pair) {
      if (m_.routed.experts[pair] >= 0) ++load[m_.routed.experts[pair]];
    }
    if constexpr (makes_logits<router_type>) {
      if (wants_auxiliary()) add_auxiliary(all_.values(rank()));
    }
  }
  home_routes outgoing() const {
    return {.tokens = tokens(),
            .experts = dims.experts,
            .first_expert = first_expert_,
            .top_k = top_k,
            .chunks = context_.chunks,
            .expert_of = m_.routed.experts,
            .weights = m_.routed.weights,
            .dropped = m_.dropped,
            .drops_add = capacity.on_drop == dropped::weighted_input,
            .added = context_.sums,
            .destination = m_.destination,
            .entry_token = m_.entry_token,
            .words = m_.words_out};
  }

  void add_auxiliary(std::int64_t* values) {
    routing_record const record{.tokens = tokens(),
                                .tokens_per_group = args_.tokens_per_group,
                                .logits = of_routing_.logits,
                                .experts = m_.routed.experts,
                                .weights = m_.routed.weights,
                                .dropped = m_.dropped,
                                .active = args_.active};
    switchyard::detail::auxiliary_sums sums(all_experts, top_k, m_.sums);
    std::int64_t const group = args_.tokens_per_group;
    sums.open_group();  // without groups it is left open: all ranks have parts of it
    if (group == 0) sums.add(record, 0, tokens());
    for (std::int64_t begin = 0; group > 0 && begin < tokens(); begin += group) {
      sums.open_group();
      sums.add(record, begin, std::min(begin + group, tokens()));
      sums.close_group();
    }
    for (int i = 0; i < sum_count; ++i) values[sums_at + i] = std::bit_cast<std::int64_t>(m_.sums[i]);
    double const scalars[] = {sums.z, sums.balance_first, sums.balance_kept, sums.balance_combine};
    for (int i = 0; i < 4; ++i) values[scalars_at + i] = std::bit_cast<std::int64_t>(scalars[i]);
    values[scalars_at + 4] = sums.groups;
    values[scalars_at + 5] = sums.active_tokens;
    values[scalars_at + 6] = sums.counted;
  }
  void finish_auxiliary() {
    std::int64_t const group = args_.tokens_per_group;
    for (int r = 0; group > 0 && r + 1 < ranks(); ++r) {
      if (all_.tokens_of(r) % group == 0) continue;
      fail("backend::expert_parallel, tokens of rank " + std::to_string(r),
           "whole groups of " + std::to_string(group) +
               " on every rank but the last, where auxiliary values are asked for",
           std::to_string(all_.tokens_of(r)));
    }
    switchyard::detail::auxiliary_sums sums(all_experts, top_k, m_.sums);
    std::fill(m_.sums, m_.sums + sum_count, 0.0);
    for (int r = 0; r < ranks(); ++r) {
      std::int64_t const* const values = all_.values(r);
      auto const scalar = [&](int i) { return std::bit_cast<double>(values[scalars_at + i]); };
      for (int i = 0; i < sum_count; ++i) m_.sums[i] += std::bit_cast<double>(values[sums_at + i]);
      sums.z += scalar(0);
      sums.balance_first += scalar(1);
      sums.balance_kept += scalar(2);
      sums.balance_combine += scalar(3);
      sums.groups += values[scalars_at + 4];
      sums.active_tokens += values[scalars_at + 5];
      sums.counted += values[scalars_at + 6];
    }
    if (group == 0) sums.close_group();
    *args_.auxiliary = sums.result();
  }

  /// All ranks learn how much comes; this one says what was decided.
  void count_rows() {
    announce(wants_auxiliary() ? value_count : sums_at);
    if constexpr (makes_logits<router_type>) {
      if (wants_auxiliary()) finish_auxiliary();
    }
    decisions const& to = args_.decisions;
    if (to.experts != nullptr) std::copy(m_.routed.experts, m_.routed.experts + pairs(), to.experts);
    for (std::int64_t pair = 0; to.weights != nullptr && pair < pairs(); ++pair) {
      to.weights[pair] = m_.dropped[pair] ? 0.0f : m_.routed.weights[pair];
    }
    if (to.dropped != nullptr) std::copy(m_.dropped, m_.dropped + pairs(), to.dropped);
    for (int e = 0; e < all_experts; ++e) {
      std::int64_t count = 0, load = 0;
      for (int r = 0; r < ranks(); ++r) {
        if (e < dims.experts) count += kept_of(r)[e];
        load += kept_of(r)[load_at + e];
      }
      if (to.counts != nullptr) to.counts[e] = count;
      if (to.load != nullptr) to.load[e] = load;
    }
  }

  std::size_t cell(int rank, int chunk) const { return static_cast<std::size_t>(rank * context_.chunks + chunk); }

  /// Rows out, products, results back.
  void compute() {
    int const chunks = context_.chunks;
    std::int64_t const rows =
        rows_of_rank(all_, rank(), dims.experts, first_expert_, [&](int s) { return kept_of(s); });
    m_.take_experts(tokens(), all_.all_tokens(), rows);
    place_received(all_, chunks);
    for (int c = 0; c < chunks; ++c) receive_results(c);
    send_words();
    for (int c = 0; c < chunks; ++c) send_rows(c);
    compute_at_home();
    take_words();
    for (int c = 0; c < chunks; ++c) {
      all_.wait(row_tag + c);
      multiply(c);
      send_results(c);
      for (int later = c + 1; later < chunks; ++later) all_.progress(row_tag + later);
    }
    for (int c = 0; c < chunks; ++c) all_.wait(back_tag + c);
  }

  void send_words() {
    std::int64_t const words_here = all_.first_word[cell(rank() + 1, 0)] - all_.first_word[cell(rank(), 0)];
    constexpr auto word = static_cast<std::int64_t>(sizeof(std::int32_t));
    std::int32_t* at = m_.words_in;
    std::int32_t* own = nullptr;
    for (int r = 0; r < ranks(); ++r) {
      if (r == rank()) own = at;
      all_.cursor[static_cast<std::size_t>(r)] = at - m_.words_in;
      at += words_of(all_.received_counts(r), context_.chunks);
    }
    std::copy_n(m_.words_out + all_.first_word[cell(rank(), 0)], words_here, own);
    all_.start(
        word_tag,
        [&](int r) {
          std::int64_t const first = all_.first_word[cell(r, 0)];
          return part{m_.words_out + first, (all_.first_word[cell(r + 1, 0)] - first) * word};
        },
        [&](int r) {
          return part{m_.words_in + all_.cursor[static_cast<std::size_t>(r)],
                      words_of(all_.received_counts(r), context_.chunks) * word};
        });
  }
  void take_words() {
    all_.wait(word_tag);
    plan_rows(all_, m_.words_in,
              {.local_experts = static_cast<int>(all_.placement().experts_of(rank()).size()),
               .top_k = top_k,
               .chunks = context_.chunks,
               .offsets = m_.offsets,
               .next_row = m_.next_row,
               .pair_of = m_.pair_of,
               .weights = m_.weights_in,
               .row_of_pair = m_.row_of_pair,
               .first_pair_of = m_.first_pair_of,
               .pairs_of = m_.pairs_of});
  }

  /// Rows of a chunk's entries, gathered; those of the rank's own tokens at once to where they are received.
  void send_rows(int chunk) {
    constexpr auto row_bytes = static_cast<std::int64_t>(sizeof(element)) * hidden;
    for (int r = 0; r < ranks(); ++r) {
      std::int64_t const first = all_.first_entry[cell(r, chunk)];
      element* const to =
          r == rank() ? m_.received + all_.first_received[cell(r, chunk)] * hidden : m_.rows_out + first * hidden;
      cpu::parallel_for(context_.local, all_.first_entry[cell(r, chunk) + 1] - first, [&](std::int64_t i) {
        element const* const x = tokens_of_experts_.row(m_.entry_token[first + i]);
        std::copy(x, x + hidden, to + i * hidden);
      });
    }
    all_.start(
        row_tag + chunk,
        [&](int r) {
          std::int64_t const first = all_.first_entry[cell(r, chunk)];
          return part{m_.rows_out + first * hidden, (all_.first_entry[cell(r, chunk) + 1] - first) * row_bytes};
        },
        [&](int r) {
          std::int64_t const first = all_.first_received[cell(r, chunk)];
          return part{m_.received + first * hidden, (all_.first_received[cell(r, chunk) + 1] - first) * row_bytes};
        });
  }

  float* returned() const { return m_.results + m_.first_returned_row * hidden; }
  void receive_results(int chunk) {
    constexpr auto row_bytes = static_cast<std::int64_t>(sizeof(float)) * hidden;
    all_.start(
        back_tag + chunk, [](int) { return part{}; },
        [&](int r) {
          std::int64_t const first = all_.first_return[cell(r, chunk)];
          return part{returned() + first * hidden, (all_.first_return[cell(r, chunk) + 1] - first) * row_bytes};
        });
  }
  /// The results of a chunk, gathered or summed. Of the rank's own tokens single rows stay where they are.
  void send_results(int chunk) {
    constexpr auto row_bytes = static_cast<std::int64_t>(sizeof(float)) * hidden;
    for (int r = 0; r < ranks(); ++r) {
      std::int64_t const first = all_.first_returned[cell(r, chunk)];
      float* const to =
          r == rank() ? returned() + all_.first_return[cell(r, chunk)] * hidden : m_.results_out + first * hidden;
      cpu::parallel_for(context_.local, all_.first_returned[cell(r, chunk) + 1] - first, [&](std::int64_t i) {
        std::int32_t const* const row = m_.row_of_pair + m_.first_pair_of[first + i];
        int const count = m_.pairs_of[first + i];
        float* const sum = to + i * hidden;
        if (count == 1) {
          float const* const from = m_.results + std::int64_t{*row} * hidden;
          if (r != rank()) std::copy(from, from + hidden, sum);
          return;
        }
        std::fill(sum, sum + hidden, 0.0f);
        for (int p = 0; p < count; ++p) {
          float const weight = Layer::router_traits.weighs_input ? scale : scale * m_.weights_in[m_.pair_of[row[p]]];
          add_weighted(sum, weight, m_.results + std::int64_t{row[p]} * hidden, hidden);
        }
      });
    }
    all_.start(
        back_tag + chunk,
        [&](int r) {
          std::int64_t const first = all_.first_returned[cell(r, chunk)];
          return part{m_.results_out + first * hidden, (all_.first_returned[cell(r, chunk) + 1] - first) * row_bytes};
        },
        [](int) { return part{}; });
  }

  /// The products of a chunk's experts, as one device with all tokens would choose them.
  void multiply(int chunk) {
    int const local_experts = static_cast<int>(all_.placement().experts_of(rank()).size());
    if (local_experts == 0) return;
    int first = 0, end = local_experts;
    while (chunk_of(first, local_experts, context_.chunks) < chunk && first < end) ++first;
    while (end > first && chunk_of(end - 1, local_experts, context_.chunks) > chunk) --end;
    auto weights = products::template weights_of<Layer>(args_.weights, [](auto const& o) { return as_operand(o); });
    using operand = decltype(weights.down);
    if constexpr (Layer::expert_traits.kept_units > 0) {
      weights.units = cpu::unit_kernels_of<element>(context_.local.instructions);
    }
    int const least = least_panel_rows<operand>();
    bool apart = all_.all_tokens() <= cpu::most_apart_tokens;
    bool as_alone = true;  // whether numbers of rows here lead to the same products
    for (int e = first; e < end; ++e) {
      as_alone = as_alone && (rows_of_all(e) >= least) == (m_.offsets[e + 1] - m_.offsets[e] >= least);
    }
    for (int e = 0; e < dims.experts; ++e) {
      std::int64_t rows = 0;
      for (int r = 0; r < ranks(); ++r) rows += kept_of(r)[e];
      apart = apart && rows <= std::min<std::int64_t>(cpu::item_rows, least - 1);
    }
    if (!apart) m_.apart.most_tokens = -1;
    cpu_context local = context_.local;
    for (int begin = first; begin < end;) {
      int to = as_alone ? end : begin + 1;
      if (!as_alone) {
        bool const by_panels = rows_of_all(begin) >= least;
        while (to < end && (rows_of_all(to) >= least) == by_panels) ++to;
        local.least_panel_rows = by_panels ? 1 : INT_MAX;
      }
      multiply(local, begin, to, weights);
      begin = to;
    }
  }
  /// Rows that one of the rank's experts has on all ranks.
  std::int64_t rows_of_all(int local_expert) const {
    int const e = all_.placement().experts_of(rank())[static_cast<std::size_t>(local_expert)] - first_expert_;
    std::int64_t rows = 0;
    for (int r = 0; e >= 0 && e < dims.experts && r < ranks(); ++r) rows += kept_of(r)[e];
    return rows;
  }
  template <class Operand>
  int least_panel_rows() const {
    cpu_context const& local = context_.local;
    if constexpr (cpu::operand_codes<Operand>::exist) {
      if (local.quantised == quantised_products::tokens_in_int8) return INT_MAX;
    }
    if (local.least_panel_rows > 0) return local.least_panel_rows;
    return cpu::panel_kernels_of<Operand>(local.instructions, local.floats).usual_rows;
  }
  template <class Weights>
  void multiply(cpu_context const& local, int first, int end, Weights const& weights) {
    if (m_.offsets[first] == m_.offsets[end]) return;
    for (int e = first; e < end; ++e) m_.next_row[e] = e;  // the matrix of each
    cpu::row_ranges const ranges{m_.offsets + first, m_.offsets + first + 1, end - first, m_.next_row + first,
                                 m_.next_row + first};
    cpu::expert_activation activation = cpu::activation_of<typename Layer::expert>(local.instructions);
    if constexpr (Layer::expert_traits.ranking == unit_ranking::norm_compensated) {
      activation.unit_norms = args_.weights.unit_norms;
    }
    // Rows before these have been computed, and stay; the place of those behind them is free.
    float* const packed = m_.results + divide_up(std::int64_t{m_.offsets[first]} * hidden, 16) * 16;
    view<element const> const received{m_.received, all_.first_received[cell(ranks(), 0)], hidden};
    cpu::run_products(local, ranges,
                      cpu::token_rows<element>{received, m_.pair_of, top_k,
                                               Layer::router_traits.weighs_input ? m_.weights_in : nullptr},
                      activation, weights,
                      {m_.first_padded_row, m_.first_item, m_.activated, packed, m_.results, m_.apart});
  }

  /// The shared expert, which all tokens visit at home; computed while rows travel.
  void compute_at_home() {
    cpu_context local = context_.local;
    if constexpr (shared) {
      // As one device would with the tokens of all ranks.
      local.least_panel_rows = all_.all_tokens() >= least_panel_rows<weight_view<element>>() ? 1 : INT_MAX;
    }
    at_home_ = products::template results_of<Layer>(args_, local, tokens_of_experts_, m_);
    at_home_.scale = 1.0f;  // it is in the weights
  }

  void combine() {
    using nulls = typename decltype(nulls_of<Layer>())::type;
    for (std::int64_t pair = 0; pair < pairs(); ++pair) {
      bool const is_null = m_.routed.experts[pair] >= dims.experts;
      m_.home_row[pair] = -1;
      m_.home_weight[pair] = m_.destination[pair] >= 0 ? 0.0f : (is_null ? scale : 1.0f) * m_.routed.weights[pair];
    }
    for (int r = 0; r < ranks(); ++r) {
      for_each_owed(all_, outgoing(), r,
                    [&](int chunk, std::int64_t at, std::int64_t token, std::int32_t const* words, int count) {
                      std::int64_t const pair = token * top_k + pair_word{words[2 * (count - 1)]}.choice();
                      std::int64_t row = m_.first_returned_row + at;
                      float weight = 1.0f;
                      if (count == 1) {
                        weight = Layer::router_traits.weighs_input ? scale : scale * m_.routed.weights[pair];
                        if (r == rank()) {
                          std::int64_t const owed =
                              all_.first_returned[cell(r, chunk)] + at - all_.first_return[cell(r, chunk)];
                          row = m_.row_of_pair[m_.first_pair_of[owed]];
                        }
                      }
                      m_.home_row[pair] = static_cast<std::int32_t>(row);
                      m_.home_weight[pair] = weight;
                    });
    }
    cpu::combine<element, nulls>({.tokens = tokens_of_experts_,
                                  .output = args_.output,
                                  .hidden = hidden,
                                  .top_k = top_k,
                                  .active = args_.active,
                                  .experts = m_.routed.experts,
                                  .row_of = m_.home_row,
                                  .weights = m_.home_weight,
                                  .dropped_pairs = m_.dropped,
                                  .results = at_home_,
                                  .weighs_input = false,
                                  .on_drop = capacity.on_drop,
                                  .replaces_zeros = Layer::router_traits.replaces_zeros},
                                 context_.local);
  }

  args_type const& args_;
  Context const& context_;
  std::remove_pointer_t<decltype(Context::group)>& all_;
  facts const& facts_;
  std::string_view layer_;
  int first_expert_;
  cpu::names called_;
  std::int64_t bytes_;
  pass_memory<Layer> m_;
  typename routing::template memory<Layer> of_routing_;
  view<element const> tokens_of_experts_ = {};
  cpu::expert_results<element> at_home_ = {};
};

/// A call's memory: that of the passes in turn, behind what they leave to each other.
template <class Schedule>
struct call_memory {
  template <class Layer>
  static constexpr std::size_t bytes(sizes const& of) {
    carver measure;
    measure.take<std::uint64_t>(1);
    measure.take<std::byte>(bytes_of_pass<Layer>(of));
    return measure.bytes();
  }
};
template <router::stratum_form Form, int... Experts>
struct call_memory<router::climbing<Form, Experts...>> {
  template <class Layer>
  static constexpr std::size_t bytes(sizes const& of) {
    carver measure;
    measure.take<std::uint64_t>(1);
    typename cpu::schedule_step<router::climbing<Form, Experts...>>::template passes_memory<Layer> const left(
        measure, of.tokens);
    static_cast<void>(left);
    std::int64_t most = 0;
    dispatch::for_each_pass<Layer>(
        [&]<int Stratum>() { most = std::max(most, bytes_of_pass<dispatch::pass_layer<Layer, Stratum>>(of)); });
    measure.take<std::byte>(most);
    return measure.bytes();
  }
};

}  // namespace detail

template <>
struct steps<backend::cpu> {
  template <class Layer>
  static constexpr std::size_t workspace_bytes(sizes const& of) {
    return detail::call_memory<typename Layer::router::schedule>::template bytes<Layer>(of);
  }

  template <class Layer, class Context>
  static void forward(forward_args<Layer> const& args, Context const& wanted) {
    static_assert(
        std::is_same_v<typename Layer::expert::computation, expert::two_products> &&
            !requires { typename Layer::expert::paths; } && !takes_expert_inputs<Layer>,
        "switchyard: backend::expert_parallel has feed-forward experts with matrices of their own: expert::mlp, "
        "expert::gated_mlp, what wraps them, expert::stored_as and expert::residual with restored weights. Experts "
        "that are rows, expert::low_rank, factored residuals and expert::adapters run on one device.");
    static_assert(Layer::dims.top_k < 1 << pair_word::choice_bits && Layer::dims.experts < 1 << pair_word::expert_bits,
                  "switchyard: backend::expert_parallel numbers choices with 10 bits and experts with 20. Lower "
                  "shape.top_k or shape.experts.");
    static_assert(Layer::expert_traits.nulls.count() <= most_null_experts,
                  "switchyard: backend::expert_parallel has tables for at most 64 null experts.");
    auto& all = *wanted.group;
    Context context = wanted;
    all.in_step([&] { check(args, context); });
    facts const of_call = facts_of(args, context);

    carver split(args.workspace.data());
    workspace_use const alone(split.take<std::uint64_t>(1));
    if constexpr (Layer::router::schedule::passes == 1) {
      detail::pass<Layer, Context>(args, context, of_call, name<Layer>(), 0, {}, rest(args, split), left(args, split))
          .run();
    } else {
      using climbing = cpu::schedule_step<typename Layer::router::schedule>;
      typename climbing::template passes_memory<Layer> m(split, args.tokens.rows);
      climbing::run_passes(args, context.local, m,
                           [&]<int Stratum>(forward_args<dispatch::pass_layer<Layer, Stratum>> const& of_pass,
                                            cpu::names const& called) {
                             facts of_this = of_call;
                             of_this.value[facts::count - 1] = Stratum;
                             return detail::pass<dispatch::pass_layer<Layer, Stratum>, Context>(
                                        of_pass, context, of_this, name<Layer>(), called.first_expert, called,
                                        rest(args, split), left(args, split))
                                 .run();
                           });
    }
  }

 private:
  template <class Layer>
  static std::byte* rest(forward_args<Layer> const&, carver split) {
    return split.take<std::byte>(0);
  }
  template <class Layer>
  static std::int64_t left(forward_args<Layer> const& args, carver const& split) {
    return args.workspace.data() + args.workspace.size() - rest(args, split);
  }
  template <class Layer>
  static std::string_view name() {
    static constexpr auto text = switchyard::name_of<typename Layer::router>() + "," +
                                 switchyard::name_of<typename Layer::capacity>() + "," +
                                 switchyard::name_of<typename Layer::expert>();
    return text.characters;
  }

  /// What can be wrong on this rank alone.
  template <class Layer, class Context>
  static void check(forward_args<Layer> const& args, Context& context) {
    auto const& all = *context.group;
    Layer::check(args);
    if (all.placement().experts_of(all.rank()).empty()) {
      Layer::expert::template check_common<Layer>(args.weights);
    } else {
      Layer::expert::template check<Layer>(args.weights);
    }
    if (all.placement().experts() != Layer::dims.experts) {
      fail("backend::expert_parallel, placement", std::to_string(Layer::dims.experts) + " experts, as the layer has",
           std::to_string(all.placement().experts()));
    }
    if (context.chunks < 0 || context.chunks > most_chunks) {
      fail("layer::forward, context.chunks", "0 to " + std::to_string(most_chunks), std::to_string(context.chunks));
    }
    if (context.chunks == 0 || has_sparse_change<typename Layer::weights::in_operand>) context.chunks = 1;
    context.local = cpu::resolved(context.local);
    cpu::experts_step<expert::two_products>::check(args, context.local);
    checks::check_workspace(args.workspace.data(), args.workspace.size(),
                            workspace_bytes<Layer>(sizes{.tokens = args.tokens.rows}), args.tokens.rows);
  }

  template <class Layer, class Context>
  static facts facts_of(forward_args<Layer> const& args, Context const& context) {
    cpu_context const& local = context.local;
    std::int64_t inputs = 0;
    if constexpr (detail::drops_out<Layer>) {
      inputs =
          detail::number_of({reinterpret_cast<char const*>(&args.inputs.seed.value), sizeof args.inputs.seed.value},
                            args.inputs.first_token + (args.inputs.seed.exists ? 1 : 0));
    }
    if constexpr (detail::clusters<Layer>) inputs = args.inputs.feature_scale == nullptr ? 0 : 1;
    bool auxiliary = false;
    if constexpr (makes_logits<typename Layer::router>) auxiliary = args.auxiliary != nullptr;
    std::int64_t const version =
        SWITCHYARD_VERSION_MAJOR * 1000000 + SWITCHYARD_VERSION_MINOR * 1000 + SWITCHYARD_VERSION_PATCH;
    std::int64_t const products =
        ((std::int64_t{local.least_panel_rows} * 16 + static_cast<int>(local.instructions)) * 4 +
         static_cast<int>(local.floats)) *
            4 +
        static_cast<int>(local.quantised) * 2 + static_cast<int>(local.unroutable);
    return {{version, Layer::dims.hidden, Layer::dims.intermediate, Layer::dims.experts, Layer::dims.top_k,
             detail::number_of(name<Layer>(), sizeof(typename Layer::element)), products,
             static_cast<int>(context.sums), static_cast<int>(context.capacity), context.chunks,
             context.group->placement().fingerprint(), args.tokens_per_group, auxiliary ? 1 : 0, inputs, 0}};
  }
};

}  // namespace switchyard::parallel
