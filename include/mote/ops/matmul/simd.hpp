#pragma once

#include <algorithm>
#include <cstddef>

#include "../../core/output.hpp"
#include "../../core/simd.hpp"
#include "unit.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Rows of y from what is written to what is asked of memory.
inline constexpr std::size_t written_ahead = 4;

// One unit's weight rows for all tokens; `target(t)` is the row of y.
template <class Arch, class Matrix, class Target>
void matmul_unit(const Matrix& w, std::size_t first, std::size_t rows, const activation* x, std::size_t tokens,
                 output mode, Target&& target) noexcept {
  alignas(64) float out[unit_stride * unit_tokens];
  for (std::size_t t = 0; t < tokens; t += unit_tokens) {
    const std::size_t count = std::min(unit_tokens, tokens - t);
    unit_product<Arch>(w, first, rows, x + t, count, out);
    for (std::size_t c = 0; c < count; ++c) {
      float* y = target(t + c) + first;
      if (c + written_ahead < count) {
        const float* const next = target(t + c + written_ahead) + first;
        for (std::size_t n = 0; n < rows; n += 64 / sizeof(float)) __builtin_prefetch(next + n, 1, 3);
      }
      for (std::size_t n = 0; n < rows; ++n) {
        y[n] = mode == output::accumulate ? y[n] + out[n + c * unit_stride] : out[n + c * unit_stride];
      }
    }
  }
}

}  // namespace detail

template <class Arch, class Executor, class Matrix>
void matmul_impl(simd<Arch, Executor>& be, view<const float, 2> x, const Matrix& w, view<float, 2> y, output mode) {
  const std::size_t tokens = x.extent(0), out = out_features(w);
  detail::check_packing<Arch>("matmul", w);
  if (tokens == 0 || out == 0) return;
  auto scope = be.scope();
  const detail::activation_forms forms = detail::forms(w);
  const auto rows =
      detail::prepare_rows<Arch>(be, scope, forms, tokens, x.extent(1), [&](std::size_t t) { return x.row(t); });
  detail::lay_out_tiles<Arch>(be, scope, forms, x.extent(1), rows, 1, [&](std::size_t r) { return r * tokens; });
  const std::size_t unit = detail::unit_rows_of<Arch>(w, tokens);
  const std::size_t grain = unit * detail::units_at_once(w, unit, out / unit, tokens, be.concurrency());
  be.parallel_for(out, grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t n = begin; n < end; n += unit) {
      detail::matmul_unit<Arch>(w, n, std::min(unit, end - n), rows.data(), tokens, mode,
                                [&](std::size_t t) { return y.row(t); });
    }
  });
}

MOTE_END_NAMESPACE
