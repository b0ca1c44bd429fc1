#pragma once

#include <switchyard/backend/cuda/cuda.cuh>
#include <switchyard/backend/cuda/launch.cuh>
#include <switchyard/backend/cuda/products.cuh>
#include <switchyard/backend/cuda/route.cuh>
#include <switchyard/backend/cuda/temporaries.cuh>
#include <switchyard/backend/expert_parallel.hpp>
#include <switchyard/core/checks.hpp>
#include <switchyard/core/divide_up.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/dispatch/plan.hpp>
#include <switchyard/layer.hpp>
#include <switchyard/parallel/exchange.hpp>
#include <switchyard/parallel/group.hpp>
#include <switchyard/router/expert_dropout.hpp>
#include <switchyard/router/s_base.hpp>
#include <switchyard/version.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

/// `backend::expert_parallel` around `backend::cuda` and `backend::hopper`:
///
///   route -> read back -> who goes where (host) -> numbers to all ranks -> rows out -> products, chunk by chunk -> results back -> combine
///
/// Kernels of routing, products and combine are those of the backend; there are two more, which gather rows for the others. The host
/// decides from the routes that it reads back, as it does for `backend::cpu`, and waits for the others.
namespace switchyard::cuda {

/// Rows of tokens that go to ranks, entry by entry; those that stay on this rank go where they are received.
template <class Element>
struct gathered_rows {
  view<Element const> tokens;
  bool aligned;                     ///< tokens may be moved by 16 bytes
  std::int32_t const* token_of;     ///< [entries]
  std::int64_t first_own, end_own;  ///< entries that stay
  Element *out, *own;               ///< [entries, stride]; [end_own - first_own, stride]
  std::int64_t stride;              ///< a multiple of 16 bytes
};

/// A block per entry: token --copy--> message.
template <class Element>
__global__ void __launch_bounds__(most_combine_threads) gather_rows(gathered_rows<Element> const args) {
  constexpr int width = chunk_bytes / static_cast<int>(sizeof(Element));
  std::int64_t const entry = blockIdx.x;
  int const hidden = static_cast<int>(args.tokens.columns);
  Element const* const from = args.tokens.row(args.token_of[entry]);
  bool const stays = entry >= args.first_own && entry < args.end_own;
  Element* const to = stays ? args.own + (entry - args.first_own) * args.stride : args.out + entry * args.stride;
  for (int first = static_cast<int>(threadIdx.x) * width; first < hidden;
       first += static_cast<int>(blockDim.x) * width) {
    if (args.aligned && first + width <= hidden) {
      *reinterpret_cast<chunk*>(to + first) = *reinterpret_cast<chunk const*>(from + first);
    } else {
      for (int i = first; i < first + width; ++i) to[i] = i < hidden ? from[i] : Element(0.0f);
    }
  }
}

/// Results that go back to the ranks of their tokens, as floats: the row of one pair, or the sum over several of a token.
template <class Element>
struct summed_returns {
  summed_row<Element> const* rows;         ///< [rows, stride]
  std::int64_t stride;                     ///< a multiple of 16 bytes
  std::int32_t const* numbers;             ///< [blocks]: the returns of the launch
  std::int32_t const *first_pair, *pairs;  ///< [returns]
  std::int32_t const* row_of;              ///< of each pair
  std::int32_t const* pair_of;             ///< [rows], entry * top_k + number of the pair in its entry
  float const* weights;                    ///< [entries, top_k]; null: rows have theirs
  float scale;                             ///< of all
  std::int64_t first_own, end_own;         ///< returns that stay
  float *out, *own;                        ///< [returns, stride]; [end_own - first_own, stride]
};

/// A block per return: rows of its pairs --in the order of choice, as `combine_rows` adds them--> message.
template <class Element>
__global__ void __launch_bounds__(most_combine_threads) sum_returns(summed_returns<Element> const args) {
  using row_type = summed_row<Element>;
  constexpr int width = chunk_bytes / static_cast<int>(sizeof(Element));
  constexpr int each = chunk_bytes / static_cast<int>(sizeof(row_type));
  std::int64_t const number = args.numbers[blockIdx.x];
  std::int32_t const* const row_of = args.row_of + args.first_pair[number];
  int const pairs = args.pairs[number];
  bool const stays = number >= args.first_own && number < args.end_own;
  float* const to = stays ? args.own + (number - args.first_own) * args.stride : args.out + number * args.stride;
  for (int first = static_cast<int>(threadIdx.x) * width; first < args.stride;
       first += static_cast<int>(blockDim.x) * width) {
    float values[width], sum[width] = {};
    for (int p = 0; p < pairs; ++p) {
      std::int32_t const row = row_of[p];
      auto const* const chunks = reinterpret_cast<chunk const*>(args.rows + row * args.stride + first);
#pragma unroll
      for (int i = 0; i < width / each; ++i) {
        to_floats<row_type>(chunks[i], reinterpret_cast<float(&)[each]>(values[i * each]));
      }
      if (pairs == 1) break;
      float const weight = args.weights == nullptr ? args.scale : args.scale * args.weights[args.pair_of[row]];
#pragma unroll
      for (int i = 0; i < width; ++i) sum[i] += weight * values[i];
    }
    float const(&result)[width] = pairs == 1 ? values : sum;
#pragma unroll
    for (int i = 0; i < width; i += 4) {
      *reinterpret_cast<chunk*>(to + first + i) = from_floats<float>(reinterpret_cast<float const(&)[4]>(result[i]));
    }
  }
}

/// Whether ranks have to learn of each other's tokens before they route.
template <class Source>
inline constexpr bool is_balanced = false;
template <sinkhorn_traits Form>
inline constexpr bool is_balanced<router::from_balanced_logits<Form>> = true;

/// A call on one rank.
template <class Layer, class Products>
class ranks_call {
  using context_type = typename Layer::backend::context;
  using element = typename Layer::element;
  using args_type = forward_args<Layer>;
  using routing = route_step<typename Layer::router::source>;
  using computing = experts_step<expert::two_products, Products>;
  using rows_memory = typename computing::template rows_memory<element>;
  static constexpr shape dims = Layer::dims;
  static constexpr int all_experts = Layer::all_experts, top_k = dims.top_k;
  static constexpr int shared_intermediate = Layer::expert_traits.shared_intermediate;
  static constexpr capacity_traits capacity = Layer::capacity_traits;
  static constexpr std::int64_t row_stride = padded<element>(dims.hidden);
  static constexpr float scale = static_cast<float>(Layer::expert_traits.scale_numerator) /
                                 static_cast<float>(Layer::expert_traits.scale_denominator);

