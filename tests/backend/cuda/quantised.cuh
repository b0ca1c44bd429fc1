#pragma once

#include <switchyard/expert/stored_as.hpp>
#include <switchyard/quantised/any_of.hpp>
#include <switchyard/quantised/blocks.hpp>
#include <switchyard/quantised/grouped.hpp>
#include <switchyard/quantised/scaled.hpp>
#include <switchyard/switchyard.cuh>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "backend/cuda/device.cuh"
#include "backend/cuda/structure/counters.cuh"
#include "catch.hpp"

/// Quantised weights on the GPU. Stages of a tile have the widened weights as elements, so that results have the bits of dense ones.
namespace support {

namespace q = switchyard::quantised;

/// Formats whose bytes come through shared memory, in one type, for kernels to be compiled once. Their numbers follow.
using all_formats = q::any_of<q::block_matrix<q::q8_0>, q::block_matrix<q::q4_0>, q::block_matrix<q::mxfp4_halves>,
                              q::mxfp4, q::int8_channel<float>, q::fp8_tensor<sy::bfloat16>, q::fp8_block, q::nvfp4,
                              q::int4_packed, q::gptq, q::awq, q::block_matrix<q::q4_K>, q::block_matrix<q::q6_K>>;
enum stored_format {
  q8_0,
  q4_0,
  mxfp4_halves,
  mxfp4,
  int8_channel,
  fp8_tensor,
  fp8_block,
  nvfp4,
  int4_packed,
  gptq,
  awq,
  q4_K,
  q6_K
};

/// Random matrices in one format or another, on the host and on the device.
template <class Formats>
class quantised_matrices {
 public:
  static constexpr int experts = 4;

  /// One of fp8 may have a NaN.
  quantised_matrices(int format, int rows, int columns, unsigned seed, bool with_nan)
      : random_(seed), rows_(rows), columns_(columns) {
    make(format, rows, columns, with_nan);
  }

  /// Of all experts.
  std::int64_t bytes() const { return bytes_; }
  /// On the device.
  Formats const& stored() const { return on_device_; }
  /// The same weights as elements, on the device.
  template <class Element>
  device_array<Element> dense() const {
    std::vector<Element> result;
    float weights[Formats::granule];
    for (int line = 0; line < experts * rows_; ++line) {
      for (int column = 0; column < columns_; column += Formats::granule) {
        on_host_.read(line / rows_, line % rows_, column, Formats::granule, weights);
        for (float weight : weights) result.emplace_back(weight);
      }
    }
    return device_array<Element>(result);
  }

 private:
  void make(int format, int rows, int columns, bool with_nan) {
    std::size_t const count = std::size_t{experts} * rows * columns;
    auto const in_blocks = [&]<class Block>(Block, std::initializer_list<int> halves) {
      auto bytes = drawn<std::uint8_t>(count / Block::weights * Block::bytes);
      for (std::size_t b = 0; b < bytes.size(); b += Block::bytes) {
        for (int at : halves) put(&bytes[b + at], sy::half(0.001f + 0.0001f * static_cast<float>(random_() % 64)));
        if (Block::bytes == 17) bytes[b] = scale_code();
      }
      set([rows, columns](std::uint8_t const* at) { return q::block_matrix<Block>::packed(at, rows, columns); }, bytes);
    };
    auto const scales = [&]<class Scale>(Scale, std::size_t many) {
      std::vector<Scale> made;
      for (std::size_t i = 0; i < many; ++i) made.emplace_back(0.001f + 0.0001f * static_cast<float>(random_() % 64));
      return made;
    };
    auto const fp8 = [&](std::size_t many) {
      auto codes = drawn<std::uint8_t>(many);
      for (std::uint8_t& code : codes) code = (code & 0x7fu) == 0x7fu ? 0x11 : code;
      return codes;
    };
    std::size_t const lines = std::size_t{experts} * rows;
    switch (format) {
      case q8_0: return in_blocks(q::q8_0{}, {0});
      case q4_0: return in_blocks(q::q4_0{}, {0});
      case mxfp4_halves: return in_blocks(q::mxfp4_halves{}, {});
      case mxfp4: {
        auto of_blocks = drawn<std::uint8_t>(count / 32);
        for (std::uint8_t& code : of_blocks) code = scale_code();
        return set(
            [=](std::uint8_t const* codes, std::uint8_t const* scale) {
              return q::mxfp4{codes, scale, rows, columns};
            },
            drawn<std::uint8_t>(count / 2), of_blocks);
      }
      case int8_channel:
        return set(
            [=](std::int8_t const* codes, float const* scale) {
              return q::int8_channel<float>{codes, scale, rows, columns};
            },
            drawn<std::int8_t>(count), scales(float{}, lines));
      case fp8_tensor:
        return set(
            [=](std::uint8_t const* codes, sy::bfloat16 const* scale) {
              return q::fp8_tensor<sy::bfloat16>{codes, scale, rows, columns};
            },
            fp8(count), scales(sy::bfloat16{}, experts));
      case fp8_block: {
        auto codes = fp8(count);
        if (with_nan) codes[std::size_t{5} * columns + 7] = 0xff;
        return set(
            [=](std::uint8_t const* at, float const* scale) {
              return q::fp8_block{at, scale, rows, columns};
            },
            codes, scales(float{}, experts * sy::divide_up(rows, 128) * sy::divide_up(columns, 128)));
      }
      case nvfp4:
        return set(
            [=](std::uint8_t const* codes, std::uint8_t const* scale, float const* global) {
              return q::nvfp4{codes, scale, global, rows, columns};
            },
            drawn<std::uint8_t>(count / 2), fp8(count / 16), std::vector<float>(experts, 5000.0f));
      case int4_packed:
        return set(
            [=](std::uint32_t const* words, sy::bfloat16 const* scale) {
              return q::int4_packed{words, scale, rows, columns};
            },
            drawn<std::uint32_t>(count / 8), scales(sy::bfloat16{}, count / 32));
      case gptq: {
        std::size_t const groups = experts * sy::divide_up(columns, 128);
        return set(
            [=](std::uint32_t const* words, std::uint32_t const* zeros, sy::half const* scale) {
              return q::gptq{words, zeros, scale, rows, columns};
            },
            drawn<std::uint32_t>(count / 8), drawn<std::uint32_t>(groups * rows / 8),
            scales(sy::half{}, groups * rows));
      }
      case awq: {
        std::size_t const groups = experts * sy::divide_up(columns, 128);
        return set(
            [=](std::uint32_t const* words, std::uint32_t const* zeros, sy::half const* scale) {
              return q::awq{words, zeros, scale, rows, columns};
            },
            drawn<std::uint32_t>(count / 8), drawn<std::uint32_t>(groups * rows / 8),
            scales(sy::half{}, groups * rows));
      }
      case q4_K: return in_blocks(q::q4_K{}, {0, 2});
      default: return in_blocks(q::q6_K{}, {208});
    }
  }

