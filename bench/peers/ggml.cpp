#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <cstddef>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "stored_layer.hpp"

namespace switchyard::bench::peers {

namespace {

template <auto Free>
struct freed_by {
  template <class T>
  void operator()(T* p) const {
    Free(p);
  }
};
using context_ptr = std::unique_ptr<ggml_context, freed_by<ggml_free>>;
using backend_ptr = std::unique_ptr<ggml_backend, freed_by<ggml_backend_free>>;
using buffer_ptr = std::unique_ptr<ggml_backend_buffer, freed_by<ggml_backend_buffer_free>>;
using allocator_ptr = std::unique_ptr<ggml_gallocr, freed_by<ggml_gallocr_free>>;

ggml_type type_of(std::string const& format) {
  for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
    auto const type = static_cast<ggml_type>(t);
    char const* const name = ggml_type_name(type);
    if (name != nullptr && format == name) return type;
  }
  throw std::runtime_error("it has no " + format);
}

/// Where tensors lie in the order that the library likes best.
ggml_backend_buffer_type_t repacking_buffer(ggml_backend_t backend) {
  ggml_backend_dev_t const device = ggml_backend_get_device(backend);
  void* const function =
      ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
  if (function == nullptr) throw std::runtime_error("it has no such order");
  for (auto* all = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(function)(device); *all != nullptr; ++all) {
    if (std::string(ggml_backend_buft_name(*all)) == "CPU_REPACK") return *all;
  }
  throw std::runtime_error("it has no such order");
}

class ggml_layer final : public whole_layer {
 public:
  ggml_layer(stored_problem const& of, bool repacked, int threads) : of_(of), backend_(ggml_backend_cpu_init()) {
    ggml_log_set([](ggml_log_level, char const*, void*) {}, nullptr);  // it tells of every tensor that it repacks
    ggml_backend_cpu_set_n_threads(backend_.get(), threads);
    ggml_backend_buffer_type_t const where =
        repacked ? repacking_buffer(backend_.get()) : ggml_backend_cpu_buffer_type();
    ggml_type const type = type_of(of.format);
    for (auto const& from : of.copies) {
      copy& to = copies_.emplace_back();
      to.context = new_context(3);
      auto const matrix = [&](int columns, int rows) {
        return ggml_new_tensor_3d(to.context.get(), type, columns, rows, of.experts);
      };
      to.matrices[0] = matrix(of.hidden, of.intermediate);
      to.matrices[1] = matrix(of.hidden, of.intermediate);
      to.matrices[2] = matrix(of.intermediate, of.hidden);
      to.memory.reset(ggml_backend_alloc_ctx_tensors_from_buft(to.context.get(), where));
      void const* const bytes[] = {from.gate_proj, from.up_proj, from.down_proj};
      for (int m = 0; m < 3; ++m) {
        if (repacked && to.matrices[m]->extra == nullptr)
          throw std::runtime_error("it does not repack this format here");
        ggml_backend_tensor_set(to.matrices[m], bytes[m], 0, static_cast<std::size_t>(of.matrix_bytes));
        to.bytes[m] = to.matrices[m]->data;
      }
    }
  }

  void prepare(std::int64_t tokens) override {
    if (graphs_.count(tokens) != 0) return;
    graph& g = graphs_[tokens];
    g.context = new_context(64);
    ggml_context* const c = g.context.get();
    g.input = ggml_new_tensor_3d(c, GGML_TYPE_F32, of_.hidden, 1, tokens);
    g.routes = ggml_new_tensor_2d(c, GGML_TYPE_I32, of_.top_k, tokens);
    g.weights = ggml_new_tensor_3d(c, GGML_TYPE_F32, 1, of_.top_k, tokens);
    auto& matrices = copies_[0].matrices;  // whose bytes change from call to call
    ggml_tensor* const gate = ggml_mul_mat_id(c, matrices[0], g.input, g.routes);
    ggml_tensor* const up = ggml_mul_mat_id(c, matrices[1], g.input, g.routes);
    ggml_tensor* const down = ggml_mul_mat_id(c, matrices[2], ggml_swiglu_split(c, gate, up), g.routes);
    ggml_tensor* const weighted = ggml_mul(c, down, g.weights);
    auto const choice = [&](int k) {
      return ggml_view_2d(c, weighted, of_.hidden, tokens, weighted->nb[2],
                          static_cast<std::size_t>(k) * weighted->nb[1]);
    };
    g.output = of_.top_k == 1 ? ggml_cont(c, choice(0)) : choice(0);
    for (int k = 1; k < of_.top_k; ++k) g.output = ggml_add(c, g.output, choice(k));
    for (ggml_tensor* t : {g.input, g.routes, g.weights}) ggml_set_input(t);
    ggml_set_output(g.output);
    g.nodes = ggml_new_graph(c);
    ggml_build_forward_expand(g.nodes, g.output);
    g.memory.reset(ggml_gallocr_new(ggml_backend_cpu_buffer_type()));
    if (!ggml_gallocr_alloc_graph(g.memory.get(), g.nodes)) throw std::runtime_error("it has no room");
  }

  void forward(call<float> const& c) override {
    graph& g = graphs_.at(c.tokens);
    for (int m = 0; m < 3; ++m) copies_[0].matrices[m]->data = copies_[c.copy].bytes[m];
    g.input->data = const_cast<float*>(c.input);
    g.routes->data = const_cast<std::int32_t*>(c.routes);
    g.weights->data = const_cast<float*>(c.weights);
    g.output->data = c.output;
    if (ggml_backend_graph_compute(backend_.get(), g.nodes) != GGML_STATUS_SUCCESS) {
      throw std::runtime_error("it cannot compute this layer");
    }
  }

 private:
  static context_ptr new_context(std::size_t tensors) {
    return context_ptr(ggml_init({tensors * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
  }
  struct copy {
    context_ptr context;
    buffer_ptr memory;
    ggml_tensor* matrices[3] = {};
    void* bytes[3] = {};
  };
  struct graph {
    context_ptr context;
    allocator_ptr memory;
    ggml_cgraph* nodes = nullptr;
    ggml_tensor *input = nullptr, *routes = nullptr, *weights = nullptr, *output = nullptr;
  };

  stored_problem of_;
  backend_ptr backend_;
  std::vector<copy> copies_;
  std::map<std::int64_t, graph> graphs_;
};

}  // namespace

std::string ggml_name() { return std::string("ggml ") + ggml_version(); }

std::unique_ptr<whole_layer> ggml(stored_problem const& of, bool repacked, int threads) {
  return std::make_unique<ggml_layer>(of, repacked, threads);
}

}  // namespace switchyard::bench::peers