  static constexpr shape of_rows() {
    shape result = dims;
    result.top_k = 1;
    return result;
  }
  static constexpr shape of_no_rows() {
    shape result = dims;
    result.top_k = 0;
    return result;
  }

  /// What the router decides: on the device, and as it is read back.
  struct decided {
    std::int32_t* experts;  // [tokens, top_k]
    float *weights, *priority;
    constexpr decided(carver& from, std::int64_t tokens)
        : experts(from.take<std::int32_t>(tokens * top_k)),
          weights(from.take<float>(tokens * top_k)),
          priority(from.take<float>(capacity.order == queue::priority ? tokens : 0)) {}
  };
  /// How tokens are added, and what for.
  struct added {
    std::int32_t* row_of;  // [tokens, top_k]: results that have come back; -1: none
    float* weights;        // [tokens, top_k]
    std::uint8_t* dropped;
    constexpr added(carver& from, std::int64_t tokens)
        : row_of(from.take<std::int32_t>(tokens * top_k)),
          weights(from.take<float>(tokens * top_k)),
          dropped(from.take<std::uint8_t>(tokens * top_k)) {}
  };
  /// Rows of this rank's experts, and what goes back of them.
  struct planned {
    std::int32_t *offsets, *relative, *ids;                              // [experts + 1], [experts + chunks], [experts]
    std::int32_t *pair_of, *row_of_pair, *first_pair, *pairs, *returns;  // [rows]
    float* weights;                                                      // [entries, top_k]
    constexpr planned(carver& from, std::int64_t entries, std::int64_t rows)
        : offsets(from.take<std::int32_t>(dims.experts + 1)),
          relative(from.take<std::int32_t>(dims.experts + parallel::most_chunks)),
          ids(from.take<std::int32_t>(dims.experts)),
          pair_of(from.take<std::int32_t>(rows)),
          row_of_pair(from.take<std::int32_t>(rows)),
          first_pair(from.take<std::int32_t>(rows)),
          pairs(from.take<std::int32_t>(rows)),
          returns(from.take<std::int32_t>(rows)),
          weights(from.take<float>(entries * top_k)) {}
  };
  /// Bytes of one of these, which the host and the device lay out alike, so that one copy brings all of it.
  template <class Lists, class... Sizes>
  static constexpr std::int64_t bytes_of(Sizes... sizes) {
    carver measure;
    Lists const lists(measure, sizes...);
    static_cast<void>(lists);
    return static_cast<std::int64_t>(measure.bytes());
  }
  template <class Lists, class... Sizes>
  static Lists lists_at(std::byte* memory, Sizes... sizes) {
    carver from(memory);
    return Lists(from, sizes...);
  }

  /// Device memory for the rank's own tokens.
  struct home_memory {
    typename routing::template memory<Layer> of_routing;
    std::byte *decided_at, *added_at;
    std::int32_t* entry_token;  // [tokens * top_k]
    element* rows_out;          // [tokens * top_k, row_stride]
    float* returned;            // the same
    rows_memory shared;
    constexpr home_memory(carver& from, std::int64_t tokens)
        : of_routing(from, tokens),
          decided_at(from.take<std::byte>(bytes_of<decided>(tokens))),
          added_at(from.take<std::byte>(bytes_of<added>(tokens))),
          entry_token(from.take<std::int32_t>(tokens * top_k)),
          rows_out(from.take<element>(tokens * top_k * row_stride)),
          returned(from.take<float>(tokens * top_k * row_stride)),
          shared(of_no_rows(), shared_intermediate, from, tokens) {}
  };
  /// Device memory for the rank's experts.
  struct expert_memory {
    element* received;  // [entries, row_stride]
    std::byte* planned_at;
    float* results_out;  // [rows, row_stride]
    rows_memory rows;
    constexpr expert_memory(carver& from, std::int64_t entries, std::int64_t count)
        : received(from.take<element>(entries * row_stride)),
          planned_at(from.take<std::byte>(bytes_of<planned>(entries, count))),
          results_out(from.take<float>(count * row_stride)),
          rows(of_rows(), 0, from, count) {}
  };

