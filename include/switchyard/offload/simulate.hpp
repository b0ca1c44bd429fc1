#pragma once

#include <switchyard/core/language.hpp>

#include <switchyard/core/error.hpp>
#include <switchyard/offload/residency.hpp>
#include <switchyard/offload/trace.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <set>
#include <string>
#include <utility>
#include <vector>

/// What a trace would take on a machine that is not there. All of it is computed and nothing of it measured: whoever prints a number of
/// this file says that it is a simulation.
namespace switchyard::offload {

/// A machine with one path from the store to the places, such as PCIe or a disk, which brings one piece after the other while products
/// run. All of it are parameters that the caller measured or looked up.
struct simulated_machine {
  std::int64_t piece_bytes = 1;
  double bytes_per_second = 1e9;   ///< of the path
  double seconds_per_read = 0.0;   ///< of a read beside its bytes
  double seconds_per_call = 0.0;   ///< of a call beside its experts: routing, attention, all that needs no pieces
  double seconds_per_piece = 0.0;  ///< of an expert's products, however few rows it has: its weights are read
  double seconds_per_row = 0.0;    ///< of each row of an expert
};

/// What came of it.
struct simulated_run {
  std::int64_t calls = 0;
  std::int64_t needed = 0;  ///< pieces, each once for every call that needs it
  std::int64_t hits = 0;    ///< of those, pieces that stood there when their call began
  std::int64_t loads = 0;   ///< pieces that were read
  std::int64_t bytes = 0;   ///< that were read
  double seconds = 0.0;     ///< the whole trace
  double waiting = 0.0;     ///< seconds of it in which a call waited for a piece
  double resident = 0.0;    ///< seconds that the trace would take if all pieces were resident
};

/// Runs a trace through the decisions of a cache (`residency`, the same that `expert_cache` runs) on a machine of numbers.
///
/// `tell(known, call)` is called before each call, 0 to calls() - 1, and says by `known.expect(layer, experts)` what it predicts: an
/// `oracle`, or nothing. As in a cache, pieces that are there are computed while others are read, and the path is never idle while
/// something is to be read. A call's routing comes before its experts, so a prediction has that long and the calls before it.
/// Throws `error` when the trace has other layers or experts than the cache.
template <residency_policy Policy, class Tell>
simulated_run simulate(trace const& of, residency<Policy>& known, simulated_machine const& machine, Tell&& tell) {
  if (known.layers() != of.layers() || known.experts() != of.experts()) {
    fail("offload::simulate, trace",
         std::to_string(known.layers()) + " layers of " + std::to_string(known.experts()) + " experts",
         std::to_string(of.layers()) + " of " + std::to_string(of.experts()));
  }
  double const read = machine.seconds_per_read + static_cast<double>(machine.piece_bytes) / machine.bytes_per_second;
  simulated_run result;
  double now = 0.0, arrives = 0.0;
  int arriving = -1;  // the place that is being read into
  auto const begin_read = [&](double at) {
    if (arriving >= 0) return;
    if (auto const next = known.next_load()) {
      arriving = next->place;
      arrives = at + read;
      ++result.loads;
    }
  };
  auto const pass_to = [&](double at) {
    while (arriving >= 0 && arrives <= at) {
      known.arrived(arriving);
      arriving = -1;
      begin_read(arrives);
    }
    now = at;
  };
  std::vector<std::int32_t> rows_of(static_cast<std::size_t>(of.experts()));
  for (std::int64_t i = 0; i < of.calls(); ++i) {
    traced_call const call = of[i];
    tell(known, i);
    begin_read(now);
    pass_to(now + machine.seconds_per_call);
    result.resident += machine.seconds_per_call;
    known.begin(call.layer, call.experts);
    for (std::size_t k = 0; k < call.experts.size(); ++k) {
      rows_of[static_cast<std::size_t>(call.experts[k])] = call.rows[k];
      result.hits += known.state_of(call.layer, call.experts[k]) == residency<Policy>::state::ready;
    }
    result.needed += static_cast<std::int64_t>(call.experts.size());
    begin_read(now);
    while (!known.is_over()) {
      double computing = 0.0;
      bool takes = false;
      known.take([&](int expert, int) {
        takes = true;
        computing += machine.seconds_per_piece +
                     machine.seconds_per_row * static_cast<double>(rows_of[static_cast<std::size_t>(expert)]);
      });
      if (!takes) {
        if (arriving < 0) fail("offload::simulate", "a policy that makes room for what a call needs", "none");
        result.waiting += arrives - now;
        pass_to(arrives);
        continue;
      }
      pass_to(now + computing);
      result.resident += computing;
      known.finish_taken();
      begin_read(now);
    }
    known.end();
  }
  result.calls = of.calls();
  result.bytes = result.loads * machine.piece_bytes;
  result.seconds = now;
  return result;
}

/// The same without a prediction.
template <residency_policy Policy>
simulated_run simulate(trace const& of, residency<Policy>& known, simulated_machine const& machine) {
  return simulate(of, known, machine, [](residency<Policy>&, std::int64_t) {});
}

/// The least possible number of reads for a trace with so many places, where all calls are known in advance: those of the calls from `from`
/// on, of a cache that was empty when the first call began.
///
/// A call uses what is there first; then it reads what is missing, one piece after the other, each in the place of the piece that is
/// needed last, be it one that this call has used. Of the missing ones that which is needed last comes first, since the one that is
/// read last is there when the call ends in any case. Of pieces that the same call needs next, the one goes that this call would read
/// last. Written apart from `residency`, which is measured against it.
/// Source: Belady 1966, A study of replacement algorithms for a virtual-storage computer.
inline std::int64_t belady_loads(trace const& of, std::int64_t places, std::int64_t from = 0) {
  if (places < 1) fail("offload::belady_loads, places", "1 or more", std::to_string(places));
  auto const index = [](std::int64_t number) { return static_cast<std::size_t>(number); };
  std::size_t const pieces = index(of.layers()) * index(of.experts());
  auto const piece_of = [&](int layer, std::int32_t expert) {
    return index(layer) * index(of.experts()) + index(expert);
  };

  // The uses of all calls in a row, those of a call in the order in which it would read them, from the last call back: of each use the
  // number of the same piece's next one.
  struct use {
    std::int64_t next;
    std::size_t piece;
  };
  std::int64_t uses = 0;
  for (std::int64_t i = 0; i < of.calls(); ++i) uses += static_cast<std::int64_t>(of[i].experts.size());
  std::vector<use> all(index(uses));
  std::vector<std::int64_t> next_of(pieces, uses);
  std::int64_t begin = uses;
  for (std::int64_t i = of.calls(); i-- > 0;) {
    traced_call const call = of[i];
    std::int64_t const end = begin;
    begin -= static_cast<std::int64_t>(call.experts.size());
    std::int64_t number = begin;
    for (std::int32_t const e : call.experts) {
      std::size_t const piece = piece_of(call.layer, e);
      all[index(number++)] = {next_of[piece], piece};
    }
    std::sort(all.begin() + begin, all.begin() + end,
              [](use const& a, use const& b) { return a.next != b.next ? a.next > b.next : a.piece < b.piece; });
    for (number = begin; number < end; ++number) next_of[all[index(number)].piece] = number;
  }

  std::set<std::pair<std::int64_t, std::size_t>> resident;  // by the next use
  std::vector<std::uint8_t> is_resident(pieces);
  std::vector<use> missing;
  std::int64_t loads = 0, number = 0;
  for (std::int64_t i = 0; i < of.calls(); ++i) {
    missing.clear();
    for (std::size_t k = of[i].experts.size(); k-- > 0; ++number) {
      use const& u = all[index(number)];
      if (is_resident[u.piece] == 0) {
        missing.push_back(u);
      } else {
        resident.erase({number, u.piece});
        resident.insert({u.next, u.piece});
      }
    }
    for (use const& u : missing) {
      if (static_cast<std::int64_t>(resident.size()) == places) {
        auto const last = std::prev(resident.end());
        is_resident[last->second] = 0;
        resident.erase(last);
      }
      resident.insert({u.next, u.piece});
      is_resident[u.piece] = 1;
      loads += i >= from;
    }
  }
  return loads;
}

}  // namespace switchyard::offload
