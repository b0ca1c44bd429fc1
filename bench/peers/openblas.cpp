#include "peer.hpp"

#include <cblas.h>

#include <cstddef>

namespace switchyard::bench::peers {

namespace {

/// `sgemv` for one row, `sgemm` for more.
class openblas_products final : public products<float> {
 public:
  explicit openblas_products(problem<float> const& of) : of_(of) {}

  void announce(std::int64_t) override {}
  void use_threads(int threads) override { openblas_set_num_threads(threads); }

  void in(std::size_t copy, int expert, std::int64_t rows, float const* tokens, float* gate_up) override {
    auto const& weights = of_.copies[copy];
    std::int64_t const at = std::int64_t{expert} * of_.hidden * of_.intermediate;
    float* up = gate_up;
    if (of_.gated) {
      multiply(rows, of_.intermediate, of_.hidden, tokens, weights.gate_proj + at, gate_up, of_.in_features());
      up += of_.intermediate;
    }
    multiply(rows, of_.intermediate, of_.hidden, tokens, weights.up_proj + at, up, of_.in_features());
  }
  void out(std::size_t copy, int expert, std::int64_t rows, float const* inner, float* outer) override {
    std::int64_t const at = std::int64_t{expert} * of_.hidden * of_.intermediate;
    multiply(rows, of_.hidden, of_.intermediate, inner, of_.copies[copy].down_proj + at, outer, of_.hidden);
  }

 private:
  /// c[rows, columns] = a[rows, depth] * b[columns, depth] transposed.
  static void multiply(std::int64_t rows, int columns, int depth, float const* a, float const* b, float* c,
                       int stride) {
    if (rows == 1) {
      cblas_sgemv(CblasRowMajor, CblasNoTrans, columns, depth, 1.0f, b, depth, a, 1, 0.0f, c, 1);
    } else {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(rows), columns, depth, 1.0f, a, depth, b,
                  depth, 0.0f, c, stride);
    }
  }

  problem<float> of_;
};

}  // namespace

std::string openblas_name() {
  std::string const config = openblas_get_config();  // "OpenBLAS 0.3.21 ..."
  return config.substr(0, config.find(' ', config.find(' ') + 1)) + " " + openblas_get_corename();
}

std::unique_ptr<products<float>> openblas(problem<float> const& of) { return std::make_unique<openblas_products>(of); }

}  // namespace switchyard::bench::peers
