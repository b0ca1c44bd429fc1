// Turns a dense model's feed-forward blocks into Mixture-of-Experts layers, without training it: scores a text with some of the hidden
// units of each block, chosen by several selectors, and draws the score against the share of the units that are computed.
#include <switchyard/moefication/coactivation.hpp>
#include <switchyard/moefication/moefy.hpp>
#include <switchyard/moefication/training.hpp>
#include <switchyard/switchyard.hpp>
#if defined(TINY_LM_HAS_METIS)
#include <switchyard/moefication/metis_partition.hpp>
#endif

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "evaluate.hpp"
#include "file.hpp"
#include "model.hpp"
#include "moe.hpp"
#include "moefication_picture.hpp"
#include "options.hpp"
#include "safetensors.hpp"

namespace {

using namespace tiny_lm;
namespace moefication = sy::moefication;

/// How the blocks of a kind are split, and how many experts are computed.
template <class Kind>
struct split_of;
template <>
struct split_of<kinds::dense> {
  static constexpr int experts = 16;
  using computed = std::integer_sequence<int, 1, 2, 4, 6, 8, 12>;
  static constexpr char const* title = "A dense model with a part of its hidden units";
  static constexpr char const* picture = "moefication.svg";
};
template <>
struct split_of<kinds::relu> {
  static constexpr int experts = 32;
  using computed = std::integer_sequence<int, 1, 2, 4, 8, 16>;
  static constexpr char const* title = "A dense model with ReLU and a part of its hidden units";
  static constexpr char const* picture = "moefication_relu.svg";
};

constexpr char const* usage = R"(usage: tiny_lm_moefication [flag value]...

Splits the hidden units of each feed-forward block of a dense model into experts, trains selectors on the activations of one part of a
text, scores the rest of it with some of the experts for each byte, and draws the result.

  --model KIND     dense: gated SiLU, 128 units, 16 experts;
                   relu: plain ReLU, 512 units, 32 experts    (dense)
  --weights FILE   weights of that kind                       (its file in models/)
  --text FILE      a text                                     (held_out.txt)
  --bytes N        bytes of the text to use, from its start   (all)
  --epochs N       of the training of the selectors           (30)
  --picture FILE   where the picture goes, as SVG             (moefication.svg; of relu moefication_relu.svg)
  --help           this text
)";

struct settings {
  std::string model = "dense", weights, text = TINY_LM_TEXT, picture;
  std::int64_t bytes = 0;
  int epochs = 30;
  bool help = false;
};

/// Calls `body.template operator()<Kind>()` for the kind that the command line calls so. Whether there is one.
template <class Body>
bool with_model(std::string const& option, Body const& body) {
  if (option == kinds::dense::option) return body.template operator()<kinds::dense>(), true;
  if (option == kinds::relu::option) return body.template operator()<kinds::relu>(), true;
  return false;
}

