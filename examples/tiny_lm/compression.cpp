// What is left of the model that is shipped when its experts are made smaller: bits per byte of the held-out text against bytes of
// the expert weights, for ResMoE, for simpler ways, and for the formats of quantised checkpoints.
#include <switchyard/compression/resmoe.hpp>
#include <switchyard/core/pack_masked.hpp>
#include <switchyard/quantised/quantise.hpp>
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "evaluate.hpp"
#include "file.hpp"
#include "line_chart.hpp"
#include "model.hpp"
#include "moe.hpp"
#include "options.hpp"
#include "safetensors.hpp"

#if defined(TINY_LM_WITH_LAPACK)
#include <switchyard/compression/lapack_svd.hpp>
#endif

namespace {

using namespace tiny_lm;
namespace comp = switchyard::compression;

using kind = kinds::shipped;
/// The kind's layer, with a bias that closes experts.
using layer = sy::layer<model<kind>::dims, sy::router::with_bias<sy::router::softmax_top_k>, sy::capacity::dropless,
                        sy::expert::gated_mlp<sy::silu>>;
constexpr int experts = layer::dims.experts, hidden = layer::dims.hidden, inner = layer::dims.intermediate;
constexpr comp::expert_sizes sizes{.experts = experts, .hidden = hidden, .intermediate = inner};
constexpr std::int64_t matrix_size = std::int64_t{hidden} * inner;

constexpr char const* help = R"(usage: tiny_lm_compression [flag value]...

Compresses the experts of the model that is shipped in many ways, and scores the held-out text with each.

  --bytes N        bytes to score, from the start of the text  (all)
  --threads N      windows to score side by side               (all cores)
  --picture FILE   where the picture is drawn, as SVG          (compression.svg)
  --help           this text
)";

/// The experts of all blocks after something was done to them.
struct variant {
  std::vector<moe_weights> moe;
  std::vector<std::vector<float>> bias = std::vector<std::vector<float>>(blocks, std::vector<float>(experts, 0.0f));
  std::int64_t bytes = 0;  ///< that the expert weights take
  double error = 0.0;      ///< squared, of the weights of an expert, mean over the experts of all blocks
};

/// Layers that read weights in place and close experts whose bias is minus infinity.
class variant_layers final : public moe_layers {
 public:
  explicit variant_layers(variant const& of) : of_(of) {}
  std::string describe() const override { return sy::describe<layer>(); }
  std::unique_ptr<moe_worker> worker() const override { return std::make_unique<one_worker>(of_); }

 private:
  class one_worker final : public moe_worker {
   public:
    explicit one_worker(variant const& of) : of_(of), workspace_(layer::workspace_bytes(context)) {}
    void forward(int block, float const* tokens, float const*, int rows, float* output, std::int64_t* used) override {
      moe_weights const& w = of_.moe[static_cast<std::size_t>(block)];
      std::int64_t load[experts];
      layer::args args{
          .tokens = layer::rows(tokens, rows),
          .weights = {.router = {.weight = w.router.data(), .bias = of_.bias[static_cast<std::size_t>(block)].data()},
                      .gate_proj = layer::in_proj(w.gate_proj.data()),
                      .up_proj = layer::in_proj(w.up_proj.data()),
                      .down_proj = layer::out_proj(w.down_proj.data())},
          .output = layer::rows(output, rows),
          .workspace = workspace_,
          .decisions = {.load = load}};
      layer::forward(args, {.threads = 1});
      for (int e = 0; e < experts; ++e) used[e] += load[e];
    }

   private:
    variant const& of_;
    std::vector<std::byte> workspace_;
  };

  variant const& of_;
};

template <class Weights>
auto arrays_of(Weights& w, int expert) {
  using value = std::remove_reference_t<decltype(w.up_proj[0])>;
  std::int64_t const at = expert * matrix_size;
  return comp::expert_arrays<value>{w.gate_proj.data() + at, w.up_proj.data() + at, w.down_proj.data() + at};
}

comp::matrix rows_of(moe_weights const& w, int expert) {
  comp::matrix rows(inner, sizes.columns());
  comp::gather_units(sizes, arrays_of(w, expert), rows);
  return rows;
}

double squared_distance(std::vector<float> const& a, std::vector<float> const& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return sum;
}

/// Bytes that pruned residuals take beside their centre: of each projection a mask, values of 16 bits and what finds them.
class pruned_bytes {
 public:
  void add(sy::view<float const> change, std::uint8_t const* kept) {
    std::int64_t const columns = sizes.columns();
    gate_.append(change.data + sizes.gate_column(), kept + sizes.gate_column(), columns, 1);
    up_.append(change.data + sizes.up_column(), kept + sizes.up_column(), columns, 1);
    down_.append(change.data + sizes.down_column(), kept + sizes.down_column(), 1, columns);
  }
  std::int64_t bytes() const { return gate_.bytes() + up_.bytes() + down_.bytes(); }

