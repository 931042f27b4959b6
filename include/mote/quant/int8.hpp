// int8 quantization of rows: weights per output channel, activations per token.
//
//   symmetric   s = amax / 127,  q = clamp(round(x / s), -127, 127)                         x ≈ s q
//   asymmetric  s = (max - min) / 255 over a range that holds 0,  z = round(-min / s) - 128,
//               q = clamp(round(x / s) + z, -128, 127)                                      x ≈ s (q - z)
//
// Symmetric codes are those of an int8_matrix, asymmetric ones those of a scaled_matrix, each row a tile. Ties go to even; a
// zero row uses s = 1. A symmetric row that is not all finite has codes 0 and the scale NaN, which no product
// with it can hide.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "../core/error.hpp"
#include "../core/view.hpp"

MOTE_BEGIN_NAMESPACE

// Quantizes one row of n values; returns the scale.
inline float quantize_int8_row(const float* x, std::size_t n, std::int8_t* codes) {
  float amax = 0.0f;
  bool finite = true;
  for (std::size_t i = 0; i < n; ++i) {
    amax = std::fmax(amax, std::fabs(x[i]));
    finite = finite && std::isfinite(x[i]);
  }
  if (!finite) {
    std::fill_n(codes, n, std::int8_t{0});
    return std::numeric_limits<float>::quiet_NaN();
  }
  const float scale = amax / 127.0f > 0.0f ? amax / 127.0f : 1.0f;  // the quotient, which may vanish
  for (std::size_t i = 0; i < n; ++i) {
    codes[i] = static_cast<std::int8_t>(std::clamp(std::nearbyint(x[i] / scale), -127.0f, 127.0f));
  }
  return scale;
}

// w [out, in] to codes [out, in] and scale [out]. Throws shape_error when the shapes differ.
inline void quantize_int8(view<const float, 2> w, view<std::int8_t, 2> codes, view<float, 1> scale) {
  check_view("quantize_int8", "w", w, {w.extent(0), w.extent(1)});
  check_view("quantize_int8", "codes", codes, {w.extent(0), w.extent(1)});
  check_view("quantize_int8", "scale", scale, {w.extent(0)});
  for (std::size_t n = 0; n < w.extent(0); ++n) scale(n) = quantize_int8_row(w.row(n), w.extent(1), codes.row(n));
}

// How the integers of `bits` bits cover the range of n values, widened to hold 0: x ≈ scale · (q - zero).
struct asymmetric_range {
  float scale;
  std::int8_t zero;
  std::int8_t lowest, highest;

  asymmetric_range(const float* x, std::size_t n, int bits)
      : lowest(static_cast<std::int8_t>(-(1 << (bits - 1)))), highest(static_cast<std::int8_t>(-lowest - 1)) {
    float low = 0.0f, high = 0.0f;
    for (std::size_t i = 0; i < n; ++i) {
      low = std::fmin(low, x[i]);
      high = std::fmax(high, x[i]);
    }
    const auto steps = static_cast<float>(highest - lowest);
    const float step = std::fmin(high - low, std::numeric_limits<float>::max()) / steps;
    scale = step > 0.0f ? step : 1.0f;
    zero = static_cast<std::int8_t>(std::fmin(std::nearbyint(-low / scale), steps) + static_cast<float>(lowest));
  }

  std::int8_t code(float x) const {
    const float q = std::nearbyint(x / scale) + static_cast<float>(zero);
    return static_cast<std::int8_t>(std::fmin(std::fmax(q, static_cast<float>(lowest)), static_cast<float>(highest)));
  }
};

// Asymmetric, with zero [out].
inline void quantize_int8(view<const float, 2> w, view<std::int8_t, 2> codes, view<float, 1> scale,
                          view<std::int8_t, 1> zero) {
  check_view("quantize_int8", "w", w, {w.extent(0), w.extent(1)});
  check_view("quantize_int8", "codes", codes, {w.extent(0), w.extent(1)});
  check_view("quantize_int8", "scale", scale, {w.extent(0)});
  check_view("quantize_int8", "zero", zero, {w.extent(0)});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    const asymmetric_range range(w.row(n), w.extent(1), 8);
    scale(n) = range.scale;
    zero(n) = range.zero;
    for (std::size_t k = 0; k < w.extent(1); ++k) codes(n, k) = range.code(w(n, k));
  }
}

MOTE_END_NAMESPACE
