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
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "backend/cuda/device.cuh"
#include "catch.hpp"

/// Quantised weights on the GPU. Stages of a tile have the widened weights as elements, so that results have the bits of dense ones.
namespace support {

namespace q = switchyard::quantised;

/// All formats whose bytes come through shared memory, and one whose weights are read one by one.
using formats_on_gpu =
    q::any_of<q::block_matrix<q::q8_0>, q::block_matrix<q::q4_0>, q::block_matrix<q::mxfp4_halves>, q::mxfp4,
              q::int8_channel<float>, q::fp8_tensor<sy::bfloat16>, q::fp8_block, q::nvfp4, q::int4_packed, q::gptq,
              q::block_matrix<q::q4_K>, q::block_matrix<q::q6_K>>;

/// Random matrices in one format or another, on the host and on the device.
class quantised_matrices {
 public:
  static constexpr int experts = 4, formats = 12, with_small_blocks = 10;

  /// One of fp8 may have a NaN.
  quantised_matrices(int format, int rows, int columns, unsigned seed, bool with_nan)
      : random_(seed), rows_(rows), columns_(columns) {
    make(format, rows, columns, with_nan);
  }

  /// On the device.
  formats_on_gpu const& stored() const { return on_device_; }
  /// The same weights as elements, on the device.
  template <class Element>
  device_array<Element> dense() const {
    std::vector<Element> result;
    float weights[formats_on_gpu::granule];
    for (int line = 0; line < experts * rows_; ++line) {
      for (int column = 0; column < columns_; column += formats_on_gpu::granule) {
        on_host_.read(line / rows_, line % rows_, column, formats_on_gpu::granule, weights);
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
      case 0: return in_blocks(q::q8_0{}, {0});
      case 1: return in_blocks(q::q4_0{}, {0});
      case 2: return in_blocks(q::mxfp4_halves{}, {});
      case 3: {
        auto of_blocks = drawn<std::uint8_t>(count / 32);
        for (std::uint8_t& code : of_blocks) code = scale_code();
        return set(
            [=](std::uint8_t const* codes, std::uint8_t const* scale) {
              return q::mxfp4{codes, scale, rows, columns};
            },
            drawn<std::uint8_t>(count / 2), of_blocks);
      }
      case 4:
        return set(
            [=](std::int8_t const* codes, float const* scale) {
              return q::int8_channel<float>{codes, scale, rows, columns};
            },
            drawn<std::int8_t>(count), scales(float{}, lines));
      case 5:
        return set(
            [=](std::uint8_t const* codes, sy::bfloat16 const* scale) {
              return q::fp8_tensor<sy::bfloat16>{codes, scale, rows, columns};
            },
            fp8(count), scales(sy::bfloat16{}, experts));
      case 6: {
        auto codes = fp8(count);
        if (with_nan) codes[std::size_t{5} * columns + 7] = 0xff;
        return set(
            [=](std::uint8_t const* at, float const* scale) {
              return q::fp8_block{at, scale, rows, columns};
            },
            codes, scales(float{}, experts * sy::divide_up(rows, 128) * sy::divide_up(columns, 128)));
      }
      case 7:
        return set(
            [=](std::uint8_t const* codes, std::uint8_t const* scale, float const* global) {
              return q::nvfp4{codes, scale, global, rows, columns};
            },
            drawn<std::uint8_t>(count / 2), fp8(count / 16), std::vector<float>(experts, 5000.0f));
      case 8:
        return set(
            [=](std::uint32_t const* words, sy::bfloat16 const* scale) {
              return q::int4_packed{words, scale, rows, columns};
            },
            drawn<std::uint32_t>(count / 8), scales(sy::bfloat16{}, count / 32));
      case 9: {
        std::size_t const groups = experts * sy::divide_up(columns, 128);
        return set(
            [=](std::uint32_t const* words, std::uint32_t const* zeros, sy::half const* scale) {
              return q::gptq{words, zeros, scale, rows, columns};
            },
            drawn<std::uint32_t>(count / 8), drawn<std::uint32_t>(groups * rows / 8),
            scales(sy::half{}, groups * rows));
      }
      case 10: return in_blocks(q::q4_K{}, {0, 2});
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
    on_host_ = make(keep(std::make_shared<std::vector<Values>>(arrays))->data()...);
    on_device_ = make(keep(std::make_shared<device_array<Values>>(arrays))->data()...);
  }
  template <class T>
  T const* keep(std::shared_ptr<T> const& made) {
    kept_.push_back(made);
    return made.get();
  }

  std::mt19937 random_;
  int rows_, columns_;
  std::vector<std::shared_ptr<void const>> kept_;
  formats_on_gpu on_host_, on_device_;
};

/// Runs a layer whose matrices are of three formats, and the same one with dense matrices.
template <class Backend, class Element, int Hidden, int Intermediate>
void check_quantised(int tokens, int first_format, int formats) {
  using gated = sy::expert::gated_mlp<sy::silu>;
  using stored = sy::layer<sy::shape{Hidden, Intermediate, quantised_matrices::experts, 2}, sy::router::softmax_top_k,
                           sy::capacity::dropless, sy::expert::stored_as<gated, formats_on_gpu>, Backend, Element>;
  using dense = sy::layer<sy::shape{Hidden, Intermediate, quantised_matrices::experts, 2}, sy::router::softmax_top_k,
                          sy::capacity::dropless, gated, Backend, Element>;
  CAPTURE(tokens, first_format);
  std::mt19937 random(static_cast<unsigned>(tokens + first_format));
  auto const of = [&](int number, int rows, int columns) {
    return quantised_matrices((first_format + number) % formats, rows, columns, random(), number == 2);
  };
  quantised_matrices const gate = of(0, Intermediate, Hidden), up = of(1, Intermediate, Hidden),
                           down = of(2, Hidden, Intermediate);
  auto const dense_gate = gate.dense<Element>(), dense_up = up.dense<Element>(), dense_down = down.dense<Element>();
  std::vector<float> router(std::size_t{quantised_matrices::experts} * Hidden);
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