  /// Pinned memory of the host: for the rank's own tokens, for what is decided about all, for its experts.
  struct home_lists {
    std::byte *decided_at, *added_at;
    std::uint8_t *active, *dropped;                   // [tokens], [tokens, top_k]
    std::int32_t *order, *used;                       // [tokens], [all experts]
    std::int32_t *destination, *entry_token, *words;  // [tokens * top_k], and 3 times as many words
    float* told_weights;                              // [tokens, top_k], for `decisions`
    std::int64_t *counts, *load;                      // [all experts]
    constexpr home_lists(carver& from, std::int64_t tokens)
        : decided_at(from.take<std::byte>(bytes_of<decided>(tokens))),
          added_at(from.take<std::byte>(bytes_of<added>(tokens))),
          active(from.take<std::uint8_t>(capacity.drops ? tokens : 0)),
          dropped(from.take<std::uint8_t>(tokens * top_k)),
          order(from.take<std::int32_t>(capacity.order == queue::priority ? tokens : 0)),
          used(from.take<std::int32_t>(all_experts)),
          destination(from.take<std::int32_t>(tokens * top_k)),
          entry_token(from.take<std::int32_t>(tokens * top_k)),
          words(from.take<std::int32_t>(3 * tokens * top_k)),
          told_weights(from.take<float>(tokens * top_k)),
          counts(from.take<std::int64_t>(all_experts)),
          load(from.take<std::int64_t>(all_experts)) {}
  };
  struct all_lists {
    std::int32_t* experts;  // [all tokens, top_k]
    float* priority;        // [all tokens]
    std::uint8_t *active, *dropped;
    std::int32_t* order;
    constexpr all_lists(carver& from, std::int64_t all_tokens)
        : experts(from.take<std::int32_t>(all_tokens * top_k)),
          priority(from.take<float>(capacity.order == queue::priority ? all_tokens : 0)),
          active(from.take<std::uint8_t>(all_tokens)),
          dropped(from.take<std::uint8_t>(all_tokens * top_k)),
          order(from.take<std::int32_t>(capacity.order == queue::priority ? all_tokens : 0)) {}
  };
  struct expert_lists {
    std::int32_t *words, *next_row;
    std::byte* planned_at;
    constexpr expert_lists(carver& from, std::int64_t entries, std::int64_t rows)
        : words(from.take<std::int32_t>(entries + 2 * rows)),
          next_row(from.take<std::int32_t>(dims.experts)),
          planned_at(from.take<std::byte>(bytes_of<planned>(entries, rows))) {}
  };

 public:
  static constexpr std::int64_t device_bytes(parallel::sizes const& of) {
    carver measure;
    home_memory const home(measure, of.tokens);
    expert_memory const experts(measure, std::min(of.rows, of.all_tokens), of.rows);
    static_cast<void>(home);
    static_cast<void>(experts);
    return static_cast<std::int64_t>(measure.bytes());
  }
  static constexpr std::int64_t host_bytes(parallel::sizes const& of, bool gathers = capacity.drops) {
    carver measure;
    home_lists const home(measure, of.tokens);
    static_cast<void>(home);
    if (gathers) {
      all_lists const all(measure, of.all_tokens);
      static_cast<void>(all);
    }
    expert_lists const experts(measure, std::min(of.rows, of.all_tokens), of.rows);
    static_cast<void>(experts);
    return static_cast<std::int64_t>(measure.bytes());
  }

  ranks_call(args_type const& args, context_type const& context, parallel::facts const& of_call, std::string_view layer)
      : args_(args),
        context_(context),
        all_(*context.group),
        facts_(of_call),
        layer_(layer),
        device_(args.workspace.data()),
        host_(context.host_workspace.data()),
        home_(device_, args.tokens.rows),
        lists_(host_, args.tokens.rows),
        chosen_(lists_at<decided>(home_.decided_at, args.tokens.rows)),
        read_(lists_at<decided>(lists_.decided_at, args.tokens.rows)) {}

  void run() {
    all_.in_step([&] { route(); });
    if constexpr (capacity.drops) drop();
    plan();
    announce(true);
    all_.midway([&] {
      tell_decisions();
      compute();
      combine();
    });
  }

 private:
  // Values of a rank: rows kept of each expert and the load of each, int32, then a word with the bytes of its lists.
  static constexpr int load_at = dims.experts, lists_word = static_cast<int>(divide_up(load_at + all_experts, 2)),
                       value_count = lists_word + 1;
  enum { gather_tag = 1, word_tag, row_tag, back_tag = row_tag + parallel::most_chunks };

  std::int64_t tokens() const { return args_.tokens.rows; }
  std::int64_t pairs() const { return tokens() * top_k; }
  int ranks() const { return all_.ranks(); }
  int rank() const { return all_.rank(); }
  int chunks() const { return context_.chunks; }
  cudaStream_t stream() const { return context_.local.stream; }
  launch_queue kernels() const { return context_.local; }
  int local_experts() const { return static_cast<int>(all_.placement().experts_of(rank()).size()); }
  std::size_t cell(int rank, int turn) const { return static_cast<std::size_t>(rank * chunks() + turn); }
  std::int32_t const* kept_of(int rank) const { return reinterpret_cast<std::int32_t const*>(all_.values(rank)); }
  bool gathers() const { return capacity.drops && context_.capacity == parallel::capacity_scope::all_ranks; }