 private:
  sy::masked_arrays<sy::bfloat16> gate_{inner, hidden}, up_{inner, hidden}, down_{hidden, inner};
};

/// ResMoE, or the same with the mean of the experts as they are for a centre.
variant with_centre(std::vector<moe_weights> const& original, comp::residual_form form, double keep, bool aligned,
                    comp::truncated_svd const& svd) {
  variant result{.moe = original};
  for (moe_weights& w : result.moe) {
    moe_weights const plain = w;
    comp::resmoe_options options{.form = form, .keep = keep, .element = comp::stored_as::bfloat16, .svd = svd};
    options.centre.starts = comp::every_start(experts);
    options.compare = false;
    comp::expert_reader read = [&](int e, sy::view<float> to) { comp::gather_units(sizes, arrays_of(plain, e), to); };
    // What differs between the two ways is the alignment alone.
    comp::matrix mean(inner, sizes.columns());
    if (!aligned) {
      std::vector<double> sums(mean.values().size(), 0.0);
      for (int e = 0; e < experts; ++e) {
        comp::matrix const rows = rows_of(plain, e);
        for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += rows.values()[i];
      }
      for (std::size_t i = 0; i < sums.size(); ++i) {
        mean.values()[i] = static_cast<float>(sy::bfloat16(static_cast<float>(sums[i] / experts)));
      }
    }
    pruned_bytes pruned;
    auto const put = [&](int e, comp::matrix const& expert, comp::matrix const& rows) {
      comp::scatter_units(sizes, rows, arrays_of(w, e));
      result.error += squared_distance(expert.values(), rows.values()) / (experts * blocks);
    };
    auto const add_bytes = [&](comp::expert_residual const& r) {
      if (r.kept != nullptr) {
        pruned.add(r.change, r.kept);
      } else {
        result.bytes += 2 * r.left.columns * (inner + sizes.columns());
      }
    };
    if (aligned) {
      comp::resmoe job(sizes, options, {.threads = 1});
      job.run(read, [&](comp::expert_residual const& r) {
        comp::matrix const& centre = job.centre();
        comp::matrix rows = centre, expert = rows_of(plain, r.expert), in_order = expert;
        for (int u = 0; u < inner; ++u) {
          std::copy_n(expert.row(job.found().permutation[static_cast<std::size_t>(r.expert * inner + u)]),
                      sizes.columns(), in_order.row(u));
        }
        if (r.kept != nullptr) {
          for (std::size_t i = 0; i < rows.values().size(); ++i) rows.values()[i] += r.change.data[i];
        } else {
          comp::add_low_rank(centre, r.left, r.right, rows);
        }
        add_bytes(r);
        put(r.expert, in_order, rows);
      });
    } else {
      std::int64_t const zeroed = comp::pruned_count(keep, sizes.size());
      int const rank = comp::retained_rank(keep, inner, sizes.columns());
      for (int e = 0; e < experts; ++e) {
        comp::matrix const expert = rows_of(plain, e);
        comp::matrix change = expert, rows = mean, left(inner, rank), right(rank, sizes.columns());
        for (std::size_t i = 0; i < change.values().size(); ++i) change.values()[i] -= mean.values()[i];
        std::vector<std::uint8_t> kept(change.values().size());
        if (form == comp::residual_form::pruned) {
          comp::prune(change, zeroed, kept.data());
          comp::detail::round_all(change, options.element);
          for (std::size_t i = 0; i < rows.values().size(); ++i) rows.values()[i] += change.values()[i];
          add_bytes({.expert = e, .change = change, .kept = kept.data()});
        } else {
          svd(change, left, right);
          comp::detail::round_all(left, options.element);
          comp::detail::round_all(right, options.element);
          comp::add_low_rank(mean, left, right, rows);
          add_bytes({.expert = e, .left = left, .right = right});
        }
        put(e, expert, rows);
      }
    }
    result.bytes += 2 * sizes.size() + (form == comp::residual_form::pruned ? pruned.bytes() : 0);
  }
  return result;
}

/// The mean of the experts in the place of each, or their barycenter.
variant one_for_all(std::vector<moe_weights> const& original, bool aligned) {
  variant result = with_centre(original, comp::residual_form::pruned, 0.0, aligned, {});
  result.bytes = 2 * sizes.size() * blocks;
  return result;
}

