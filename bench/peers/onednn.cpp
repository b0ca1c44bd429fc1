#include "peer.hpp"

#include <omp.h>
#include <dnnl.hpp>

#include <algorithm>
#include <cstddef>
#include <map>
#include <type_traits>

namespace switchyard::bench::peers {

namespace {

using tag = dnnl::memory::format_tag;
using type = dnnl::memory::data_type;

/// A `matmul` per number of rows; the weights of an expert packed as the library chooses for 64 rows, gate and up together.
template <class Element>
class onednn_products final : public products<Element> {
 public:
  onednn_products(problem<Element> const& of, int threads)
      : of_(of),
        in_(engine_, of.hidden, of.in_features(), threads),
        out_(engine_, of.intermediate, of.hidden, threads) {
    std::int64_t const size = std::int64_t{of.hidden} * of.intermediate;
    std::vector<Element> gate_up(std::size_t(of.in_features()) * of.hidden);
    for (auto const& weights : of.copies) {
      in_.begin_copy(of.experts);
      out_.begin_copy(of.experts);
      for (int e = 0; e < of.experts; ++e) {
        Element* to = gate_up.data();
        if (of.gated) to = std::copy(weights.gate_proj + e * size, weights.gate_proj + (e + 1) * size, to);
        std::copy(weights.up_proj + e * size, weights.up_proj + (e + 1) * size, to);
        in_.pack(gate_up.data());
        out_.pack(weights.down_proj + e * size);
      }
    }
  }

  void announce(std::int64_t rows) override {
    in_.announce(rows);
    out_.announce(rows);
  }
  /// In a parallel region the library stays on one thread by itself.
  void use_threads(int threads) override { omp_set_num_threads(threads); }
  void in(std::size_t copy, int expert, std::int64_t rows, Element const* tokens, float* gate_up) override {
    in_.run(copy, expert, rows, tokens, gate_up);
  }
  void out(std::size_t copy, int expert, std::int64_t rows, Element const* inner, float* outer) override {
    out_.run(copy, expert, rows, inner, outer);
  }

 private:
  /// Products with one kind of weights, [columns, depth] in the checkpoint.
  class matrix {
   public:
    matrix(dnnl::engine const& engine, int depth, int columns, int threads)
        : engine_(engine), depth_(depth), columns_(columns), scratch_(threads) {
      packed_ = described(64, dnnl::memory::desc({depth, columns}, element_type, tag::any)).weights_desc();
      for (auto& s : scratch_) s.stream = dnnl::stream(engine);
    }

    void begin_copy(int experts) {
      copies_.emplace_back();
      copies_.back().reserve(experts);
    }
    void pack(Element const* from) {
      dnnl::memory plain({{depth_, columns_}, element_type, tag::ba}, engine_, const_cast<Element*>(from));
      dnnl::memory packed(packed_, engine_);
      dnnl::reorder(plain, packed).execute(scratch_[0].stream, plain, packed);
      scratch_[0].stream.wait();
      copies_.back().push_back(packed);
    }
    void announce(std::int64_t rows) {
      if (by_rows_.count(rows) != 0) return;
      auto const description = described(rows, packed_);
      by_rows_.emplace(rows, ready{dnnl::matmul(description), description.scratchpad_desc()});
      for (auto& s : scratch_) {
        if (s.bytes.size() < description.scratchpad_desc().get_size()) {
          s.bytes.resize(description.scratchpad_desc().get_size());
        }
      }
    }
    void run(std::size_t copy, int expert, std::int64_t rows, Element const* from, float* to) {
      ready& product = by_rows_.at(rows);
      auto& mine = scratch_[omp_get_thread_num()];
      product.matmul.execute(
          mine.stream, {{DNNL_ARG_SRC, {{{rows, depth_}, element_type, tag::ab}, engine_, const_cast<Element*>(from)}},
                        {DNNL_ARG_WEIGHTS, copies_[copy][expert]},
                        {DNNL_ARG_DST, {{{rows, columns_}, type::f32, tag::ab}, engine_, to}},
                        {DNNL_ARG_SCRATCHPAD, {product.scratchpad, engine_, mine.bytes.data()}}});
    }

   private:
    static constexpr type element_type = std::is_same_v<Element, float> ? type::f32 : type::bf16;

    struct ready {
      dnnl::matmul matmul;
      dnnl::memory::desc scratchpad;
    };
    struct per_thread {
      dnnl::stream stream;
      std::vector<char> bytes;
    };

    dnnl::matmul::primitive_desc described(std::int64_t rows, dnnl::memory::desc const& weights) const {
      dnnl::primitive_attr attributes;
      attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
      return {
          dnnl::matmul::desc({{rows, depth_}, element_type, tag::ab}, weights, {{rows, columns_}, type::f32, tag::ab}),
          attributes, engine_};
    }

    dnnl::engine engine_;
    std::int64_t depth_, columns_;
    dnnl::memory::desc packed_;
    std::vector<std::vector<dnnl::memory>> copies_;
    std::map<std::int64_t, ready> by_rows_;
    std::vector<per_thread> scratch_;
  };

  problem<Element> of_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  matrix in_, out_;
};

}  // namespace

std::string onednn_name() {
  auto const* const version = dnnl::version();
  return "oneDNN " + std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
         std::to_string(version->patch);
}

template <class Element>
std::unique_ptr<products<Element>> onednn(problem<Element> const& of, int threads) {
  return std::make_unique<onednn_products<Element>>(of, threads);
}
template std::unique_ptr<products<float>> onednn(problem<float> const&, int);
template std::unique_ptr<products<bfloat16>> onednn(problem<bfloat16> const&, int);

}  // namespace switchyard::bench::peers