  void copy(void* to, void const* from, std::int64_t bytes, cudaMemcpyKind kind) const {
    if (bytes == 0) return;
    check("cudaMemcpyAsync", cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), kind, stream()));
  }

  /// Tokens to experts and weights, read back.
  void route() {
    route_results results{};
    results.experts = chosen_.experts;
    results.weights = chosen_.weights;
    if constexpr (capacity.order == queue::priority) results.priority = chosen_.priority;
    std::int64_t const block_tokens = routing::template block_tokens<Layer>(tokens());
    results.chosen.block_pairs = static_cast<int>(block_tokens) * top_k;
    results.chosen.token_blocks = divide_up(tokens(), block_tokens);
    routing::template enqueue<Layer>(args_, kernels(), home_.of_routing, results, nullptr);
    if (tokens() > 0) copy(lists_.decided_at, home_.decided_at, bytes_of<decided>(tokens()), cudaMemcpyDeviceToHost);
    if constexpr (capacity.drops) {
      if (args_.active != nullptr) copy(lists_.active, args_.active, tokens(), cudaMemcpyDeviceToHost);
    }
    check("cudaStreamSynchronize", cudaStreamSynchronize(stream()));
  }

  /// Tells the others, and looks whether all ranks have memory for all that is known so far.
  void announce(bool counted) {
    all_.values(rank())[lists_word] = static_cast<std::int64_t>(context_.host_workspace.size());
    all_.announce(facts_, layer_, tokens(), static_cast<std::int64_t>(args_.workspace.size()), value_count);
    for (int r = 0; r < ranks(); ++r) {
      parallel::sizes const needed{.tokens = all_.tokens_of(r),
                                   .all_tokens = all_.all_tokens(),
                                   .rows = counted ? rows_of(r) : 0,
                                   .ranks = ranks()};
      check_bytes("workspace", r, device_bytes(needed), all_.workspace_of(r));
      check_bytes("context.host_workspace", r, host_bytes(needed, gathers()), all_.values(r)[lists_word]);
    }
  }
  std::int64_t rows_of(int r) const {
    return parallel::rows_of_rank(all_, r, dims.experts, 0, [&](int source) { return kept_of(source); });
  }
  static void check_bytes(char const* which, int rank, std::int64_t needed, std::int64_t there) {
    if (there >= needed) return;
    fail(std::string("backend::expert_parallel, ") + which + " of rank " + std::to_string(rank),
         "at least " + std::to_string(needed) + " bytes for this call, with the rows that its experts have",
         std::to_string(there));
  }

  /// `columns` values of each token of all ranks, on every rank.
  template <class T>
  void gather(T const* own, T* to, std::int64_t columns) {
    auto const at = [&](int r) {
      return parallel::part{to + all_.first_token(r) * columns,
                            all_.tokens_of(r) * columns * static_cast<std::int64_t>(sizeof(T))};
    };
    std::copy(own, own + tokens() * columns, to + all_.first_token(rank()) * columns);
    all_.start(
        gather_tag, [&](int) { return at(rank()); }, at);
    all_.wait(gather_tag);
  }

  /// Which pairs their experts do not take.
  void drop() {
    if (args_.active == nullptr) std::fill(lists_.active, lists_.active + tokens(), std::uint8_t{1});
    dispatch::assignment own{.tokens = tokens(),
                             .tokens_per_group = args_.tokens_per_group,
                             .active = lists_.active,
                             .experts = read_.experts,
                             .weights = read_.weights,
                             .priority = read_.priority,
                             .dropped = lists_.dropped,
                             .used = lists_.used,
                             .order = lists_.order};
    if (!gathers()) {
      dispatch::drop_pairs<typename Layer::capacity, dims, all_experts>(own);
    } else {
      announce(false);
      all_lists const lists(host_, all_.all_tokens());
      gather(read_.experts, lists.experts, top_k);
      if constexpr (capacity.order == queue::priority) gather(read_.priority, lists.priority, 1);
      gather(lists_.active, lists.active, 1);
      dispatch::assignment all = own;
      all.tokens = all_.all_tokens();
      all.active = lists.active;
      all.experts = lists.experts;
      all.priority = lists.priority;
      all.dropped = lists.dropped;
      all.order = lists.order;
      dispatch::drop_pairs<typename Layer::capacity, dims, all_experts>(all);
      std::uint8_t const* const mine = lists.dropped + all_.first_token(rank()) * top_k;
      std::copy(mine, mine + pairs(), lists_.dropped);
    }
    if constexpr (capacity.renormalises) dispatch::detail::renormalise(own, top_k);
  }

  /// Where this rank's pairs go.
  void plan() {
    if constexpr (!capacity.drops) std::fill(lists_.dropped, lists_.dropped + pairs(), std::uint8_t{0});
    auto* const kept = reinterpret_cast<std::int32_t*>(all_.values(rank()));
    parallel::plan_sends(all_, outgoing(), kept);
    std::int32_t* const load = kept + load_at;
    std::fill(load, load + all_experts, 0);
    for (std::int64_t pair = 0; pair < pairs(); ++pair) {
      if (read_.experts[pair] >= 0) ++load[read_.experts[pair]];
    }
  }
  parallel::home_routes outgoing() const {
    return {.tokens = tokens(),
            .experts = dims.experts,
            .first_expert = 0,
            .top_k = top_k,
            .chunks = chunks(),
            .expert_of = read_.experts,
            .weights = read_.weights,
            .dropped = lists_.dropped,
            .drops_add = capacity.on_drop == dropped::weighted_input,
            .added = context_.sums,
            .destination = lists_.destination,
            .entry_token = lists_.entry_token,
            .words = lists_.words};
  }

  void tell_decisions() {
    decisions const& to = args_.decisions;
    auto const tell = [&](auto* where, auto const* what, std::int64_t count) {
      if (where != nullptr) {
        copy(where, what, count * static_cast<std::int64_t>(sizeof *what), cudaMemcpyHostToDevice);
      }
    };
    tell(to.experts, read_.experts, pairs());
    tell(to.dropped, lists_.dropped, pairs());
    if (to.weights != nullptr) {
      for (std::int64_t pair = 0; pair < pairs(); ++pair) {
        lists_.told_weights[pair] = lists_.dropped[pair] != 0 ? 0.0f : read_.weights[pair];
      }
      tell(to.weights, lists_.told_weights, pairs());
    }
    for (int e = 0; e < all_experts; ++e) {
      lists_.counts[e] = lists_.load[e] = 0;
      for (int r = 0; r < ranks(); ++r) {
        if (e < dims.experts) lists_.counts[e] += kept_of(r)[e];
        lists_.load[e] += kept_of(r)[load_at + e];
      }
    }
    tell(to.counts, lists_.counts, all_experts);
    tell(to.load, lists_.load, all_experts);
  }

  /// Begins to send and receive device memory, behind what is on the stream.
  template <class To, class From>
  void start_behind(int tag, To const& to, From const& from) {
    all_.transport().follow(stream());
    all_.start(tag, to, from);
  }
  template <class T>
  static parallel::part rows_at(T* rows, std::int64_t first, std::int64_t end) {
    return {rows + first * row_stride, (end - first) * row_stride * static_cast<std::int64_t>(sizeof(T))};
  }

  /// Rows out, products, results back. Batches begin in the same order on all ranks.
  void compute() {
    std::int64_t const rows = rows_of(rank());
    parallel::place_received(all_, chunks());
    std::int64_t const entries = std::min(rows, all_.all_tokens());
    expert_memory const m(device_, entries, rows);
    expert_lists const lists(host_, entries, rows);
    planned const on_host = lists_at<planned>(lists.planned_at, entries, rows),
                  on_device = lists_at<planned>(m.planned_at, entries, rows);
    send_words(lists);
    send_rows(m);
    compute_at_home();
    take_words(lists, on_host);
    copy(m.planned_at, lists.planned_at, bytes_of<planned>(entries, rows), cudaMemcpyHostToDevice);
    if (m.rows.exponents.any != nullptr) clear(m.rows.exponents.any);
    for (int c = 0; c < chunks(); ++c) {
      all_.wait(row_tag + c);
      multiply(c, m, on_host, on_device);
      send_results(c, m, on_device);
    }
    for (int c = 0; c < chunks(); ++c) all_.wait(back_tag + c);
  }

  void send_words(expert_lists const& lists) {
    std::int64_t const words_here = all_.first_word[cell(rank() + 1, 0)] - all_.first_word[cell(rank(), 0)];
    constexpr auto word = static_cast<std::int64_t>(sizeof(std::int32_t));
    std::int64_t at = 0;
    for (int r = 0; r < ranks(); ++r) {
      all_.cursor[static_cast<std::size_t>(r)] = at;
      at += parallel::words_of(all_.received_counts(r), chunks());
    }
    std::copy_n(lists_.words + all_.first_word[cell(rank(), 0)], words_here,
                lists.words + all_.cursor[static_cast<std::size_t>(rank())]);
    all_.start(
        word_tag,
        [&](int r) {
          std::int64_t const first = all_.first_word[cell(r, 0)];
          return parallel::part{lists_.words + first, (all_.first_word[cell(r + 1, 0)] - first) * word};
        },
        [&](int r) {
          return parallel::part{lists.words + all_.cursor[static_cast<std::size_t>(r)],
                                parallel::words_of(all_.received_counts(r), chunks()) * word};
        });
  }
  void take_words(expert_lists const& lists, planned const& to) {
    all_.wait(word_tag);
    int const experts = local_experts();
    parallel::plan_rows(all_, lists.words,
                        {.local_experts = experts,
                         .top_k = top_k,
                         .chunks = chunks(),
                         .offsets = to.offsets,
                         .next_row = lists.next_row,
                         .pair_of = to.pair_of,
                         .weights = to.weights,
                         .row_of_pair = to.row_of_pair,
                         .first_pair_of = to.first_pair,
                         .pairs_of = to.pairs});
    for (int e = 0; e < experts; ++e) to.ids[e] = e;
    std::int32_t *relative = to.relative, *next = to.returns;
    for (int c = 0; c < chunks(); ++c) {
      auto const [first, end] = experts_of(c);
      for (int e = first; e <= end && first < end; ++e) *relative++ = to.offsets[e] - to.offsets[first];
      for (int r = 0; r < ranks(); ++r) {
        for (std::int64_t i = all_.first_returned[cell(r, c)]; i < all_.first_returned[cell(r, c) + 1]; ++i) {
          *next++ = static_cast<std::int32_t>(i);
        }
      }
    }
  }
  /// The rank's experts of a chunk.
  struct range {
    int first, end;
  };
  range experts_of(int turn) const {
    range result{0, local_experts()};
    while (result.first < result.end && parallel::chunk_of(result.first, local_experts(), chunks()) < turn) {
      ++result.first;
    }
    while (result.end > result.first && parallel::chunk_of(result.end - 1, local_experts(), chunks()) > turn) {
      --result.end;
    }
    return result;
  }

  void send_rows(expert_memory const& m) {
    view<element const> const seen = tokens_of_experts();
    std::int64_t const entries = all_.first_entry[cell(ranks(), 0)];
    copy(home_.entry_token, lists_.entry_token, entries * static_cast<std::int64_t>(sizeof(std::int32_t)),
         cudaMemcpyHostToDevice);
    if (entries > 0) {
      launch(kernels(), "gather_rows", gather_rows<element>, entries, combine_threads<element>(dims.hidden), 0,
             gathered_rows<element>{.tokens = seen,
                                    .aligned = is_aligned(seen),
                                    .token_of = home_.entry_token,
                                    .first_own = all_.first_entry[cell(rank(), 0)],
                                    .end_own = all_.first_entry[cell(rank() + 1, 0)],
                                    .out = home_.rows_out,
                                    .own = m.received + all_.first_received[cell(rank(), 0)] * row_stride,
                                    .stride = row_stride});
    }
    for (int c = 0; c < chunks(); ++c) {
      start_behind(
          row_tag + c,
          [&](int r) {
            return rows_at(home_.rows_out, all_.first_entry[cell(r, c)], all_.first_entry[cell(r, c) + 1]);
          },
          [&](int r) {
            return rows_at(m.received, all_.first_received[cell(r, c)], all_.first_received[cell(r, c) + 1]);
          });
    }
  }
  view<element const> tokens_of_experts() const {
    return routing::template tokens_of_experts<Layer>(args_, home_.of_routing);
  }

  void clear(std::int32_t* number) const {
    check("cudaMemsetAsync", cudaMemsetAsync(number, 0, sizeof *number, stream()));
  }

  /// The arguments of both products of some rows, for the experts that are named.
  auto products_of(view<element const> const& rows, planned const& plan, rows_memory const& m,
                   expert_rows const& experts) const {
    carver none;
    plan_memory of_plan({.experts = dims.experts,
                         .all_experts = all_experts,
                         .top_k = top_k,
                         .capacity = capacity_traits{},
                         .block_tokens = routing::least_block_tokens,
                         .least_block_tokens = routing::least_block_tokens},
                        none, 0);
    of_plan.plan.offsets = plan.offsets;
    of_plan.plan.pair_of = plan.pair_of;
    of_plan.weights = plan.weights;
    auto both = computing::template products_of<Layer>(args_, args_.weights, rows, of_plan, m,
                                                       [](auto const& operand) { return as_operand(operand); });
    both.in.experts = both.out.experts = experts;
    both.in.all_tokens = both.out.all_tokens = all_.all_tokens();
    return both;
  }

  /// The shared expert, which all tokens visit at home, while rows travel.
  void compute_at_home() {
    if constexpr (shared_intermediate > 0) {
      if (tokens() == 0) return;
      if (home_.shared.exponents.any != nullptr) clear(home_.shared.exponents.any);
      carver none;
      planned const nothing(none, 0, 0);
      auto const both = products_of(tokens_of_experts(), nothing, home_.shared, expert_rows{});
      Products::template enqueue<Layer>(kernels(), both.in, both.out, [] {});
    }
  }

  /// The products of a chunk's experts, by the kernels that one device with all tokens would take.
  void multiply(int turn, expert_memory const& m, planned const& on_host, planned const& on_device) {
    auto const [first, end] = experts_of(turn);
    if (first == end) return;
    std::int32_t const rows = on_host.offsets[end] - on_host.offsets[first];
    if (rows == 0) return;
    view<element const> received{m.received, all_.first_received[cell(ranks(), 0)], dims.hidden};
    received.row_stride = row_stride;
    auto both = products_of(received, on_device, m.rows,
                            {.count = end - first,
                             .begin = on_device.offsets + first,
                             .end = on_device.offsets + first + 1,
                             .matrix_of = on_device.ids + first,
                             .matrices = local_experts(),
                             .most = rows});
    both.in.shared.features = both.out.shared.features = 0;
    // Numbers of rows before a chunk's experts stand behind those of the chunks before, one more than these have experts.
    int before = 0;
    for (int c = 0; c < turn; ++c) before += experts_of(c).end > experts_of(c).first ? 1 : 0;
    Products::template enqueue<Layer>(kernels(), both.in, both.out, [&] {
      computing::template enqueue_between<Layer>(args_, kernels(), m.rows,
                                                 {.experts = end - first,
                                                  .offsets = on_device.relative + first + before,
                                                  .begin = on_device.offsets + first,
                                                  .expert_of = on_device.ids + first},
                                                 rows);
    });
  }

  void send_results(int turn, expert_memory const& m, planned const& on_device) {
    std::int64_t before = 0, count = 0;
    for (int r = 0; r < ranks(); ++r) {
      for (int c = 0; c <= turn; ++c) {
        (c < turn ? before : count) += all_.first_returned[cell(r, c) + 1] - all_.first_returned[cell(r, c)];
      }
    }
    if (count > 0) {
      launch(kernels(), "sum_returns", sum_returns<element>, count, combine_threads<element>(dims.hidden), 0,
             summed_returns<element>{.rows = m.rows.results,
                                     .stride = row_stride,
                                     .numbers = on_device.returns + before,
                                     .first_pair = on_device.first_pair,
                                     .pairs = on_device.pairs,
                                     .row_of = on_device.row_of_pair,
                                     .pair_of = on_device.pair_of,
                                     .weights = Layer::router_traits.weighs_input ? nullptr : on_device.weights,
                                     .scale = scale,
                                     .first_own = all_.first_returned[cell(rank(), 0)],
                                     .end_own = all_.first_returned[cell(rank() + 1, 0)],
                                     .out = m.results_out,
                                     .own = home_.returned + all_.first_return[cell(rank(), 0)] * row_stride});
    }
    start_behind(
        back_tag + turn,
        [&](int r) {
          return rows_at(m.results_out, all_.first_returned[cell(r, turn)], all_.first_returned[cell(r, turn) + 1]);
        },
        [&](int r) {
          return rows_at(home_.returned, all_.first_return[cell(r, turn)], all_.first_return[cell(r, turn) + 1]);
        });
  }

  /// Each token's sum over what has come back.
  void combine() {
    if (tokens() == 0) return;
    using nulls = typename decltype(nulls_of<Layer>())::type;
    added const on_host = lists_at<added>(lists_.added_at, tokens()),
                on_device = lists_at<added>(home_.added_at, tokens());
    for (std::int64_t pair = 0; pair < pairs(); ++pair) {
      bool const is_null = read_.experts[pair] >= dims.experts;
      on_host.row_of[pair] = -1;
      on_host.weights[pair] = lists_.destination[pair] >= 0 ? 0.0f
                              : is_null                     ? scale * read_.weights[pair]
                                                            : read_.weights[pair];
      on_host.dropped[pair] = lists_.dropped[pair];
    }
    for (int r = 0; r < ranks(); ++r) {
      parallel::for_each_owed(
          all_, outgoing(), r, [&](int, std::int64_t at, std::int64_t token, std::int32_t const* words, int count) {
            std::int64_t const pair = token * top_k + parallel::pair_word{words[2 * (count - 1)]}.choice();
            on_host.row_of[pair] = static_cast<std::int32_t>(at);
            on_host.weights[pair] = count > 1                           ? 1.0f
                                    : Layer::router_traits.weighs_input ? scale
                                                                        : scale * read_.weights[pair];
          });
    }
    copy(home_.added_at, lists_.added_at, bytes_of<added>(tokens()), cudaMemcpyHostToDevice);

    expert_results<element> const at_home = computing::template results_of<Layer>(args_, home_.shared);
    view<element const> const seen = tokens_of_experts();
    constexpr dropped on_drop = capacity.drops ? capacity.on_drop : dropped::zero;
    launch(kernels(), "combine_rows",
           combine_rows<element, top_k, on_drop, Layer::expert_traits.output_bias, nulls,
                        Layer::router_traits.replaces_zeros, float>,
           tokens(), combine_threads<element>(dims.hidden), 0,
           combine_args<element, float>{.results = {.rows = home_.returned,
                                                    .shared_rows = at_home.shared_rows,
                                                    .stride = row_stride,
                                                    .shared_gate = at_home.shared_gate,
                                                    .scale = 1.0f,  // it is in the weights
                                                    .output_bias = at_home.output_bias,
                                                    .constant_experts = at_home.constant_experts},
                                        .weighs_input = false,
                                        .tokens = seen,
                                        .pass = nullptr,
                                        .output = args_.output,
                                        .aligned = is_aligned(seen) && is_aligned(args_.output),
                                        .active = args_.active,
                                        .experts = chosen_.experts,
                                        .weights = on_device.weights,
                                        .dropped = capacity.drops ? on_device.dropped : nullptr,
                                        .row_of = on_device.row_of,
                                        .decisions = {}});
  }

  args_type const& args_;
  context_type const& context_;
  std::remove_pointer_t<decltype(context_type::group)>& all_;
  parallel::facts const& facts_;
  std::string_view layer_;
  carver device_, host_;
  home_memory home_;
  home_lists lists_;
  decided chosen_, read_;
};

}  // namespace switchyard::cuda

