#include <algorithm>
#include <cctype>
#include <cstddef>
#include <set>
#include <string_view>
#include <utility>

#include "backend/check.hpp"
#include "catch.hpp"
#include "layers.hpp"
#include "reference.hpp"
#include "support/any_layer.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random_numbers.hpp"
#include "support/random_problem.hpp"

namespace sy = switchyard;
using namespace support;

namespace {

/// A problem on which every step has work for several workers.
problem usual_problem(any_layer const& layer) { return random_problem(layer, 133, routing::free, 7); }

}  // namespace

namespace {

void check_all_layers(routing where) {
  for_each_layer([&](any_layer const& layer) {
    for (std::int64_t tokens : {0, 1, 7, 133}) {
      INFO(tokens << " tokens");
      problem const p = random_problem(layer, tokens, where, static_cast<unsigned>(tokens));
      check_against_reference(p, run(p, {.context = {.threads = 2}}));
    }
  });
}

}  // namespace

TEST_CASE("forward agrees with the reference", "[forward]") { check_all_layers(routing::free); }
TEST_CASE("forward agrees with the reference where one expert has a row of every token", "[forward]") {
  check_all_layers(routing::one_expert);
}
TEST_CASE("forward agrees with the reference where half of the experts have no row", "[forward]") {
  check_all_layers(routing::half_of_the_experts);
}

TEST_CASE("every tested layer has a name of its own", "[forward]") {
  std::size_t count = std::tuple_size_v<tested_layers>;
#if defined(SWITCHYARD_MORE_LAYERS)
  count += std::tuple_size_v<more_tested_layers>;
#endif
  CHECK(compiled_layers().size() == count);
  for (any_layer const& layer : compiled_layers()) CHECK(&compiled(layer.name) == &layer);
}

#if defined(SWITCHYARD_MORE_LAYERS)
TEST_CASE("the layers that run everywhere have every policy of those that the CPU alone runs", "[forward]") {
  // The words of a name are the policies, what they are put together from, and the element.
  std::set<std::string_view> words[2];
  for (any_layer const& layer : compiled_layers()) {
    std::string_view const name = layer.name;
    auto const is_letter = [](char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_'; };
    for (std::size_t begin = 0; begin < name.size(); ++begin) {
      std::size_t end = begin;
      while (end < name.size() && is_letter(name[end])) ++end;
      if (end > begin) words[layer.everywhere ? 1 : 0].insert(name.substr(begin, end - begin));
      begin = end;
    }
  }
  auto const& [more, everywhere] = words;
  CHECK(more.size() > 20);
  for (std::string_view word : more) {
    CAPTURE(word);
    CHECK(everywhere.count(word) == 1);
  }
}
#endif

TEST_CASE("the special routings are what they say", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    reference::config const& c = layer.reference;
    if (layer.router.correction_bias || c.groups > 1 || c.clusters.scales || !c.strata.empty()) return;
    if (layer.router.expert_dropout > 0.0 || layer.router.restricted || c.balancing_iterations > 0) return;
    problem const hot = random_problem(layer, 50, routing::one_expert, 1);
    CHECK(run(hot).load[c.experts / 2] >= 45);
    problem const cold = random_problem(layer, 50, routing::half_of_the_experts, 1);
    std::vector<std::int64_t> const load = run(cold).load;
    for (int e = std::max(c.top_k, c.experts / 2); e < c.experts; ++e) CHECK(load[e] == 0);
  });
}

TEST_CASE("each group of tokens has queues of its own", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    if (layer.router.strata > 0) return;  // refused: its passes are groups
    problem p = usual_problem(layer);
    for (std::int64_t tokens_per_group : {1, 10, 132, 133, 1000}) {
      INFO(tokens_per_group << " tokens per group");
      p.config.tokens_per_group = tokens_per_group;
      check_against_reference(p, run(p));
    }
  });
}

namespace {

/// A pool whose threads may be less than it says: it runs the first `runs` workers on the calling thread.
struct meagre_pool {
  int runs = 0;
  int most_asked = 0;

  static void run(void* state, int workers, void (*body)(void* argument, int worker), void* argument) {
    auto& self = *static_cast<meagre_pool*>(state);
    self.most_asked = std::max(self.most_asked, workers);
    for (int w = 0; w < std::min(self.runs, workers); ++w) body(argument, w);
  }
  sy::thread_pool pool(int workers) { return {this, workers, &run}; }
};

}  // namespace

