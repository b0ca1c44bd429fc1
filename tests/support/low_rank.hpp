#pragma once

#include <switchyard/switchyard.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "support/compile.hpp"
#include "support/operands.hpp"
#include "support/random_numbers.hpp"

/// Layers of low rank by language, and what their outputs are.
namespace support {

/// A matrix that all languages share, [rows, columns], and the tables of factors, an entry for each language and one for all.
struct low_rank_map {
  int rows = 0, columns = 0, rank = 0;
  std::vector<float> weight, vertical, flat, bias;

  /// W + A[source] F[target] in double.
  std::vector<double> matrix(int source, int target) const {
    std::vector<double> sums(weight.begin(), weight.end());
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < columns; ++column) {
        for (int r = 0; r < rank; ++r) {
          sums[row * columns + column] +=
              double(vertical[(source * rows + row) * rank + r]) * double(flat[(target * rank + r) * columns + column]);
        }
      }
    }
    return sums;
  }
  std::vector<double> apply(std::vector<double> const& x, int source, int target) const {
    std::vector<double> y(bias.begin(), bias.end()), w = matrix(source, target);
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < columns; ++column) y[row] += w[row * columns + column] * x[column];
    }
    return y;
  }
};

/// The two maps of a block, and tokens with their languages.
struct low_rank_problem {
  low_rank_map up, down;
  std::vector<float> x;
  std::vector<std::int32_t> source, target;

  int hidden() const { return up.columns; }
  int tokens() const { return static_cast<int>(source.size()); }

  /// down(relu(up x)) of every token, in double.
  std::vector<double> reference() const {
    std::vector<double> all;
    for (int t = 0; t < tokens(); ++t) {
      std::vector<double> inner =
          up.apply({x.begin() + t * hidden(), x.begin() + (t + 1) * hidden()}, source[t], target[t]);
      for (double& v : inner) v = v > 0 ? v : 0;
      std::vector<double> const y = down.apply(inner, source[t], target[t]);
      all.insert(all.end(), y.begin(), y.end());
    }
    return all;
  }
  /// Those tokens alone for which `wanted(token)`.
  template <class Wanted>
  low_rank_problem where(Wanted const& wanted) const {
    low_rank_problem part{up, down, {}, {}, {}};
    for (int t = 0; t < tokens(); ++t) {
      if (!wanted(t)) continue;
      part.x.insert(part.x.end(), x.begin() + t * hidden(), x.begin() + (t + 1) * hidden());
      part.source.push_back(source[t]);
      part.target.push_back(target[t]);
    }
    return part;
  }
};

/// Numbers that are elements of any type. Some pairs have most tokens, the last of them in the last entry.
inline low_rank_problem random_low_rank(int tokens, int hidden, int intermediate, int rank, int languages) {
  random_numbers random(5);
  auto const map = [&](int rows, int columns) {
    return low_rank_map{rows,
                        columns,
                        rank,
                        few_bits<float>(random, std::int64_t{rows} * columns, 100, 1.0f / 512),
                        few_bits<float>(random, std::int64_t{languages + 1} * rows * rank, 100, 1.0f / 256),
                        few_bits<float>(random, std::int64_t{languages + 1} * rank * columns, 100, 1.0f / 256),
                        few_bits<float>(random, rows, 100, 1.0f / 128)};
  };
  low_rank_problem p{map(intermediate, hidden), map(hidden, intermediate), {}, {}, {}};
  p.x = few_bits<float>(random, std::int64_t{tokens} * hidden, 100, 1.0f / 64);
  for (int t = 0; t < tokens; ++t) {
    bool const frequent = random.below(2) == 0;
    p.source.push_back(frequent ? 1 : t == 0 ? languages : random.below(languages + 1));
    p.target.push_back(frequent ? 0 : t == 0 ? languages : random.below(languages + 1));
  }
  return p;
}

/// A layer of such a block.
template <int Hidden, int Intermediate, class Paths, int Rank, class Router, class Backend = sy::backend::cpu,
          class Element = float, sy::low_rank_form Form = sy::low_rank_form::factored>
using low_rank_layer =
    sy::layer<sy::shape{Hidden, Intermediate, Paths::count, 1}, Router, sy::capacity::dropless,
              sy::expert::low_rank<Paths, Rank, sy::expert::with_bias<sy::expert::mlp<sy::relu>>, Form>, Backend,
              Element>;

/// One call: memory where the backend has it, and the arguments.
template <class Layer>
struct low_rank_call {
  using element = typename Layer::element;
  placed_arrays memory{reached<typename Layer::backend>::memory()};
  low_rank_problem const& problem;
  typename Layer::args args{};

  explicit low_rank_call(low_rank_problem const& p) : problem(p) {
    auto const elements = [&](std::vector<float> const& values) {
      std::vector<element> stored;
      for (float v : values) stored.push_back(element(v));
      return static_cast<element const*>(memory.put(stored));
    };
    std::int64_t const tokens = p.tokens();
    std::size_t const bytes = Layer::workspace_bytes(tokens);
    args.tokens = Layer::rows(elements(p.x), tokens);
    args.weights.up_proj = Layer::in_proj(elements(p.up.weight), elements(p.up.vertical), elements(p.up.flat));
    args.weights.down_proj = Layer::out_proj(elements(p.down.weight), elements(p.down.vertical), elements(p.down.flat));
    args.weights.bias.up = Layer::in_bias(elements(p.up.bias));
    args.weights.bias.down = Layer::out_bias(elements(p.down.bias));
    args.output = Layer::rows(memory.template room<element>(p.x.size()), tokens);
    args.workspace = {memory.template room<std::byte>(bytes), bytes};
    args.decisions.experts = memory.template room<std::int32_t>(p.source.size());
    if constexpr (requires { args.inputs.language; }) {
      args.inputs.language = memory.put(p.source);
    } else {
      args.inputs = {memory.put(p.source), memory.put(p.target)};
    }
  }
  std::vector<float> run(sy::cpu_context const& context = {.threads = 1}) {
    reached<typename Layer::backend>::template forward<Layer>(args, context);
    std::vector<float> y;
    for (element v : memory.get(args.output.data, problem.x.size())) y.push_back(static_cast<float>(v));
    return y;
  }
  std::vector<std::int32_t> experts() const { return memory.get(args.decisions.experts, problem.source.size()); }
};

template <class Layer>
std::vector<float> run_low_rank(low_rank_problem const& problem, sy::cpu_context const& context = {.threads = 1}) {
  return low_rank_call<Layer>(problem).run(context);
}

}  // namespace support
