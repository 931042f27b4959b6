// What the formats' encoders share: largest magnitudes, published roundings, saturation and nibbles.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../../core/config.hpp"
#include "../../core/types.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

inline constexpr float largest_f16 = 65504.0f;

inline f16 saturated_f16(float x) { return f16(std::clamp(x, -largest_f16, largest_f16)); }

// 1 / x, and 0 where that would not be finite.
inline float finite_inverse(float x) { return std::fabs(x) < 0x1p-126f ? 0.0f : 1.0f / x; }

// max |x[i]|. As integers, because those maxima are vectorized under strict floating-point rules.
inline float largest_magnitude(const float* x, std::size_t n) {
  std::int32_t largest = 0;
  for (std::size_t i = 0; i < n; ++i) {
    largest = std::max(largest, static_cast<std::int32_t>(bit_cast<std::uint32_t>(x[i]) & 0x7FFFFFFFu));
  }
  return bit_cast<float>(largest);
}

// The first element of largest magnitude.
inline float largest_element(const float* x, std::size_t n) {
  const float magnitude = largest_magnitude(x, n);
  std::size_t i = 0;
  while (i + 1 < n && std::fabs(x[i]) != magnitude) ++i;
  return x[i];
}

// Nearest integer, halves away from zero. |x| < 2^30.
inline int round_half_away(float x) {
  const int whole = static_cast<int>(x);
  const float rest = x - static_cast<float>(whole);
  return whole + (rest >= 0.5f ? 1 : 0) - (rest <= -0.5f ? 1 : 0);
}

// y = x · factor, each product rounded to float32: compilers may not fuse it with what the caller adds to it.
template <std::size_t N>
void rounded_products(const float* x, float factor, float (&y)[N]) {
  for (std::size_t i = 0; i < N; ++i) y[i] = x[i] * factor;
  asm("" : "+m"(y));
}

// Four-bit codes of 32 elements: byte i holds element i low, element i + 16 high.
inline std::uint8_t nibble(const std::uint8_t (&bytes)[16], std::size_t i) {
  return i < 16 ? bytes[i] & 15u : static_cast<std::uint8_t>(bytes[i - 16] >> 4);
}
inline void pack_nibbles(const std::uint8_t (&codes)[32], std::uint8_t (&bytes)[16]) {
  for (std::size_t i = 0; i < 16; ++i) bytes[i] = static_cast<std::uint8_t>(codes[i] | (codes[i + 16] << 4));
}

}  // namespace detail

MOTE_END_NAMESPACE