TEST_CASE("a pool is never asked for more workers than it has or than the context allows", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    outcome const once = run(p);
    for (auto [threads, workers] : {std::pair{8, 2}, {2, 8}, {0, 3}}) {
      INFO(threads << " threads, " << workers << " workers");
      meagre_pool few{.runs = workers};
      sy::thread_pool const pool = few.pool(workers);
      CHECK(same_bits(run(p, {.context = {.threads = threads, .pool = &pool}}), once));
      CHECK(few.most_asked == (threads == 0 ? workers : std::min(threads, workers)));
    }
  });
}

TEST_CASE("a pool that runs fewer workers than it is asked for, or none, gives the right result", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    outcome const once = run(p);
    for (int runs : {0, 1, 3}) {
      INFO(runs << " workers run");
      meagre_pool few{.runs = runs};
      sy::thread_pool const pool = few.pool(4);
      CHECK(same_bits(run(p, {.context = {.pool = &pool}}), once));
      CHECK(few.most_asked == 4);
    }
  });
}

TEST_CASE("a row has the same bits whatever rows stand beside it, where no expert is computed by panels", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    if (layer.capacity.drops || layer.reference.balancing_iterations > 0) return;
    problem const all = usual_problem(layer);
    call const by_rows{.context = {.threads = 1, .least_panel_rows = 1'000'000}};
    outcome const together = run(all, by_rows);
    std::size_t const hidden = all.config.hidden, top_k = all.config.top_k;
    for (std::size_t t : {0, 77, 132}) {
      problem alone = all;
      alone.tokens.assign(all.tokens.begin() + t * hidden, all.tokens.begin() + (t + 1) * hidden);
      auto const take_row = [t](auto& one, auto const& of_all, std::size_t width) {
        if (!of_all.empty()) one.assign(of_all.begin() + t * width, of_all.begin() + (t + 1) * width);
      };
      take_row(alone.inputs.ids, all.inputs.ids, top_k);
      take_row(alone.inputs.id_weights, all.inputs.id_weights, top_k);
      take_row(alone.inputs.router_tokens, all.inputs.router_tokens, static_cast<std::size_t>(all.config.router_width));
      if (layer.router.scales_features) {  // the weights of the features come from all tokens
        alone.inputs.labels.assign(all.inputs.labels.begin() + t * 2, all.inputs.labels.begin() + (t + 1) * 2);
        alone.inputs.feature_scale.assign(together.feature_scale.begin(), together.feature_scale.end());
      }
      alone.dropout.first_token += static_cast<std::int64_t>(t);
      take_row(alone.inputs.residual, all.inputs.residual, hidden);
      std::vector<float> const row(together.output.begin() + t * hidden, together.output.begin() + (t + 1) * hidden);
      CHECK(same_bits(run(alone, by_rows).output, row));
    }
  });
}

TEST_CASE("experts may be computed by panels or row by row", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem const p = random_problem(layer, 150, routing::one_expert, 4);
    for (int least : {16, 40, 1'000'000}) {
      INFO("panels from " << least << " rows on");
      for (auto set : {sy::instruction_set::portable, sy::instruction_set::avx2, sy::instruction_set::avx512,
                       sy::instruction_set::amx}) {
        if (set > sy::best_instruction_set()) continue;
        check_against_reference(p, run(p, {.context = {.threads = 1, .instructions = set, .least_panel_rows = least}}));
      }
    }
  });
}

TEST_CASE("every instruction set of this machine agrees with the reference", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    for (auto set : {sy::instruction_set::portable, sy::instruction_set::avx2, sy::instruction_set::avx512,
                     sy::instruction_set::amx}) {
      if (set > sy::best_instruction_set()) continue;
      INFO(sy::name_of(set));
      check_against_reference(p, run(p, {.context = {.threads = 1, .instructions = set}}));
    }
  });
}

TEST_CASE("the output may be the tokens, or the residual", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    outcome const in_place = run(p, {.in_place = true});
    CHECK(in_place.guards_intact);
    CHECK(same_bits(in_place, run(p)));
    if (p.config.strata.empty()) return;
    outcome const onto_residual = run(p, {.onto_residual = true});
    CHECK(onto_residual.guards_intact);
    CHECK(same_bits(onto_residual, run(p)));
  });
}

TEST_CASE("rows may stand apart, and nothing is written between them", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    for (bool in_place : {false, true}) {
      outcome const apart = run(p, {.in_place = in_place, .padding = 5});
      CHECK(apart.guards_intact);
      CHECK(same_bits(apart, run(p)));
    }
  });
}

