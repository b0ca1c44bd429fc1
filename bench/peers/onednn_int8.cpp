#include <omp.h>
#include <dnnl.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <vector>

#include "stored_layer.hpp"
#include "vectorised.hpp"

namespace switchyard::bench::peers {

namespace {

using tag = dnnl::memory::format_tag;
using type = dnnl::memory::data_type;

/// A `matmul` of signed bytes per number of rows; the weights of an expert packed as the library chooses for 64 rows. The scales of features are
/// the library's, those of tokens are multiplied behind it.
class onednn_int8_products final : public products<float> {
 public:
  onednn_int8_products(int8_problem const& of, int threads)
      : of_(of),
        in_(engine_, of.hidden, 2 * of.intermediate, threads),
        out_(engine_, of.intermediate, of.hidden, threads) {
    std::int64_t const size = std::int64_t{of.hidden} * of.intermediate;
    std::vector<std::int8_t> gate_up(static_cast<std::size_t>(2 * size));
    std::vector<float> scales(static_cast<std::size_t>(2 * of.intermediate));
    for (auto const& from : of.copies) {
      in_.begin_copy(of.experts);
      out_.begin_copy(of.experts);
      for (std::int64_t e = 0; e < of.experts; ++e) {
        int8_problem::matrix const both[] = {from.gate_proj, from.up_proj};
        for (int m = 0; m < 2; ++m) {
          std::copy_n(both[m].weight + e * size, size, gate_up.data() + m * size);
          std::copy_n(both[m].scale + e * of.intermediate, of.intermediate, scales.data() + m * of.intermediate);
        }
        in_.pack(gate_up.data(), scales.data());
        out_.pack(from.down_proj.weight + e * size, from.down_proj.scale + e * of.hidden);
      }
    }
  }

  void announce(std::int64_t rows) override {
    in_.announce(rows);
    out_.announce(rows);
  }
  void use_threads(int threads) override { omp_set_num_threads(threads); }
  void in(std::size_t copy, int expert, std::int64_t rows, float const* tokens, float* gate_up) override {
    in_.run(copy, expert, rows, tokens, gate_up);
  }
  void out(std::size_t copy, int expert, std::int64_t rows, float const* inner, float* outer) override {
    out_.run(copy, expert, rows, inner, outer);
  }

 private:
  class matrix {
   public:
    matrix(dnnl::engine const& engine, int depth, int columns, int threads)
        : engine_(engine), depth_(depth), columns_(columns), scratch_(threads) {
      packed_ = described(64, dnnl::memory::desc({depth, columns}, type::s8, tag::any)).weights_desc();
      for (auto& s : scratch_) s.stream = dnnl::stream(engine);
    }
    void begin_copy(int experts) {
      copies_.emplace_back();
      copies_.back().reserve(experts);
    }
    void pack(std::int8_t const* from, float const* scales) {
      dnnl::memory plain({{depth_, columns_}, type::s8, tag::ba}, engine_, const_cast<std::int8_t*>(from));
      dnnl::memory packed(packed_, engine_), scale({{columns_}, type::f32, tag::a}, engine_);
      dnnl::reorder(plain, packed).execute(scratch_[0].stream, plain, packed);
      scratch_[0].stream.wait();
      std::copy_n(scales, columns_, static_cast<float*>(scale.get_data_handle()));
      copies_.back().push_back({packed, scale});
    }
    void announce(std::int64_t rows) {
      if (by_rows_.count(rows) != 0) return;
      auto const description = described(rows, packed_);
      by_rows_.emplace(rows, ready{dnnl::matmul(description), description.scratchpad_desc()});
      for (auto& s : scratch_) {
        s.bytes.resize(std::max(s.bytes.size(), description.scratchpad_desc().get_size()));
        s.rounded.resize(std::max(s.rounded.size(), static_cast<std::size_t>(rows * depth_)));
        s.scales.resize(std::max(s.scales.size(), static_cast<std::size_t>(rows)));
      }
    }
    void run(std::size_t copy, int expert, std::int64_t rows, float const* from, float* to) {
      ready& product = by_rows_.at(rows);
      auto& mine = scratch_[omp_get_thread_num()];
      auto const& weights = copies_[copy][expert];
      for (std::int64_t r = 0; r < rows; ++r) {
        mine.scales[r] = round_to_bytes(from + r * depth_, static_cast<int>(depth_), mine.rounded.data() + r * depth_);
      }
      product.matmul.execute(mine.stream,
                             {{DNNL_ARG_SRC, {{{rows, depth_}, type::s8, tag::ab}, engine_, mine.rounded.data()}},
                              {DNNL_ARG_WEIGHTS, weights.packed},
                              {DNNL_ARG_ATTR_OUTPUT_SCALES, weights.scale},
                              {DNNL_ARG_DST, {{{rows, columns_}, type::f32, tag::ab}, engine_, to}},
                              {DNNL_ARG_SCRATCHPAD, {product.scratchpad, engine_, mine.bytes.data()}}});
      for (std::int64_t r = 0; r < rows; ++r) {
        float* const row = to + r * columns_;
        for (std::int64_t i = 0; i < columns_; ++i) row[i] *= mine.scales[r];
      }
    }

   private:
    struct packed_weights {
      dnnl::memory packed, scale;
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

    dnnl::matmul::primitive_desc described(std::int64_t rows, dnnl::memory::desc const& weights) const {
      dnnl::primitive_attr attributes;
      attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
      attributes.set_output_scales(1 << 1, {DNNL_RUNTIME_F32_VAL});
      return {dnnl::matmul::desc({{rows, depth_}, type::s8, tag::ab}, weights, {{rows, columns_}, type::f32, tag::ab}),
              attributes, engine_};
    }

    dnnl::engine engine_;
    std::int64_t depth_, columns_;
    dnnl::memory::desc packed_;
    std::vector<std::vector<packed_weights>> copies_;
    std::map<std::int64_t, ready> by_rows_;
    std::vector<per_thread> scratch_;
  };

  int8_problem of_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  matrix in_, out_;
};

}  // namespace

std::unique_ptr<products<float>> onednn_int8(int8_problem const& of, int threads) {
  return std::make_unique<onednn_int8_products>(of, threads);
}

}  // namespace switchyard::bench::peers
