#pragma once

#include <switchyard/parallel/group.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

/// From a rank's routes to what it sends to each rank, and from what it has received to the rows of its experts: host arithmetic alone, for
/// every backend.
///
/// An entry is a token that goes to a rank, with its pairs there. A rank's experts are cut into as many chunks as there are, neighbouring
/// ones; an entry travels with the first chunk that needs it, and a return, which is a row that comes back, with the last chunk that adds
/// to it. In a list of words an entry is the number of its pairs, and two words of each: `pair_word`, and the combine weight's bits.
namespace switchyard::parallel {

/// Which of a rank's experts, which of the token's choices, and whether its result is added to that of the pair before it.
struct pair_word {
  static constexpr int expert_bits = 20, choice_bits = 10;

  static std::int32_t of(int local_expert, int choice, bool added) {
    return local_expert | choice << expert_bits | (added ? 1 << (expert_bits + choice_bits) : 0);
  }
  std::int32_t word;
  int expert() const { return word & ((1 << expert_bits) - 1); }
  int choice() const { return word >> expert_bits & ((1 << choice_bits) - 1); }
  bool added() const { return word >> (expert_bits + choice_bits) != 0; }
};

/// The chunk of one of a rank's experts.
inline int chunk_of(int local_expert, int local_experts, int chunks) {
  return static_cast<int>(std::int64_t{local_expert} * chunks / local_experts);
}

/// Calls `entry(number, first word of its pairs, number of pairs)` for every entry of a list.
template <class Entry>
void for_each_entry(std::int32_t const* words, std::int64_t entries, Entry const& entry) {
  for (std::int64_t i = 0; i < entries; ++i) {
    int const pairs = *words++;
    entry(i, words, pairs);
    words += 2 * pairs;
  }
}

/// Calls `made(chunk, first, count)` for every return of an entry: `count` of its pairs from `first` on.
template <class Return>
void for_each_return(std::int32_t const* pair_words, int pairs, int local_experts, int chunks, Return const& made) {
  for (int first = 0; first < pairs;) {
    int count = 0, chunk = 0;
    do {
      int const of_pair = chunk_of(pair_word{pair_words[2 * (first + count)]}.expert(), local_experts, chunks);
      chunk = of_pair > chunk ? of_pair : chunk;
      ++count;
    } while (first + count < pairs && pair_word{pair_words[2 * (first + count)]}.added());
    made(chunk, first, count);
    first += count;
  }
}

/// A rank's routes, and where its share of the exchange is written.
struct home_routes {
  std::int64_t tokens;
  int experts, first_expert, top_k, chunks;  ///< expert e is `first_expert + e` in the placement
  std::int32_t const* expert_of;             ///< [tokens, top_k]
  float const* weights;                      ///< [tokens, top_k]
  std::uint8_t const* dropped;               ///< [tokens, top_k]
  bool drops_add;                            ///< a dropped pair adds something in its place in the sum
  sums added;
  std::int32_t* destination;  ///< [tokens, top_k], written: a rank, or -1
  std::int32_t* entry_token;  ///< [tokens * top_k], written: the token of each entry, by rank and chunk
  std::int32_t* words;        ///< [3 * tokens * top_k], written: the list for each rank
};

/// Divides the rows of each expert among its ranks, `kept[e]` rows in all, and writes what goes to each rank: in the tables of `all`, first
/// numbers by rank and chunk, and for the rank itself `sent_counts`.
template <class Group, class Count>
void plan_sends(Group& all, home_routes const& of, Count* kept) {
  placement const& where = all.placement();
  int const ranks = all.ranks(), me = all.rank(), top_k = of.top_k, chunks = of.chunks;
  for (int e = 0; e < of.experts; ++e) kept[e] = 0;
  for (std::int64_t pair = 0; pair < of.tokens * top_k; ++pair) {
    std::int32_t const e = of.expert_of[pair];
    bool const has_row = e >= 0 && e < of.experts && of.dropped[pair] == 0;
    of.destination[pair] = has_row ? where.rank_of_row(of.first_expert + e, me, kept[e]++) : -1;
  }

  auto const cell = [&](int rank, int chunk) { return static_cast<std::size_t>(rank * chunks + chunk); };
  // Calls `entry(rank, chunk, pairs)`, then `pair(rank, choice, added)` for each pair, token by token.
  auto const for_each = [&](auto const& entry, auto const& pair_of_entry) {
    for (std::int64_t t = 0; t < of.tokens; ++t) {
      std::int32_t const* const to = of.destination + t * top_k;
      for (int k = 0; k < top_k; ++k) {
        int const rank = to[k];
        bool is_first = rank >= 0;
        for (int before = 0; before < k && is_first; ++before) is_first = to[before] != rank;
        if (!is_first) continue;
        int const local_experts = static_cast<int>(where.experts_of(rank).size());
        int chunk = chunks, pairs = 0;
        for (int other = k; other < top_k; ++other) {
          if (to[other] != rank) continue;
          int const local = where.local(rank, of.first_expert + of.expert_of[t * top_k + other]);
          chunk = std::min(chunk, chunk_of(local, local_experts, chunks));
          ++pairs;
        }
        entry(t, rank, chunk, pairs);
        bool chained = true, is_head = true;  // all that the token has added so far was added by this rank
        for (int other = 0; other < k; ++other) {
          chained = chained && to[other] < 0 && !(of.drops_add && of.dropped[t * top_k + other] != 0);
        }
        for (int other = k; other < top_k; ++other) {
          bool const adds = of.drops_add && of.dropped[t * top_k + other] != 0;
          chained = chained && !adds && (to[other] < 0 || to[other] == rank);
          if (to[other] != rank) continue;
          pair_of_entry(t, rank, chunk, other, !is_head && (chained || of.added == sums::by_rank));
          is_head = false;
        }
      }
    }
  };

  std::size_t const cells = static_cast<std::size_t>(ranks * chunks);
  for (auto* table : {&all.first_entry, &all.first_word, &all.first_return}) {
    std::fill(table->begin(), table->begin() + static_cast<std::ptrdiff_t>(cells + 1), std::int64_t{0});
  }
  for_each(
      [&](std::int64_t, int rank, int chunk, int pairs) {
        ++all.first_entry[cell(rank, chunk) + 1];
        all.first_word[cell(rank, chunk) + 1] += 1 + 2 * pairs;
      },
      [](std::int64_t, int, int, int, bool) {});
  for (std::size_t i = 0; i < cells; ++i) {
    all.first_entry[i + 1] += all.first_entry[i];
    all.first_word[i + 1] += all.first_word[i];
  }
  std::int64_t *const next_entry = all.cursor.data(), *const next_word = next_entry + cells;
  for (std::size_t i = 0; i < cells; ++i) {
    next_entry[i] = all.first_entry[i];
    next_word[i] = all.first_word[i];
  }
  for_each(
      [&](std::int64_t t, int rank, int chunk, int pairs) {
        of.entry_token[next_entry[cell(rank, chunk)]++] = static_cast<std::int32_t>(t);
        of.words[next_word[cell(rank, chunk)]++] = pairs;
      },
      [&](std::int64_t t, int rank, int chunk, int choice, bool added) {
        std::int64_t const pair = t * top_k + choice;
        std::int64_t& at = next_word[cell(rank, chunk)];
        of.words[at++] = pair_word::of(where.local(rank, of.first_expert + of.expert_of[pair]), choice, added);
        of.words[at++] = std::bit_cast<std::int32_t>(of.weights[pair]);
      });

  for (int rank = 0; rank < ranks; ++rank) {
    std::int64_t* const counts = all.sent_counts(rank);
    std::fill(counts, counts + Group::counts_of_rank, std::int64_t{0});
    int const local_experts = static_cast<int>(where.experts_of(rank).size());
    std::int64_t const entries = all.first_entry[cell(rank + 1, 0)] - all.first_entry[cell(rank, 0)];
    for (int c = 0; c < chunks; ++c) counts[c] = all.first_entry[cell(rank, c) + 1] - all.first_entry[cell(rank, c)];
    for_each_entry(of.words + all.first_word[cell(rank, 0)], entries,
                   [&](std::int64_t, std::int32_t const* pair_words, int pairs) {
                     counts[2 * most_chunks] += pairs;
                     for_each_return(pair_words, pairs, local_experts, chunks,
                                     [&](int chunk, int, int) { ++counts[most_chunks + chunk]; });
                   });
    for (int c = 0; c < chunks; ++c) all.first_return[cell(rank, c) + 1] = counts[most_chunks + c];
  }
  for (std::size_t i = 0; i < cells; ++i) all.first_return[i + 1] += all.first_return[i];
}

/// Calls `made(chunk, position, token, words of its first pair, pairs)` for every return that a rank owes this one.
template <class Group, class Return>
void for_each_owed(Group& all, home_routes const& of, int rank, Return const& made) {
  int const chunks = of.chunks;
  auto const cell = [&](int r, int chunk) { return static_cast<std::size_t>(r * chunks + chunk); };
  std::int64_t* const next = all.cursor.data();
  for (int c = 0; c < chunks; ++c) next[c] = all.first_return[cell(rank, c)];
  std::int64_t const first = all.first_entry[cell(rank, 0)];
  int const local_experts = static_cast<int>(all.placement().experts_of(rank).size());
  for_each_entry(of.words + all.first_word[cell(rank, 0)], all.first_entry[cell(rank + 1, 0)] - first,
                 [&](std::int64_t i, std::int32_t const* pair_words, int pairs) {
                   for_each_return(pair_words, pairs, local_experts, chunks, [&](int chunk, int begin, int count) {
                     made(chunk, next[chunk]++, of.entry_token[first + i], pair_words + 2 * begin, count);
                   });
                 });
}

/// What a rank has received, and where the rows of its experts are written. `words` has the lists of all ranks, one after the other.
struct received_entries {
  int local_experts, top_k, chunks;
  std::int32_t* offsets;        ///< [local_experts + 1], written, as in `dispatch_plan`
  std::int32_t* next_row;       ///< [local_experts]
  std::int32_t* pair_of;        ///< [rows], written: entry * top_k + number of the pair in its entry
  float* weights;               ///< [entries, top_k], written
  std::int32_t* row_of_pair;    ///< [rows], written: of each pair in the order of the lists
  std::int32_t* first_pair_of;  ///< [rows], written: the first pair of each return, by rank and chunk
  std::int32_t* pairs_of;       ///< [rows], written: how many it has
};

/// Sets `first_received` and `first_returned` from `received_counts`: by rank and chunk, entries that come and returns that go.
template <class Group>
void place_received(Group& all, int chunks) {
  all.first_received[0] = all.first_returned[0] = 0;
  for (int rank = 0; rank < all.ranks(); ++rank) {
    std::int64_t const* const counts = all.received_counts(rank);
    for (int c = 0; c < chunks; ++c) {
      auto const i = static_cast<std::size_t>(rank * chunks + c);
      all.first_received[i + 1] = all.first_received[i] + counts[c];
      all.first_returned[i + 1] = all.first_returned[i] + counts[most_chunks + c];
    }
  }
}

/// Words of the list that a rank sends.
inline std::int64_t words_of(std::int64_t const* counts, int chunks) {
  std::int64_t words = 2 * counts[2 * most_chunks];
  for (int c = 0; c < chunks; ++c) words += counts[c];
  return words;
}

/// From the lists of all ranks to rows of experts and returns.
template <class Group>
void plan_rows(Group& all, std::int32_t const* words, received_entries const& to) {
  int const ranks = all.ranks(), chunks = to.chunks;
  auto const for_each = [&](auto const& entry) {  // (rank, entry among all, pair words, pairs)
    std::int32_t const* of_rank = words;
    for (int rank = 0; rank < ranks; ++rank) {
      auto const cell = static_cast<std::size_t>(rank * chunks);
      std::int64_t const first = all.first_received[cell];
      for_each_entry(of_rank, all.first_received[cell + static_cast<std::size_t>(chunks)] - first,
                     [&](std::int64_t i, std::int32_t const* pair_words, int pairs) {
                       entry(rank, first + i, pair_words, pairs);
                     });
      of_rank += words_of(all.received_counts(rank), chunks);
    }
  };
  std::fill(to.next_row, to.next_row + to.local_experts, 0);
  for_each([&](int, std::int64_t, std::int32_t const* pair_words, int pairs) {
    for (int i = 0; i < pairs; ++i) ++to.next_row[pair_word{pair_words[2 * i]}.expert()];
  });
  to.offsets[0] = 0;
  for (int e = 0; e < to.local_experts; ++e) {
    to.offsets[e + 1] = to.offsets[e] + to.next_row[e];
    to.next_row[e] = to.offsets[e];
  }
  auto const cells = static_cast<std::size_t>(ranks * chunks);
  for (std::size_t i = 0; i < cells; ++i) all.cursor[i] = all.first_returned[i];
  std::int32_t number = 0;  // of a pair among all
  for_each([&](int rank, std::int64_t entry, std::int32_t const* pair_words, int pairs) {
    for (int i = 0; i < pairs; ++i) {
      std::int32_t const row = to.next_row[pair_word{pair_words[2 * i]}.expert()]++;
      to.pair_of[row] = static_cast<std::int32_t>(entry * to.top_k + i);
      to.weights[entry * to.top_k + i] = std::bit_cast<float>(pair_words[2 * i + 1]);
      to.row_of_pair[number + i] = row;
    }
    for_each_return(pair_words, pairs, to.local_experts, chunks, [&](int chunk, int first, int count) {
      std::int64_t const at = all.cursor[static_cast<std::size_t>(rank * chunks + chunk)]++;
      to.first_pair_of[at] = number + first;
      to.pairs_of[at] = count;
    });
    number += pairs;
  });
}

/// Rows that a rank computes of those that all ranks have: `kept(rank)` are the rows that each has for every expert.
template <class Group, class Kept>
std::int64_t rows_of_rank(Group const& all, int rank, int experts, int first_expert, Kept const& kept) {
  std::int64_t rows = 0;
  for (int source = 0; source < all.ranks(); ++source) {
    for (int const e : all.placement().experts_of(rank)) {
      int const here = e - first_expert;
      if (here >= 0 && here < experts) rows += all.placement().rows_of(rank, e, source, kept(source)[here]);
    }
  }
  return rows;
}

}  // namespace switchyard::parallel
