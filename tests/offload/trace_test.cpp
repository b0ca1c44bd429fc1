#include <switchyard/offload/picture.hpp>
#include <switchyard/offload/predict.hpp>
#include <switchyard/offload/trace.hpp>
#include <switchyard/switchyard.hpp>

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "catch.hpp"
#include "support/random_numbers.hpp"
#include "support/said.hpp"
#include "support/temporary_folder.hpp"

namespace sy = switchyard;
using Catch::Matchers::ContainsSubstring;
using ids = std::vector<std::int32_t>;

namespace {

ids list(std::span<std::int32_t const> numbers) { return {numbers.begin(), numbers.end()}; }

sy::offload::trace three_calls() {
  sy::offload::trace result(2, 6);
  for (auto const& [layer, counts] : {std::pair{0, std::vector<std::int64_t>{1, 0, 0, 12, 0, 0}},
                                      std::pair{1, std::vector<std::int64_t>{0, 0, 0, 0, 0, 2}},
                                      std::pair{0, std::vector<std::int64_t>{0, 0, 0, 0, 0, 0}}}) {
    result.record(layer, counts);
  }
  return result;
}

/// A file of this test alone, for tests run side by side, gone when it ends.
struct file {
  explicit file(std::string const& text) { std::ofstream(path, std::ios::binary) << text; }
  support::temporary_folder folder;
  std::string path = folder / "test.trace";
};

/// Keeps what it is told.
struct listener {
  std::int64_t room;
  std::vector<std::pair<int, ids>> told = {};
  std::int64_t room_to_expect() const { return room; }
  void expect(int layer, std::span<std::int32_t const> experts) {
    told.push_back({layer, list(experts)});
    --room;
  }
};

}  // namespace

TEST_CASE("a trace keeps the experts that had rows, and comes back from its file", "[offload]") {
  sy::offload::trace const recorded = three_calls();
  CHECK(recorded.calls() == 3);
  CHECK(list(recorded[0].experts) == ids{0, 3});
  CHECK(list(recorded[0].rows) == ids{1, 12});
  CHECK(recorded[1].layer == 1);
  CHECK(recorded[2].experts.empty());
  CHECK(recorded.uses() == std::vector<std::int64_t>{1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1});

  file const to("");
  recorded.write(to.path);
  std::ostringstream text;
  text << std::ifstream(to.path).rdbuf();
  CHECK(text.str() == "switchyard trace 1\nlayers 2 experts 6 calls 3\n0 0 3:12\n1 5:2\n0\nend\n");
  sy::offload::trace const read = sy::offload::trace::read(to.path);
  REQUIRE(read.calls() == 3);
  CHECK(read.layers() == 2);
  CHECK(read.experts() == 6);
  for (int i = 0; i < 3; ++i) {
    CHECK(read[i].layer == recorded[i].layer);
    CHECK(list(read[i].experts) == list(recorded[i].experts));
    CHECK(list(read[i].rows) == list(recorded[i].rows));
  }
}

TEST_CASE("what is not recorded, or no trace, is refused with a sentence", "[offload]") {
  sy::offload::trace two(2, 3);
  std::vector<std::int64_t> const counts{1, 0, 2}, few{1, 0}, negative{1, -1, 0};
  CHECK_THAT(support::said([&] { two.record(2, counts); }), ContainsSubstring("layer: expected 0 to 1, got 2"));
  CHECK_THAT(support::said([&] { two.record(0, few); }), ContainsSubstring("one for each of 3 experts, got 2"));
  CHECK_THAT(support::said([&] { two.record(0, negative); }), ContainsSubstring("got -1"));
  CHECK(two.calls() == 0);
  CHECK_THAT(support::said([] { sy::offload::trace::read("nowhere.trace"); }), ContainsSubstring("\"nowhere.trace\""));
  CHECK_THAT(support::said([] { three_calls().write("nowhere/a.trace"); }), ContainsSubstring("nowhere/a.trace"));

  std::string const head = "switchyard trace 1\nlayers 2 experts 6 calls 1\n";
  for (auto const& [text, line, expected] :
       {std::tuple{std::string("switchyard trace 2\n"), 1, "'switchyard trace 1'"},
        std::tuple{std::string("switchyard trace 1\nlayers 0 experts"), 2, "a number of layers"},
        std::tuple{head, 3, "a layer from 0 to 1, got the end of the file"},
        std::tuple{head + "2 0\nend\n", 3, "a layer from 0 to 1"},
        std::tuple{head + "1 0 6\nend\n", 3, "an expert, in ascending order from 1 to 5"},
        std::tuple{head + "1 3 3\nend\n", 3, "an expert, in ascending order from 4 to 5"},
        std::tuple{head + "1 3:0\nend\n", 3, "a number of rows from 1"},
        std::tuple{head + "1 99999999999\nend\n", 3, "an expert"},
        std::tuple{head + "1 3,4\nend\n", 3, "another expert or the end of the line"},
        std::tuple{head + "1 3\n", 4, "'end' after so many calls"},
        std::tuple{head + "1 3\n1 3\nend\n", 4, "'end' after so many calls"},
        std::tuple{head + "1 3\nend\nmore", 5, "nothing after 'end', got 'more'"}}) {
    file const damaged(text);
    std::string const said = support::said([&] { sy::offload::trace::read(damaged.path); });
    CHECK_THAT(said, ContainsSubstring("line " + std::to_string(line) + ": expected"));
    CHECK_THAT(said, ContainsSubstring(expected));
  }
}

