#include <omp.h>
#include <dnnl.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "stored_layer.hpp"
#include "vectorised.hpp"

namespace switchyard::bench::peers {

namespace {

using tag = dnnl::memory::format_tag;
using type = dnnl::memory::data_type;

/// Products with one kind of weights, [columns, depth] in the checkpoint: a `matmul` per number of rows, the weights of an expert packed as
/// the library chooses for 64 rows. Bytes come with a scale for each column, which is the library's; tokens are rounded to bytes then, and
/// their scales multiplied behind it.
template <class Stored>
class matrix {
 public:
  static constexpr bool of_bytes = std::is_same_v<Stored, std::int8_t>;
  using element = std::conditional_t<of_bytes, float, Stored>;

  matrix(dnnl::engine const& engine, int depth, int columns, int threads)
      : engine_(engine), depth_(depth), columns_(columns), scratch_(threads) {
    packed_ = described(64, dnnl::memory::desc({depth, columns}, stored_type, tag::any)).weights_desc();
    for (auto& s : scratch_) s.stream = dnnl::stream(engine);
  }

  void begin_copy(int experts) {
    copies_.emplace_back();
    copies_.back().reserve(experts);
  }
  /// `scales` of bytes only: [columns].
  void pack(Stored const* from, float const* scales = nullptr) {
    dnnl::memory plain({{depth_, columns_}, stored_type, tag::ba}, engine_, const_cast<Stored*>(from));
    weights one{dnnl::memory(packed_, engine_), {}};
    dnnl::reorder(plain, one.packed).execute(scratch_[0].stream, plain, one.packed);
    scratch_[0].stream.wait();
    if (scales != nullptr) {
      one.scales = dnnl::memory({{columns_}, type::f32, tag::x}, engine_);
      std::copy_n(scales, columns_, static_cast<float*>(one.scales.get_data_handle()));
    }
    copies_.back().push_back(one);
  }
  void announce(std::int64_t rows) {
    if (by_rows_.count(rows) != 0) return;
    auto const description = described(rows, packed_);
    by_rows_.emplace(rows, ready{dnnl::matmul(description), description.scratchpad_desc()});
    for (auto& s : scratch_) {
      s.bytes.resize(std::max(s.bytes.size(), description.scratchpad_desc().get_size()));
      if (!of_bytes) continue;
      s.rounded.resize(std::max(s.rounded.size(), static_cast<std::size_t>(rows * depth_)));
      s.scales.resize(std::max(s.scales.size(), static_cast<std::size_t>(rows)));
    }
  }
  void run(std::size_t copy, int expert, std::int64_t rows, element const* from, float* to) {
    ready& product = by_rows_.at(rows);
    auto& mine = scratch_[omp_get_thread_num()];
    weights const& of = copies_[copy][expert];
    void* tokens = const_cast<element*>(from);
    if constexpr (of_bytes) {
      tokens = mine.rounded.data();
      for (std::int64_t r = 0; r < rows; ++r) {
        mine.scales[r] = round_to_bytes(from + r * depth_, static_cast<int>(depth_), mine.rounded.data() + r * depth_);
      }
    }
    std::unordered_map<int, dnnl::memory> arguments{
        {DNNL_ARG_SRC, {{{rows, depth_}, stored_type, tag::ab}, engine_, tokens}},
        {DNNL_ARG_WEIGHTS, of.packed},
        {DNNL_ARG_DST, {{{rows, columns_}, type::f32, tag::ab}, engine_, to}},
        {DNNL_ARG_SCRATCHPAD, {product.scratchpad, engine_, mine.bytes.data()}}};
    if (of_bytes) arguments.emplace(DNNL_ARG_ATTR_OUTPUT_SCALES, of.scales);
    product.matmul.execute(mine.stream, arguments);
    for (std::int64_t r = 0; of_bytes && r < rows; ++r) {
      float* const row = to + r * columns_;
      for (std::int64_t i = 0; i < columns_; ++i) row[i] *= mine.scales[r];
    }
  }

 private:
  static constexpr type stored_type = of_bytes ? type::s8 : std::is_same_v<Stored, float> ? type::f32 : type::bf16;

  struct weights {
    dnnl::memory packed, scales;
  };
  struct ready {
    dnnl::matmul matmul;
    dnnl::memory::desc scratchpad;
  };
  struct per_thread {
    dnnl::stream stream;
    std::vector<char> bytes;
    std::vector<std::int8_t> rounded;
    std::vector<float> scales;
  };