/// Closes the experts of each block that were used least, all but so many.
variant with_fewest(std::vector<moe_weights> const& original, reader<kind>::usage const& used, int left) {
  variant result{.moe = original};
  for (std::size_t b = 0; b < blocks; ++b) {
    std::vector<int> order(experts);
    for (int e = 0; e < experts; ++e) order[static_cast<std::size_t>(e)] = e;
    std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return used[b][x] < used[b][y]; });
    for (int i = 0; i < experts - left; ++i) {
      result.bias[b][static_cast<std::size_t>(order[static_cast<std::size_t>(i)])] =
          -std::numeric_limits<float>::infinity();
    }
  }
  result.bytes = 2 * sizes.size() * left * blocks;
  return result;
}

/// Weights in a format of checkpoints, as floats: what a layer with expert::stored_as widens them to.
template <class Format>
variant quantised(std::vector<moe_weights> const& original) {
  variant result{.moe = original};
  auto const change = [&](std::vector<float>& all, int rows, int columns) {
    auto const made = sy::quantised::quantise<Format>(all.data(), experts, rows, columns, {.threads = 1});
    Format const matrix = made.view();
    result.bytes += made.bytes();
    float weights[Format::granule];
    float* to = all.data();
    for (int line = 0; line < experts * rows; ++line) {
      for (int column = 0, count; column < columns; column += count) {
        count = std::min(Format::granule, columns - column);
        matrix.read(line / rows, line % rows, column, count, weights);
        for (int i = 0; i < count; ++i, ++to) {
          result.error += std::pow(static_cast<double>(*to) - weights[i], 2) / (experts * blocks);
          *to = weights[i];
        }
      }
    }
  };
  for (moe_weights& w : result.moe) {
    change(w.gate_proj, inner, hidden);
    change(w.up_proj, inner, hidden);
    change(w.down_proj, hidden, inner);
  }
  return result;
}

struct settings {
  std::int64_t bytes = 0;
  int threads = 1;
  std::string picture = "compression.svg";
  bool help = false;
};