TEST_CASE("weights may be stored in any layout", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    outcome const separate = run(p);
    for (layout l : all_layouts) {
      INFO(name_of(l));
      outcome const got = run(p, {.stored = l});
      if (l < layout::transposed) {
        CHECK(same_bits(got, separate));
      } else {  // depth is cut into other pieces
        check_against_reference(p, got);
      }
    }
  });
}

TEST_CASE("the output does not depend on asking for decisions", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem const p = usual_problem(layer);
    CHECK(same_bits(run(p, {.decisions = false}).output, run(p).output));
  });
}

TEST_CASE("padding rows take no slot, count nowhere and give zeros, whatever they hold", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem p = usual_problem(layer);
    if (p.config.strata.empty()) p.config.tokens_per_group = 20;
    random_numbers random(3);
    for (int t = 0; t < 133; ++t) p.inputs.active.push_back(random.below(3) > 0 && (t < 40 || t > 60));
    reference::result const expected = reference::forward(p.config, p.weights, p.tokens, p.inputs);

    problem worse = p;
    for (std::size_t i = 0; i < p.tokens.size(); ++i) {
      if (p.inputs.active[i / p.config.hidden]) continue;
      worse.tokens[i] = std::numeric_limits<double>::quiet_NaN();
      if (!p.config.strata.empty()) worse.inputs.residual[i] = worse.tokens[i];
    }
    for (std::size_t pair = 0; pair < p.inputs.ids.size(); ++pair) {
      if (p.inputs.active[pair / p.config.top_k]) continue;
      worse.inputs.ids[pair] = 1'000'000;
      if (!p.inputs.id_weights.empty()) worse.inputs.id_weights[pair] = std::numeric_limits<double>::infinity();
    }
    for (std::size_t i = 0; i < p.inputs.router_tokens.size(); ++i) {
      if (!p.inputs.active[i / p.config.router_width])
        worse.inputs.router_tokens[i] = std::numeric_limits<double>::quiet_NaN();
    }
    for (problem const* q : {&p, &worse}) {
      outcome const got = run(*q);
      check_decisions(got, expected, decision_tolerance(layer));
      if (!layer.router.precomputed) check_auxiliary(got.auxiliary, expected.aux, decision_tolerance(layer));
      CHECK(relative_error(got.output, expected.y) <= output_tolerance(layer));
      CHECK(got.guards_intact);
      for (std::size_t i = 0; i < got.output.size(); ++i) {
        if (!p.inputs.active[i / p.config.hidden] && got.output[i] != 0.0f) FAIL("row " << i / p.config.hidden);
      }
    }
  });
}

TEST_CASE("a batch of padding rows only gives zeros and no statistics", "[forward]") {
  for_each_layer([](any_layer const& layer) {
    problem p = random_problem(layer, 7, routing::free, 5);
    p.inputs.active.assign(7, 0);
    outcome const got = run(p);
    CHECK(got.output == std::vector<float>(p.tokens.size()));
    CHECK(got.experts ==
          std::vector<std::int32_t>(std::max<std::size_t>(p.config.strata.size(), 1) * p.config.top_k * 7, -1));
    CHECK(got.load == std::vector<std::int64_t>(p.config.experts));
    sy::auxiliary_values const nothing{};
    CHECK(std::memcmp(&got.auxiliary, &nothing, sizeof nothing) == 0);
  });
}

namespace {

using own_router = std::tuple_element_t<0, tested::routers>;
using omni =
    sy::layer<own_router::dims, sy::router::shared<own_router::router>, own_router::capacity, own_router::expert>;

}  // namespace

TEST_CASE("a shared router in one layer has the bits of an own one", "[forward]") {
  problem p = usual_problem(compiled(sy::describe<own_router>()));
  outcome const own = run(p);
  p.layer = &compiled(sy::describe<omni>());
  CHECK(same_bits(run(p), own));
}

TEST_CASE("layers with one shared router choose the same experts for the same tokens", "[forward]") {
  any_layer const& layer = compiled(sy::describe<omni>());
  problem const first = random_problem(layer, 50, routing::free, 1);
  problem second = random_problem(layer, 50, routing::free, 2);
  CHECK_FALSE(run(second).experts == run(first).experts);
  second.tokens = first.tokens;
  second.weights.router = first.weights.router;
  outcome const a = run(first), b = run(second);
  CHECK(b.experts == a.experts);
  CHECK(same_bits(b.logits, a.logits));
  CHECK_FALSE(same_bits(b.output, a.output));

  second.weights.router[3] += 10.0;
  problem changed = first;
  changed.weights.router = second.weights.router;
  CHECK_FALSE(run(second).experts == a.experts);
  CHECK(run(second).experts == run(changed).experts);
}