TEST_CASE("an oracle tells of each call once, as far ahead as it looks and the cache has room", "[offload]") {
  sy::offload::trace const known = three_calls();
  listener all{10};
  sy::offload::oracle near(known, 1);
  near.tell(all, 0);
  CHECK(all.told == std::vector<std::pair<int, ids>>{{0, {0, 3}}, {1, {5}}});
  near.tell(all, 0);
  CHECK(all.told.size() == 2);
  near.tell(all, 1);
  CHECK(all.told.size() == 3);
  near.tell(all, 2);
  CHECK(all.told.size() == 3);

  listener little{1};
  sy::offload::oracle far(known, 100);
  far.tell(little, 0);
  CHECK(little.told.size() == 1);
  little.room = 5;
  far.tell(little, 2);  // what has passed is not told
  CHECK(little.told.back() == std::pair<int, ids>{0, {}});
  CHECK(little.told.size() == 2);
}

TEST_CASE("the most frequent experts are expected in ascending order, the lower of equals", "[offload]") {
  std::vector<std::int64_t> const uses{0, 5, 5, 9, 1, 1, 1, 1};
  sy::offload::most_frequent const two(uses, 2, 4, 2);
  CHECK(list(two.expected(0)) == ids{1, 3});
  CHECK(list(two.expected(1)) == ids{0, 1});
  CHECK_THAT(support::said([&] { sy::offload::most_frequent(uses, 2, 4, 5); }), ContainsSubstring("1 to 4, got 5"));
  CHECK_THAT(support::said([&] { sy::offload::most_frequent(uses, 2, 3, 1); }),
             ContainsSubstring("2 x 3 numbers, got 8"));
}

TEST_CASE("the router of the next layer expects what it chooses", "[offload]") {
  using next = sy::layer<sy::shape{.hidden = 8, .intermediate = 4, .experts = 5, .top_k = 2}, sy::router::softmax_top_k,
                         sy::capacity::dropless, sy::expert::mlp<sy::relu>>;
  constexpr int tokens = 3;
  support::random_numbers draw(7);
  auto const some = [&](std::size_t count) {
    std::vector<float> numbers(count);
    for (float& n : numbers) n = static_cast<float>(draw.normal());
    return numbers;
  };
  auto const x = some(tokens * 8), router = some(5 * 8), up = some(5 * 4 * 8), down = some(5 * 8 * 4);
  std::vector<float> y(tokens * 8);
  std::vector<std::byte> scratch(next::workspace_bytes(tokens));
  std::int64_t counts[5];
  next::args args{.tokens = next::rows(x.data(), tokens),
                  .weights = {.router = {.weight = router.data()}},
                  .output = next::rows(y.data(), tokens),
                  .workspace = scratch,
                  .decisions = {.counts = counts}};
  sy::offload::by_next_router<next> guess(tokens);
  ids const expected = list(guess.expected(args));
  args.weights.up_proj = next::in_proj(up.data());
  args.weights.down_proj = next::out_proj(down.data());
  next::forward(args);
  ids needed;
  for (int e = 0; e < 5; ++e) {
    if (counts[e] > 0) needed.push_back(e);
  }
  CHECK(expected == needed);
  args.tokens.rows = tokens + 1;
  CHECK_THAT(support::said([&] { guess.expected(args); }), ContainsSubstring("tokens: expected 0 to 3, got 4"));
}

TEST_CASE("a picture has the calls that were recorded", "[offload]") {
  sy::offload::cache_measures measures{.budget_bytes = 8'000'000};
  CHECK_THAT(support::said([&] { sy::offload::picture_of(measures, "none"); }),
             ContainsSubstring("calls that were recorded (cache_options::record_calls), got none"));
  // Two calls of 50 ms; the first waits all the time, and the second is a hit.
  measures.calls = {{.moved_bytes = 4'000'000, .resident_bytes = 4'000'000, .seconds = 0.05, .waiting_seconds = 0.05},
                    {.moved_bytes = 6'000'000, .resident_bytes = 6'000'000, .begin_seconds = 0.05, .seconds = 0.05}};
  std::string const picture = sy::offload::picture_of(measures, "two calls");
  CHECK_THAT(picture, ContainsSubstring(">two calls<"));
  // Panels of 640 x 110: 6 of 8.8 MB are resident at the end, and all of 6 MB are read.
  CHECK_THAT(picture, ContainsSubstring("710.0,121.0 \"/>"));
  CHECK_THAT(picture, ContainsSubstring("710.0,246.0 \"/>"));
  auto const count = [&](std::string const& text) {
    int result = 0;
    for (std::size_t at = 0; (at = picture.find(text, at)) != std::string::npos; ++at) ++result;
    return result;
  };
  CHECK(count("height=\"110.0\" fill=\"#c92a2a\"") == 40);  // of 80 bars, those of the first call
  CHECK(count("height=\"0.0\" fill=\"#c92a2a\"") == 40);
}