  template <class T>
  std::vector<T> drawn(std::size_t count) {
    std::vector<T> result(count);
    for (T& value : result) value = static_cast<T>(random_());
    return result;
  }
  std::uint8_t scale_code() { return static_cast<std::uint8_t>(117 + random_() % 6); }
  static void put(std::uint8_t* at, sy::half value) { std::memcpy(at, &value, sizeof value); }

  template <class Make, class... Values>
  void set(Make const& make, std::vector<Values> const&... arrays) {
    bytes_ = (bytes_of(arrays) + ...);
    if constexpr (std::is_convertible_v<decltype(make(arrays.data()...)), Formats>) {
      on_host_ = make(keep(std::make_shared<std::vector<Values>>(arrays))->data()...);
      on_device_ = make(keep(std::make_shared<device_array<Values>>(arrays))->data()...);
    } else {
      throw std::runtime_error("a format that is not among the tested ones");
    }
  }
  template <class T>
  static std::int64_t bytes_of(std::vector<T> const& array) {
    return static_cast<std::int64_t>(array.size() * sizeof(T));
  }
  template <class T>
  T const* keep(std::shared_ptr<T> const& made) {
    kept_.push_back(made);
    return made.get();
  }

  std::mt19937 random_;
  int rows_, columns_;
  std::int64_t bytes_ = 0;
  std::vector<std::shared_ptr<void const>> kept_;
  Formats on_host_, on_device_;
};

template <class Formats, class Backend, class Element, int Hidden, int Intermediate>
using stored_layer = sy::layer<sy::shape{Hidden, Intermediate, 4, 2}, sy::router::softmax_top_k, sy::capacity::dropless,
                               sy::expert::stored_as<sy::expert::gated_mlp<sy::silu>, Formats>, Backend, Element>;

/// What the products of quantised experts read, where an emulator of a GPU tells: bytes over the least, and of a hundred accesses to shared
/// memory how many wait for a bank.
struct counted_product {
  double bytes, conflicts;
  std::int64_t local_bytes;
};

/// Both products of a call with matrices of one format.
template <class Formats, class Backend, int Hidden, int Intermediate>
std::vector<counted_product> count_quantised(int tokens, int tile_rows, int in_columns, int out_columns, int format,
                                             counters& from) {
  using layer = stored_layer<Formats, Backend, sy::bfloat16, Hidden, Intermediate>;
  auto const matrix = [&](int rows, int columns) {
    return quantised_matrices<Formats>(format, rows, columns, 1, false);
  };
  quantised_matrices<Formats> const in = matrix(Intermediate, Hidden), out = matrix(Hidden, Intermediate);
  std::vector<float> router(std::size_t{4} * Hidden, 0.01f);
  std::vector<sy::bfloat16> x(std::size_t{1} * tokens * Hidden, sy::bfloat16(0.5f));
  std::mt19937 random(1);
  for (float& value : router) value = static_cast<float>(random() % 200) * 0.001f - 0.1f;
  for (sy::bfloat16& value : x) value = sy::bfloat16(static_cast<float>(random() % 200) * 0.01f - 1.0f);
  device_array<float> const on_router(router);
  device_array<sy::bfloat16> const on_x(x), y(x.size());
  device_array<std::int64_t> const counts(layer::dims.experts);
  device_array<std::byte> const workspace(layer::workspace_bytes(tokens));
  typename layer::args args{};
  args.tokens = layer::rows(on_x.data(), tokens);
  args.weights.router.weight = on_router.data();
  args.weights.gate_proj = args.weights.up_proj = in.stored();
  args.weights.down_proj = out.stored();
  args.output = layer::rows(y.data(), tokens);
  args.workspace = {workspace.data(), workspace.size()};
  args.decisions.counts = counts.data();
  forward_and_wait<layer>(args);

  std::vector<counted_product> counted;
  auto const rows = counts.copy_out();
  for (nlohmann::json const& launch : from.next()) {
    std::string const kernel = launch["kernel"];
    bool const is_in = kernel.find("product_in<") != std::string::npos;
    if (!is_in && kernel.find("product_out<") == std::string::npos) continue;
    std::int64_t const depth = is_in ? Hidden : Intermediate, features = is_in ? Intermediate : Hidden;
    std::int64_t least = 0;
    for (std::int64_t count : rows) {
      // Copies of nothing, for rows that a tile lacks, count where they are named: once for a tile.
      std::int64_t const tiles = sy::divide_up(count, tile_rows),
                         named = count % tile_rows == 0 ? count : count + tiles;
      least +=
          tiles * (is_in ? 2 * in.bytes() : out.bytes()) / layer::dims.experts +
          sy::divide_up(features, is_in ? in_columns / 2 : out_columns) * (named * 2 * depth + (is_in ? 4 * count : 0));
    }
    auto const number = [&](char const* group, char const* name) { return launch[group][name].get<double>(); };
    counted.push_back(
        {static_cast<double>(moved_by(launch).loads) / static_cast<double>(least),
         100.0 * (number("shared_load", "extra_wavefronts") + number("shared_store", "extra_wavefronts")) /
             (number("shared_load", "requests") + number("shared_store", "requests")),
         launch["local_bytes"].get<std::int64_t>()});
  }
  return counted;
}

/// Runs a layer whose matrices are of three formats, and the same one with dense matrices.
template <class Formats, class Backend, class Element, int Hidden, int Intermediate>
void check_quantised(int tokens, int gate_format, int up_format, int down_format) {
  using stored = stored_layer<Formats, Backend, Element, Hidden, Intermediate>;
  using dense = sy::layer<stored::dims, sy::router::softmax_top_k, sy::capacity::dropless,
                          sy::expert::gated_mlp<sy::silu>, Backend, Element>;
  CAPTURE(tokens, gate_format, up_format, down_format);
  std::mt19937 random(static_cast<unsigned>(tokens + gate_format));
  quantised_matrices<Formats> const gate(gate_format, Intermediate, Hidden, random(), false),
      up(up_format, Intermediate, Hidden, random(), false), down(down_format, Hidden, Intermediate, random(), true);
  auto const dense_gate = gate.template dense<Element>(), dense_up = up.template dense<Element>(),
             dense_down = down.template dense<Element>();
  std::vector<float> router(std::size_t{4} * Hidden);
  for (float& value : router) value = static_cast<float>(random() % 200) * 0.001f - 0.1f;
  std::vector<Element> x;
  for (int i = 0; i < tokens * Hidden; ++i) x.emplace_back(static_cast<float>(random() % 2000) * 0.001f - 1.0f);
  device_array<float> const on_router(router);
  device_array<Element> const on_x(x);
  auto const run = [&]<class Layer>(Layer, auto const& set) {
    device_array<Element> y(x.size());
    std::size_t const bytes = Layer::workspace_bytes(tokens);
    device_array<std::byte> workspace(bytes);
    typename Layer::args args{};
    args.tokens = Layer::rows(on_x.data(), tokens);
    args.weights.router.weight = on_router.data();
    set(args.weights);
    args.output = Layer::rows(y.data(), tokens);
    args.workspace = {workspace.data(), bytes};
    Layer::forward(args);
    return y.copy_out();
  };
  auto const got = run(stored{}, [&](typename stored::weights& w) {
    w.gate_proj = gate.stored();
    w.up_proj = up.stored();
    w.down_proj = down.stored();
  });
  auto const expected = run(dense{}, [&](typename dense::weights& w) {
    w.gate_proj = dense::in_proj(dense_gate.data());
    w.up_proj = dense::in_proj(dense_up.data());
    w.down_proj = dense::out_proj(dense_down.data());
  });
  REQUIRE(got.size() == expected.size());
  CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(Element)) == 0);
  int numbers = 0;
  for (Element value : got) {
    float const v = static_cast<float>(value);
    numbers += v != 0.0f && v - v == 0.0f ? 1 : 0;
  }
  CHECK(numbers > static_cast<int>(got.size()) / 4);
}

}  // namespace support
