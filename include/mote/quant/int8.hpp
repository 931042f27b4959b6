// int8 symmetric quantization of rows: weights per output channel, activations per token.
//
//   s = amax / 127,  q = clamp(round(x / s), -127, 127) with ties to even;  a zero row uses s = 1.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../core/error.hpp"
#include "../core/view.hpp"

MOTE_BEGIN_NAMESPACE

// Quantizes one row of n values; returns the scale. `sum` receives Σ q.
inline float quantize_int8_row(const float* x, std::size_t n, std::int8_t* codes, std::int32_t& sum) {
  float amax = 0.0f;
  for (std::size_t i = 0; i < n; ++i) amax = std::fmax(amax, std::fabs(x[i]));
  const float scale = amax > 0.0f ? amax / 127.0f : 1.0f;
  sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const float q = std::fmin(std::fmax(std::nearbyint(x[i] / scale), -127.0f), 127.0f);
    codes[i] = static_cast<std::int8_t>(q);
    sum += codes[i];
  }
  return scale;
}

// w [out, in] to codes [out, in], scale [out] and sum [out]. Throws shape_error when the shapes differ.
inline void quantize_int8(view<const float, 2> w, view<std::int8_t, 2> codes, view<float, 1> scale,
                          view<std::int32_t, 1> sum) {
  check_view("quantize_int8", "codes", codes, {w.extent(0), w.extent(1)});
  check_view("quantize_int8", "scale", scale, {w.extent(0)});
  check_view("quantize_int8", "sum", sum, {w.extent(0)});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    scale(n) = quantize_int8_row(w.row(n), w.extent(1), codes.row(n), sum(n));
  }
}

MOTE_END_NAMESPACE
