#pragma once

#include <cstddef>
#include <cstdint>

#include "../../core/backend.hpp"
#include "../../core/output.hpp"
#include "../../core/view.hpp"
#include "../../quant/int8.hpp"
#include "../../quant/weight.hpp"

MOTE_BEGIN_NAMESPACE

template <class T>
void matmul_impl(reference&, view<const float, 2> x, const view<const T, 2>& w, view<float, 2> y,
                 output mode) noexcept {
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    for (std::size_t n = 0; n < w.extent(0); ++n) {
      float sum = 0.0f;
      for (std::size_t k = 0; k < w.extent(1); ++k) sum += x(t, k) * static_cast<float>(w(n, k));
      y(t, n) = mode == output::accumulate ? y(t, n) + sum : sum;
    }
  }
}

inline void matmul_impl(reference& be, view<const float, 2> x, const int8_matrix& w, view<float, 2> y, output mode) {
  auto scope = be.scope();
  const auto codes = scope.tensor<std::int8_t>(x.extent(1));
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    std::int32_t unused = 0;
    const float scale = quantize_int8_row(x.row(t), x.extent(1), codes.data(), unused);
    for (std::size_t n = 0; n < w.codes.extent(0); ++n) {
      std::int32_t sum = 0;
      for (std::size_t k = 0; k < w.codes.extent(1); ++k) sum += codes(k) * w.codes(n, k);
      const float value = scale * w.scale(n) * static_cast<float>(sum);
      y(t, n) = mode == output::accumulate ? y(t, n) + value : value;
    }
  }
}

MOTE_END_NAMESPACE