  dnnl::matmul::primitive_desc described(std::int64_t rows, dnnl::memory::desc const& right) const {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (of_bytes) attributes.set_output_scales(1 << 1, {DNNL_RUNTIME_F32_VAL});
    return {dnnl::matmul::desc({{rows, depth_}, stored_type, tag::ab}, right, {{rows, columns_}, type::f32, tag::ab}),
            attributes, engine_};
  }

  dnnl::engine engine_;
  std::int64_t depth_, columns_;
  dnnl::memory::desc packed_;
  std::vector<std::vector<weights>> copies_;
  std::map<std::int64_t, ready> by_rows_;
  std::vector<per_thread> scratch_;
};

/// Gate and up are packed together.
template <class Stored>
class onednn_products final : public products<typename matrix<Stored>::element> {
 public:
  using element = typename matrix<Stored>::element;

  onednn_products(int hidden, int intermediate, bool gated, int threads)
      : size_(std::int64_t{hidden} * intermediate),
        hidden_(hidden),
        intermediate_(intermediate),
        in_(engine_, hidden, gated ? 2 * intermediate : intermediate, threads),
        out_(engine_, intermediate, hidden, threads) {}

  /// Matrices of all experts of a copy; no gate, and no scales, are null.
  void add_copy(int experts, Stored const* gate, Stored const* up, Stored const* down,
                float const* gate_scales = nullptr, float const* up_scales = nullptr,
                float const* down_scales = nullptr) {
    std::vector<Stored> both;
    std::vector<float> scales;
    in_.begin_copy(experts);
    out_.begin_copy(experts);
    for (std::int64_t e = 0; e < experts; ++e) {
      both.clear();
      scales.clear();
      for (Stored const* one : {gate, up}) {
        if (one != nullptr) both.insert(both.end(), one + e * size_, one + (e + 1) * size_);
      }
      for (float const* one : {gate_scales, up_scales}) {
        if (one != nullptr) scales.insert(scales.end(), one + e * intermediate_, one + (e + 1) * intermediate_);
      }
      in_.pack(both.data(), scales.empty() ? nullptr : scales.data());
      out_.pack(down + e * size_, down_scales == nullptr ? nullptr : down_scales + e * hidden_);
    }
  }

  void announce(std::int64_t rows) override {
    in_.announce(rows);
    out_.announce(rows);
  }
  /// In a parallel region the library stays on one thread by itself.
  void use_threads(int threads) override { omp_set_num_threads(threads); }
  void in(std::size_t copy, int expert, std::int64_t rows, element const* tokens, float* gate_up) override {
    in_.run(copy, expert, rows, tokens, gate_up);
  }
  void out(std::size_t copy, int expert, std::int64_t rows, element const* inner, float* outer) override {
    out_.run(copy, expert, rows, inner, outer);
  }

 private:
  std::int64_t size_, hidden_, intermediate_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  matrix<Stored> in_, out_;
};

}  // namespace

std::string onednn_name() {
  auto const* const version = dnnl::version();
  return "oneDNN " + std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
         std::to_string(version->patch);
}

template <class Element>
std::unique_ptr<products<Element>> onednn(problem<Element> const& of, int threads) {
  auto result = std::make_unique<onednn_products<Element>>(of.hidden, of.intermediate, of.gated, threads);
  for (auto const& w : of.copies) {
    result->add_copy(of.experts, of.gated ? w.gate_proj : nullptr, w.up_proj, w.down_proj);
  }
  return result;
}
template std::unique_ptr<products<float>> onednn(problem<float> const&, int);
template std::unique_ptr<products<bfloat16>> onednn(problem<bfloat16> const&, int);

std::unique_ptr<products<float>> onednn_int8(int8_problem const& of, int threads) {
  auto result = std::make_unique<onednn_products<std::int8_t>>(of.hidden, of.intermediate, true, threads);
  for (auto const& w : of.copies) {
    result->add_copy(of.experts, w.gate_proj.weight, w.up_proj.weight, w.down_proj.weight, w.gate_proj.scale,
                     w.up_proj.scale, w.down_proj.scale);
  }
  return result;
}

}  // namespace switchyard::bench::peers
