#pragma once

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <variant>

#include "../../core/backend.hpp"
#include "../../core/output.hpp"
#include "../../core/view.hpp"
#include "../../quant/activation_block.hpp"
#include "../../quant/int8.hpp"
#include "../../quant/weight.hpp"

MOTE_BEGIN_NAMESPACE

// std::fma, so that what is decoded to float32 first has the bits of float32 wherever the compiler would contract the sum.
template <class T>
void matmul_impl(reference&, view<const float, 2> x, const view<const T, 2>& w, view<float, 2> y,
                 output mode) noexcept {
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    for (std::size_t n = 0; n < w.extent(0); ++n) {
      float sum = 0.0f;
      for (std::size_t k = 0; k < w.extent(1); ++k) sum = std::fma(x(t, k), static_cast<float>(w(n, k)), sum);
      y(t, n) = mode == output::accumulate ? y(t, n) + sum : sum;
    }
  }
}

namespace detail {

// code(n, k) and scale(n) of the weights.
template <class Code, class Scale>
void int8_matmul(reference& be, view<const float, 2> x, view<float, 2> y, output mode, Code&& code, Scale&& scale) {
  auto scope = be.scope();
  const auto codes = scope.tensor<std::int8_t>(x.extent(1));
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    const float scale_x = quantize_int8_row(x.row(t), x.extent(1), codes.data());
    for (std::size_t n = 0; n < y.extent(1); ++n) {
      std::int32_t sum = 0;
      for (std::size_t k = 0; k < x.extent(1); ++k) sum += codes(k) * code(n, k);
      const float value = scale_x * scale(n) * static_cast<float>(sum);
      y(t, n) = mode == output::accumulate ? y(t, n) + value : value;
    }
  }
}

}  // namespace detail

inline void matmul_impl(reference& be, view<const float, 2> x, const int8_matrix& w, view<float, 2> y, output mode) {
  detail::int8_matmul(be, x, y, mode, w.codes, w.scale);
}
inline void matmul_impl(reference& be, view<const float, 2> x, const packed_matrix<std::int8_t>& w, view<float, 2> y,
                        output mode) {
  detail::int8_matmul(
      be, x, y, mode, [&](std::size_t n, std::size_t k) { return static_cast<int>(read_element(w, n, k)); },
      [&](std::size_t n) { return read_scale(w, n); });
}

inline void matmul_impl(reference&, view<const float, 2> x, const packed_matrix<bf16>& w, view<float, 2> y,
                        output mode) {
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    for (std::size_t n = 0; n < y.extent(1); ++n) {
      float sum = 0.0f;
      for (std::size_t k = 0; k < x.extent(1); ++k) sum += static_cast<float>(bf16(x(t, k))) * read_element(w, n, k);
      y(t, n) = mode == output::accumulate ? y(t, n) + sum : sum;
    }
  }
}

namespace detail {

// Integer formats: sums of integers, scaled group by group.
template <integer_format F, class Matrix>
void block_matmul(reference& be, view<const float, 2> x, const Matrix& w, view<float, 2> y, output mode) {
  constexpr std::size_t group = F::group_size;
  auto scope = be.scope();
  const auto blocks = scope.tensor<activation_block>(activation_block::count(x.extent(1)));
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    quantize_activation_blocks(x.row(t), x.extent(1), blocks.data());
    for (std::size_t n = 0; n < y.extent(1); ++n) {
      float total = 0.0f;
      for (std::size_t k = 0; k < x.extent(1); k += group) {
        const code_group<F> weights = read_group(w, n, k / group);
        const activation_block& block = blocks(k / activation_block::size);
        const std::size_t first = k % activation_block::size;
        std::int32_t sum = 0;
        for (std::size_t i = 0; i < group; ++i) sum += weights.q[i] * block.q[first + i];
        total += weights.scale * block.d * static_cast<float>(sum);
        total -= weights.min * block.scaled_sum<group>(first / 16);
      }
      y(t, n) = mode == output::accumulate ? y(t, n) + total : total;
    }
  }
}

}  // namespace detail

template <integer_format F>
void matmul_impl(reference& be, view<const float, 2> x, const view<const F, 2>& w, view<float, 2> y, output mode) {
  detail::block_matmul<F>(be, x, w, y, mode);
}
template <integer_format F>
void matmul_impl(reference& be, view<const float, 2> x, const packed_matrix<F>& w, view<float, 2> y, output mode) {
  detail::block_matmul<F>(be, x, w, y, mode);
}

namespace detail {

// Numbers that are decoded row by row.
template <class Matrix>
void decoded_matmul(reference& be, view<const float, 2> x, const Matrix& w, view<float, 2> y, output mode) {
  auto scope = be.scope();
  const auto row = scope.tensor<float>(1, x.extent(1));
  for (std::size_t n = 0; n < y.extent(1); ++n) {
    dequantize_row(w, n, row.data());
    matmul_impl(be, x, view<const float, 2>(row), y.slice(1, n, 1), mode);
  }
}

}  // namespace detail

// Formats of which only decode() is known.
template <block_format F>
void matmul_impl(reference& be, view<const float, 2> x, const view<const F, 2>& w, view<float, 2> y, output mode) {
  detail::decoded_matmul(be, x, w, y, mode);
}
inline void matmul_impl(reference& be, view<const float, 2> x, const scaled_matrix& w, view<float, 2> y, output mode) {
  detail::decoded_matmul(be, x, w, y, mode);
}

template <std::same_as<reference> Backend>
void matmul_impl(Backend& be, view<const float, 2> x, const weight& w, view<float, 2> y, output mode) {
  std::visit([&](const auto& matrix) { matmul_impl(be, x, matrix, y, mode); }, w);
}

MOTE_END_NAMESPACE