namespace switchyard::parallel {

template <class Local>
requires std::is_same_v<typename Local::context, cuda_context>
struct steps<Local> {
  template <class Layer>
  using call = switchyard::cuda::ranks_call<Layer, typename Local::products>;

  template <class Layer>
  static constexpr std::size_t workspace_bytes(sizes const& of) {
    check_layer<Layer>();
    return static_cast<std::size_t>(call<Layer>::device_bytes(of));
  }
  template <class Layer>
  static constexpr std::size_t host_workspace_bytes(sizes const& of) {
    check_layer<Layer>();
    return static_cast<std::size_t>(call<Layer>::host_bytes(of));
  }

  template <class Layer, class Context>
  static void forward(forward_args<Layer> const& args, Context const& wanted) {
    check_layer<Layer>();
    static_assert(std::remove_reference_t<decltype(wanted.group->transport())>::follows_streams,
                  "switchyard: backend::expert_parallel on GPUs has messages in device memory, behind kernels of a "
                  "stream. Take transport::nccl.");
    Context context = wanted;
    if (context.chunks == 0) context.chunks = 1;
    wanted.group->in_step([&] { check(args, context); });
    facts const of_call = facts_of(args, context);
    call<Layer>(args, context, of_call, name<Layer>()).run();
  }

 private:
  template <class Layer>
  static constexpr void check_layer() {
    static_assert(
        std::is_same_v<typename Layer::expert::computation, expert::two_products> &&
            !requires { Layer::expert::rank; } && !takes_expert_inputs<Layer>,
        "switchyard: backend::expert_parallel has feed-forward experts with matrices of their own: expert::mlp, "
        "expert::gated_mlp, what wraps them, expert::stored_as and masked residuals. Experts that are rows "
        "(expert::neurons), factors of low rank and adapters run on one device.");
    static_assert(Layer::dims.top_k < 1 << pair_word::choice_bits && Layer::dims.experts < 1 << pair_word::expert_bits,
                  "switchyard: backend::expert_parallel numbers choices with 10 bits and experts with 20. Lower "
                  "shape.top_k or shape.experts.");
    static_assert(Layer::expert_traits.nulls.count() <= most_null_experts,
                  "switchyard: backend::expert_parallel has tables for at most 64 null experts.");
    static_assert(Layer::router::schedule::passes == 1 &&
                      !switchyard::cuda::is_balanced<typename Layer::router::source> &&
                      !std::is_same_v<typename Layer::router::template inputs<Layer>, switchyard::expert_dropout>,
                  "switchyard: backend::expert_parallel on GPUs routes each token by itself, once: router::stratified, "
                  "router::s_base and router::with_expert_dropout run there on one device, or on several by "
                  "expert_parallel<backend::cpu, ...>.");
    static_assert(
        !Local::products::template rounds_rows<Layer>,
        "switchyard: backend::expert_parallel multiplies quantised weights exactly. Take a hopper_tuning with "
        "quantised_products::exact.");
    if constexpr (requires { typename Layer::router::features; }) {
      static_assert(!switchyard::cuda::feature_step<typename Layer::router::features>::scales,
                    "switchyard: backend::expert_parallel on GPUs does not scale features by what all tokens are: "
                    "router::adaptive_clustering runs there on one device, or on several by "
                    "expert_parallel<backend::cpu, ...>.");
    }
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
  static void check(forward_args<Layer> const& args, Context const& context) {
    auto const& all = *context.group;
    Local::check_device();
    check_stream(context.local.stream);
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
    if constexpr (makes_logits<typename Layer::router>) {
      if (args.auxiliary != nullptr) {
        fail("layer::forward, auxiliary", "none (backend::expert_parallel on GPUs does not make auxiliary values)",
             "a place for them");
      }
    }
    sizes const at_home{.tokens = args.tokens.rows};
    checks::check_workspace(args.workspace.data(), args.workspace.size(), workspace_bytes<Layer>(at_home),
                            args.tokens.rows);
    std::size_t const lists = static_cast<std::size_t>(call<Layer>::host_bytes(at_home, false));
    if (context.host_workspace.data() == nullptr || context.host_workspace.size() < lists) {
      fail("layer::forward, context.host_workspace",
           "at least " + std::to_string(lists) +
               " bytes of pinned memory (host_workspace_bytes says how many are enough)",
           std::to_string(context.host_workspace.size()));
    }
  }
  static void check_stream(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    switchyard::cuda::check("cudaStreamIsCapturing", cudaStreamIsCapturing(stream, &status));
    if (status == cudaStreamCaptureStatusNone) return;
    fail("backend::expert_parallel", "a stream that is not captured (how many rows travel is known to no graph)",
         "one that is");
  }

  template <class Layer, class Context>
  static facts facts_of(forward_args<Layer> const& args, Context const& context) {
    std::int64_t const version =
        SWITCHYARD_VERSION_MAJOR * 1000000 + SWITCHYARD_VERSION_MINOR * 1000 + SWITCHYARD_VERSION_PATCH;
    std::int64_t layer = static_cast<std::int64_t>(sizeof(typename Layer::element));
    for (char const c : name<Layer>())
      layer = (layer ^ static_cast<unsigned char>(c)) * 16777619 % (std::int64_t{1} << 31);
    return {{version, Layer::dims.hidden, Layer::dims.intermediate, Layer::dims.experts, Layer::dims.top_k, layer, 0,
             static_cast<int>(context.sums), static_cast<int>(context.capacity), context.chunks,
             context.group->placement().fingerprint(), args.tokens_per_group, 0, 0, 0}};
  }
};

}  // namespace switchyard::parallel