settings parse_settings(int argc, char const* const* argv) {
  settings result;
  for (int i = 1; i < argc; ++i) {
    std::string const flag = argv[i];
    if (flag == "--help" || flag == "-h") {
      result.help = true;
      continue;
    }
    if (flag != "--model" && flag != "--weights" && flag != "--text" && flag != "--bytes" && flag != "--epochs" &&
        flag != "--picture") {
      throw usage_error("unknown flag '" + flag + "'");
    }
    if (i + 1 == argc) throw usage_error(flag + " needs a value");
    std::string const value = argv[++i];
    if (flag == "--model") result.model = value;
    if (flag == "--weights") result.weights = value;
    if (flag == "--text") result.text = value;
    if (flag == "--picture") result.picture = value;
    if (flag == "--bytes") result.bytes = tiny_lm::detail::whole_number<std::int64_t>(flag, value, 100, 1'000'000'000);
    if (flag == "--epochs") result.epochs = tiny_lm::detail::whole_number(flag, value, 1, 1000);
  }
  if (!with_model(result.model, [&]<class Kind>() {
        if (result.weights.empty()) {
          result.weights = std::string(TINY_LM_MODELS) + "/" + std::string(Kind::name) + ".safetensors";
        }
        if (result.picture.empty()) result.picture = split_of<Kind>::picture;
      })) {
    throw usage_error("--model: expected dense or relu, got '" + result.model + "'");
  }
  return result;
}

/// A split of a block's units, and what selectors it has.
struct split_block {
  moefication::dense_block<float> dense;
  std::vector<std::int32_t> labels;
  moefication::moefied_block<float> moefied;
  std::vector<float> centers;
  moefication::selector trained;
};

/// How experts are chosen.
enum class choice { at_random, by_ground_truth, by_centers, by_trained_selector };

/// The layers of a split, with `TopK` experts for each byte.
template <class Kind, int TopK, choice Choice>
class split_layers final : public moe_layers {
  using dense = typename Kind::template first<sy::backend::cpu>;
  using activation = typename dense::expert::activation;
  static constexpr int experts = split_of<Kind>::experts;
  static constexpr bool is_given = Choice == choice::at_random || Choice == choice::by_ground_truth;
  using router = std::conditional_t<
      is_given, sy::router::precomputed,
      std::conditional_t<Choice == choice::by_centers, sy::router::nearest_centers, sy::router::mlp_selector>>;

 public:
  using layer = sy::layer<sy::shape{dense::dims.hidden, dense::dims.intermediate / experts, experts, TopK}, router,
                          sy::capacity::dropless, typename dense::expert>;

  explicit split_layers(std::span<split_block const> of) : blocks_(of) {}
  std::string describe() const override { return sy::describe<layer>(); }
  std::unique_ptr<moe_worker> worker() const override { return std::make_unique<split_worker>(blocks_); }

 private:
  class split_worker final : public moe_worker {
   public:
    explicit split_worker(std::span<split_block const> of) : blocks_(of), workspace_(layer::workspace_bytes(context)) {}

    void forward(int block, float const* tokens, float const*, int rows, float* output, std::int64_t*) override {
      split_block const& of = blocks_[static_cast<std::size_t>(block)];
      moefication::chosen_experts given;
      typename layer::args args{};
      args.tokens = layer::rows(tokens, rows);
      if constexpr (layer::expert_traits.gated) args.weights.gate_proj = of.moefied.gate_view();
      args.weights.up_proj = of.moefied.up_view();
      args.weights.down_proj = of.moefied.down_view();
      args.output = layer::rows(output, rows);
      args.workspace = workspace_;
      if constexpr (is_given) {
        std::vector<float> const scores = scores_of(of, {tokens, rows, layer::dims.hidden});
        given = moefication::best_experts({scores.data(), rows, experts}, TopK);
        args.inputs = {.experts = given.experts.data(), .weights = given.weights.data()};
      } else if constexpr (Choice == choice::by_centers) {
        args.weights.router.weight = of.centers.data();
      } else {
        args.weights.router = {of.trained.weight.data(), of.trained.output_weight.data()};
      }
      layer::forward(args, {.threads = 1});
    }

   private:
    static std::vector<float> scores_of(split_block const& of, sy::view<float const> const& tokens) {
      if (Choice == choice::at_random) {
        std::vector<float> scores;
        for (std::int64_t t = 0; t < tokens.rows; ++t) {  // the same for a token, whoever reads it
          sy::counter_random const random{.seed = 1, .stream = std::bit_cast<std::uint32_t>(tokens.row(t)[0])};
          for (std::uint64_t e = 0; e < experts; ++e) scores.push_back(random.uniform(e));
        }
        return scores;
      }
      std::vector<float> const active = moefication::unit_activations<activation>(of.dense, tokens);
      return moefication::expert_masses({active.data(), tokens.rows, dense::dims.intermediate}, of.labels, experts);
    }

    std::span<split_block const> blocks_;
    std::vector<std::byte> workspace_;
  };

  std::span<split_block const> blocks_;
};

/// The dense layers, which write down what each block sees.
class recording_layers final : public moe_layers {
 public:
  recording_layers(moe_layers const& of, int hidden, std::vector<std::vector<float>>& seen)
      : of_(of), hidden_(hidden), seen_(seen) {}
  std::string describe() const override { return of_.describe(); }
  std::unique_ptr<moe_worker> worker() const override {
    return std::make_unique<recorder>(of_.worker(), hidden_, seen_);
  }

 private:
  class recorder final : public moe_worker {
   public:
    recorder(std::unique_ptr<moe_worker> of, int hidden, std::vector<std::vector<float>>& seen)
        : of_(std::move(of)), hidden_(hidden), seen_(seen) {}
    void forward(int block, float const* tokens, float const* residual, int rows, float* output,
                 std::int64_t* used) override {
      auto& to = seen_[static_cast<std::size_t>(block)];
      to.insert(to.end(), tokens, tokens + std::int64_t{rows} * hidden_);
      of_->forward(block, tokens, residual, rows, output, used);
    }

   private:
    std::unique_ptr<moe_worker> of_;
    int hidden_;
    std::vector<std::vector<float>>& seen_;
  };

  moe_layers const& of_;
  int hidden_;
  std::vector<std::vector<float>>& seen_;
};

/// Processor time of the layers of all blocks, ns for each byte: the least of some turns over windows of text.
double layer_time(moe_layers const& layers, int hidden, std::vector<std::vector<float>> const& seen) {
  auto const worker = layers.worker();
  std::vector<float> output(static_cast<std::size_t>(context * hidden));
  std::int64_t used[1] = {};  // the dense layer has one expert, and the others do not count
  std::int64_t const windows =
      std::min<std::int64_t>(8, static_cast<std::int64_t>(seen[0].size()) / (context * hidden));
  if (windows < 1) return 0.0;
  double least = 0.0;
  for (int turn = 0; turn < 9; ++turn) {
    std::clock_t const begin = std::clock();
    for (std::int64_t w = 0; w < windows; ++w) {
      for (int block = 0; block < blocks; ++block) {
        float const* const tokens = seen[static_cast<std::size_t>(block)].data() + w * context * hidden;
        worker->forward(block, tokens, nullptr, context, output.data(), used);
      }
    }
    double const seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
    double const each = seconds * 1e9 / static_cast<double>(windows * context);
    if (turn == 0 || each < least) least = each;
  }
  return least;
}

template <class Kind>
class figure {
  using dense = typename Kind::template first<sy::backend::cpu>;
  using activation = typename dense::expert::activation;
  static constexpr int hidden = dense::dims.hidden, units = dense::dims.intermediate, experts = split_of<Kind>::experts;

 public:
  explicit figure(settings const& wanted)
      : wanted_(wanted), file_(safetensors::load(wanted.weights)), model_(file_), layers_(model_.moe, model_.router) {}

  void draw() {
    std::vector<char> const bytes = read_file(wanted_.text);
    std::vector<unsigned char> text(bytes.begin(), bytes.end());
    if (wanted_.bytes > 0 && static_cast<std::int64_t>(text.size()) > wanted_.bytes) {
      text.resize(static_cast<std::size_t>(wanted_.bytes));
    }
    if (text.size() < 100) throw std::runtime_error(wanted_.text + ": expected a text of at least 100 bytes.");
    std::size_t const trained = text.size() * 3 / 5;
    std::span<unsigned char const> const whole(text), first = whole.first(trained);
    scored_ = whole.subspan(trained);

    seen_.resize(blocks);
    evaluate(model_, recording_layers(layers_, hidden, seen_), first, 1, [](long long, long long) {});
    double const dense_bits = score(layers_);
    double const dense_time = layer_time(layers_, hidden, seen_);
    std::printf("%s: %d hidden units in each of %d blocks, as %d experts of %d\n", wanted_.weights.c_str(), units,
                blocks, experts, units / experts);
    std::printf("  selectors see the first %zu bytes of %s, the score is that of the %zu after them\n", first.size(),
                wanted_.text.c_str(), scored_.size());
    std::printf("  dense: %.4f bits per byte, %.0f ns of one processor for each byte in the feed-forward layers\n",
                dense_bits, dense_time);

    std::vector<split_block> const contiguous =
        split([](auto const&, auto const&) { return moefication::contiguous_clusters(units, experts); });
    std::vector<split_block> clustered = split([](auto const& block, auto const&) {
      std::vector<float> const rows = moefication::clustered_rows(block);
      return moefication::balanced_k_means({rows.data(), units, std::ssize(rows) / units}, experts).labels;
    });
    train(clustered);
    picture_ = {.title = split_of<Kind>::title, .dense_bits = dense_bits, .dense_time = dense_time, .experts = experts};
    add<choice::at_random>("random experts", clustered);
    add<choice::by_ground_truth>("ground truth, contiguous", contiguous);
    add<choice::by_ground_truth>("ground truth, clusters", clustered);
#if defined(TINY_LM_HAS_METIS)
    std::vector<split_block> const by_graph = split([](auto const&, auto const& active) {
      moefication::coactivation graph(units);
      graph.add({active.data(), static_cast<std::int64_t>(active.size()) / units, units});
      return moefication::graph_clusters(graph.graph(), experts);
    });
    add<choice::by_ground_truth>("ground truth, graph", by_graph);
#else
    std::printf("  (no split by METIS: it was not installed when this program was built)\n");
#endif
    add<choice::by_centers>("nearest centers", clustered);
    add<choice::by_trained_selector>("trained selector", clustered);
    picture_.subtitle = std::to_string(experts) + " experts of " + std::to_string(units / experts) +
                        " units in each of " + std::to_string(blocks) + " blocks, " + std::to_string(scored_.size()) +
                        " bytes of text; dense: " + tiny_lm::detail::format("%.3f", dense_bits);
    std::ofstream out(wanted_.picture, std::ios::binary);
    if (!(out << svg(picture_)).flush()) throw std::runtime_error(wanted_.picture + ": the picture cannot be written.");
    std::printf("as a picture: %s\n", std::filesystem::absolute(wanted_.picture).string().c_str());
  }

 private:
  double score(moe_layers const& layers) const {
    unsigned const cores = std::max(1u, std::thread::hardware_concurrency());
    return evaluate(model_, layers, scored_, static_cast<int>(cores), [](long long, long long) {}).bits_per_byte;
  }

  /// `labels_of(dense block, activations [tokens, units])` splits a block.
  template <class LabelsOf>
  std::vector<split_block> split(LabelsOf const& labels_of) {
    std::vector<split_block> result;
    for (int b = 0; b < blocks; ++b) {
      moe_weights const& w = model_.moe[static_cast<std::size_t>(b)];
      split_block of;
      of.dense = {.up = {w.up_proj.data(), units, hidden}, .down = {w.down_proj.data(), hidden, units}};
      if (dense::expert_traits.gated) of.dense.gate = {w.gate_proj.data(), units, hidden};
      of.labels = labels_of(of.dense, activations_of(of.dense, b));
      of.moefied = moefication::moefy(of.dense, of.labels, experts);
      of.centers = moefication::centers(of.dense, of.labels, experts);
      result.push_back(std::move(of));
    }
    return result;
  }

  std::vector<float> activations_of(moefication::dense_block<float> const& block, int number) const {
    return moefication::unit_activations<activation>(block, tokens_of(number));
  }
  sy::view<float const> tokens_of(int block) const {
    auto const& seen = seen_[static_cast<std::size_t>(block)];
    return {seen.data(), static_cast<std::int64_t>(seen.size()) / hidden, hidden};
  }

  void train(std::vector<split_block>& of) const {
    for (int b = 0; b < blocks; ++b) {
      split_block& block = of[static_cast<std::size_t>(b)];
      sy::view<float const> const tokens = tokens_of(b);
      std::vector<float> const active = activations_of(block.dense, b);
      std::vector<float> const masses =
          moefication::expert_masses({active.data(), tokens.rows, units}, block.labels, experts);
      sy::view<float const> const wanted{masses.data(), tokens.rows, experts};
      auto const result = moefication::train_selector(moefication::first_selector(block.centers, experts), tokens,
                                                      wanted, {.epochs = wanted_.epochs});
      constexpr int fifth = experts / 5;
      sparsity const sparse = sparsity_of(active);
      double const most = moefication::captured_mass(wanted, moefication::best_experts(wanted, fifth).experts, fifth);
      std::printf(
          "  block %d: %.1f %% of the units are not zero, the largest %.1f %% have nine tenths of the mass;\n"
          "    %d of %d experts have %.1f %% of it, those of the trained selector %.1f %% (epoch %d)\n",
          b, 100.0 * sparse.active, 100.0 * sparse.most, fifth, experts, 100.0 * most, 100.0 * result.captured_mass,
          result.epoch);
      block.trained = result.best;
    }
  }

  struct sparsity {
    double active = 0.0;  ///< share of the units that are not zero
    double most = 0.0;    ///< share of the units, the largest, that have nine tenths of the mass
  };
  /// The mean over tokens, of activations [tokens, units].
  static sparsity sparsity_of(std::vector<float> const& active) {
    sparsity result;
    std::vector<float> row(units);
    for (std::size_t begin = 0; begin < active.size(); begin += units) {
      auto const from = active.begin() + static_cast<std::ptrdiff_t>(begin);
      std::copy(from, from + units, row.begin());
      std::sort(row.begin(), row.end(), std::greater<>());
      double const wanted = 0.9 * std::accumulate(row.begin(), row.end(), 0.0);
      double mass = 0.0;
      for (float value : row) {
        if (!(value > 0.0f)) break;
        if (mass < wanted) result.most += 1.0;
        mass += static_cast<double>(value);
        result.active += 1.0;
      }
    }
    result.active /= static_cast<double>(active.size());
    result.most /= static_cast<double>(active.size());
    return result;
  }

  template <choice Choice>
  void add(char const* name, std::vector<split_block> const& of) {
    tradeoff_line line{.name = name};
    auto const at = [&]<int TopK>(std::integral_constant<int, TopK>) {
      split_layers<Kind, TopK, Choice> const layers(of);
      line.chosen.push_back(TopK);
      line.bits.push_back(score(layers));
      bool const is_a_router = Choice == choice::by_centers || Choice == choice::by_trained_selector;
      if (is_a_router) line.time.push_back(layer_time(layers, hidden, seen_));
    };
    [&]<int... TopK>(std::integer_sequence<int, TopK...>) { (at(std::integral_constant<int, TopK>{}), ...); }
    (typename split_of<Kind>::computed{});
    if (picture_.lines.empty()) {
      std::printf(
          "\nbits per byte (and ns for each byte, where a router chooses), by the share of the hidden units\n%-26s",
          "");
      for (int k : line.chosen) std::printf(" %13.1f %%", 100.0 * k / experts);
      std::printf("\n");
    }
    print(line);
    picture_.lines.push_back(std::move(line));
  }

  static void print(tradeoff_line const& line) {
    std::printf("%-26s", line.name.c_str());
    for (std::size_t i = 0; i < line.bits.size(); ++i) {
      if (line.time.empty()) {
        std::printf(" %15.4f", line.bits[i]);
      } else {
        std::printf(" %7.4f (%5.0f)", line.bits[i], line.time[i]);
      }
    }
    std::printf("\n");
    std::fflush(stdout);
  }

  settings wanted_;
  safetensors file_;
  model<Kind> model_;
  cpu_layers<Kind> layers_;
  std::span<unsigned char const> scored_;
  std::vector<std::vector<float>> seen_;  // [blocks], [tokens, hidden]
  tradeoff picture_;
};

}  // namespace

int main(int argc, char** argv) {
  try {
    settings const wanted = parse_settings(argc, argv);
    if (wanted.help) {
      std::printf("%s", usage);
    } else {
      with_model(wanted.model, [&]<class Kind>() { figure<Kind>(wanted).draw(); });
    }
    return 0;
  } catch (usage_error const& wrong) {
    std::fprintf(stderr, "tiny_lm_moefication: %s\n\n%s", wrong.what(), usage);
    return 2;
  } catch (std::exception const& wrong) {
    std::fflush(stdout);
    std::fprintf(stderr, "tiny_lm_moefication: %s\n", wrong.what());
    return 1;
  }
}