settings parse_settings(int argc, char** argv) {
  settings result;
  unsigned const cores = std::thread::hardware_concurrency();
  result.threads = cores == 0 ? 1 : static_cast<int>(cores);
  for (int i = 1; i < argc; ++i) {
    std::string const flag = argv[i];
    if (flag == "--help") {
      result.help = true;
      return result;
    }
    if (flag != "--bytes" && flag != "--threads" && flag != "--picture")
      throw usage_error("unknown flag '" + flag + "'");
    if (++i == argc) throw usage_error(flag + " needs a value");
    if (flag == "--bytes") result.bytes = tiny_lm::detail::whole_number<std::int64_t>(flag, argv[i], 1, 1'000'000'000);
    if (flag == "--threads") result.threads = tiny_lm::detail::whole_number(flag, argv[i], 1, 1024);
    if (flag == "--picture") result.picture = argv[i];
  }
  return result;
}

void run(settings const& wanted) {
  safetensors const file = safetensors::load(TINY_LM_WEIGHTS);
  model<kind> const weights(file);
  std::vector<char> const whole = read_file(TINY_LM_TEXT);
  std::vector<unsigned char> text(whole.begin(), whole.end());
  if (wanted.bytes > 0 && static_cast<std::size_t>(wanted.bytes) + 1 < text.size())
    text.resize(static_cast<std::size_t>(wanted.bytes) + 1);

  variant const original{.moe = weights.moe, .bytes = 2 * sizes.size() * experts * blocks};
  auto const score = [&](variant const& v) {
    return evaluate(weights, variant_layers(v), std::span<unsigned char const>(text), wanted.threads,
                    [](long long, long long) {});
  };
  evaluation<kind> const plain = score(original);
  std::printf("%d blocks with %s\n", blocks, sy::describe<layer>().c_str());
  std::printf("%lld bytes of expert weights in 16 bits; %.4f bits per byte over %lld bytes of held-out text\n\n",
              static_cast<long long>(original.bytes), plain.bits_per_byte, static_cast<long long>(plain.bytes));
  std::printf("%-26s %12s %8s %8s %8s %14s %14s\n", "experts", "", "bytes", "share", "bits", "squared error",
              "bits per byte");

  chart picture{.title = "Bits per byte against bytes of the expert weights",
                .subtitle = "Top 2 of " + std::to_string(experts) + " experts of width " + std::to_string(inner) +
                            ", " + std::to_string(blocks) + " blocks; " + std::to_string(plain.bytes) +
                            " bytes of held-out text",
                .x_name = "expert weights, kB",
                .y_name = "bits per byte",
                .series = {},
                .level = plain.bits_per_byte,
                .level_name = "as trained, " + std::to_string(original.bytes / 1000) + " kB"};
  auto const add = [&](std::string const& name, std::string const& part, variant const& v) {
    double const bits = score(v).bits_per_byte;
    double const share = static_cast<double>(v.bytes) / static_cast<double>(original.bytes);
    std::printf("%-26s %12s %8lld %6.1f %% %8.2f %14.4g %14.4f\n", name.c_str(), part.c_str(),
                static_cast<long long>(v.bytes), 100.0 * share, 16.0 * share, v.error, bits);
    std::fflush(stdout);
    if (picture.series.empty() || picture.series.back().name != name)
      picture.series.push_back({.name = name, .colour = {}, .points = {}});
    picture.series.back().points.push_back({static_cast<double>(v.bytes) / 1000.0, bits, {}});
  };

  constexpr double shares[] = {0.1, 0.25, 0.5, 0.75};
  auto const percent = [](double share) { return std::to_string(static_cast<int>(std::lround(100.0 * share))) + " %"; };
  using comp::residual_form;
  comp::truncated_svd svd;
#if defined(TINY_LM_WITH_LAPACK)
  svd = comp::lapack_svd;
#endif
  for (double share : shares)
    add("ResMoE, pruned", percent(share), with_centre(original.moe, residual_form::pruned, share, true, {}));
  for (double share : shares)
    add("pruned, without alignment", percent(share),
        with_centre(original.moe, residual_form::pruned, share, false, {}));
  if (svd) {
    for (double share : shares)
      add("ResMoE, SVD", percent(share), with_centre(original.moe, residual_form::low_rank, share, true, svd));
    for (double share : shares)
      add("SVD, without alignment", percent(share),
          with_centre(original.moe, residual_form::low_rank, share, false, svd));
  } else {
    std::printf("(no SVD: this program was built without LAPACK)\n");
  }
  add("barycenter alone", "", one_for_all(original.moe, true));
  add("plain average alone", "", one_for_all(original.moe, false));
  for (int left : {7, 6, 4, 2})
    add("least used experts dropped", std::to_string(left) + " left", with_fewest(original.moe, plain.used, left));
  auto const add_format = [&]<class Format>(Format, char const* name) {
    add(name, Format::name, quantised<Format>(original.moe));
  };
  namespace q = sy::quantised;
  constexpr char const *eight = "quantised, 8 to 8.5 bits", *four = "quantised, 4 to 4.5 bits";
  add_format(q::block_matrix<q::q8_0>{}, eight);
  add_format(q::int8_channel<sy::bfloat16>{}, eight);
  add_format(q::fp8_block{}, eight);
  add_format(q::block_matrix<q::q4_0>{}, four);
  add_format(q::int4_packed{}, four);
  add_format(q::nvfp4{}, four);
  add_format(q::block_matrix<q::mxfp4_halves>{}, four);
  add_format(q::awq{}, four);

  std::pair<char const*, std::pair<char const*, bool>> const looks[] = {
      {"ResMoE, pruned", {"#1f77b4", false}},
      {"pruned, without alignment", {"#1f77b4", true}},
      {"ResMoE, SVD", {"#d62728", false}},
      {"SVD, without alignment", {"#d62728", true}},
      {"barycenter alone", {"#2ca02c", false}},
      {"plain average alone", {"#2ca02c", true}},
      {"least used experts dropped", {"#ff7f0e", false}},
      {"quantised, 8 to 8.5 bits", {"#9467bd", false}},
      {"quantised, 4 to 4.5 bits", {"#8c564b", false}}};
  for (chart_series& s : picture.series) {
    for (auto const& [name, look] : looks) {
      if (s.name == name) s.colour = look.first, s.dashed = look.second;
    }
  }
  std::ofstream out(wanted.picture, std::ios::binary);
  if (!(out << svg(picture)).flush()) throw std::runtime_error(wanted.picture + ": the picture cannot be written.");
  std::printf("\nas a picture: %s\n", std::filesystem::absolute(wanted.picture).string().c_str());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    settings const wanted = parse_settings(argc, argv);
    if (wanted.help) {
      std::printf("%s", help);
      return 0;
    }
    run(wanted);
    return 0;
  } catch (usage_error const& wrong) {
    std::fprintf(stderr, "tiny_lm_compression: %s\n\n%s", wrong.what(), help);
    return 2;
  } catch (std::exception const& wrong) {
    std::fflush(stdout);
    std::fprintf(stderr, "tiny_lm_compression: %s\n", wrong.what());
    return 1;
  }
}
