// What the formats' encoders share: largest magnitudes, published roundings, saturation and nibbles.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

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

inline bool all_finite(const float* x, std::size_t n) { return std::isfinite(largest_magnitude(x, n)); }

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

// GGUF's rule for codes from 0 to `largest` of numbers m + d · code: m is the smallest number, m + d · largest the largest.
template <std::size_t N>
void codes_from_smallest(const float* x, float largest, f16& d, f16& m, std::uint8_t (&codes)[N]) {
  const float low = std::clamp(*std::min_element(x, x + N), -largest_f16, largest_f16);
  const float high = std::min(*std::max_element(x, x + N), low + largest * largest_f16);
  const float scale = std::max(high - low, 0.0f) / largest;
  float scaled[N];
  for (std::size_t i = 0; i < N; ++i) scaled[i] = x[i] - low;
  rounded_products(scaled, finite_inverse(scale), scaled);
  for (std::size_t i = 0; i < N; ++i) codes[i] = static_cast<std::uint8_t>(std::clamp(scaled[i] + 0.5f, 0.0f, largest));
  d = f16(scale);
  m = f16(low);
}

// The e2m1 codes nearest to x, the numbers doubled: 0, 1, 2, 3, 4, 6, 8, 12 times `unit`. Of two as near the smaller;
// zero has no sign.
template <std::size_t N>
void nearest_e2m1(const float* x, float unit, std::uint8_t (&codes)[N]) {
  std::int32_t magnitude_codes[N] = {};
  for (const float middle : {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f}) {
    for (std::size_t i = 0; i < N; ++i) magnitude_codes[i] += std::fabs(x[i]) > middle * unit ? 1 : 0;
  }
  for (std::size_t i = 0; i < N; ++i) {
    codes[i] = static_cast<std::uint8_t>(magnitude_codes[i] + (x[i] < 0.0f && magnitude_codes[i] > 0 ? 8 : 0));
  }
}

// Twice the e2m1 numbers, ascending.
inline constexpr std::array<std::int8_t, 15> e2m1_numbers = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};

// Four bytes as a word, the first in the lowest.
inline std::uint32_t four_bytes(const void* p) {
  std::uint32_t four;
  std::memcpy(&four, p, sizeof four);
  return four;
}

// The lowest four bits, each in a byte of its own.
inline std::uint32_t four_bits(unsigned bits) { return (bits & 15u) * 0x00204081u & 0x01010101u; }

// Four-bit codes of 32 elements: byte i holds element i low, element i + 16 high.
inline std::uint8_t nibble(const std::uint8_t (&bytes)[16], std::size_t i) {
  return i < 16 ? bytes[i] & 15u : static_cast<std::uint8_t>(bytes[i - 16] >> 4);
}
inline std::uint32_t four_nibbles(const std::uint8_t (&bytes)[16], std::size_t i) {
  return four_bytes(bytes + i % 16) >> (i / 16 * 4) & 0x0F0F0F0Fu;
}
inline void pack_nibbles(const std::uint8_t (&codes)[32], std::uint8_t (&bytes)[16]) {
  for (std::size_t i = 0; i < 16; ++i) bytes[i] = static_cast<std::uint8_t>(codes[i] | (codes[i + 16] << 4));
}

// 256 codes of 1, 2 or 4 bits as GGUF's K formats have them, in runs of `Run` bytes: the first `Run` codes are the lowest bits of
// their bytes, the next ones the bits above; where bytes are full the next run follows.
template <unsigned Bits, std::size_t Run = 32>
struct packed_runs {
  std::uint8_t bytes[32 * Bits];

  static constexpr unsigned in_byte = 8 / Bits, mask = (1u << Bits) - 1;
  static constexpr std::size_t at(std::size_t i) { return i / (Run * in_byte) * Run + i % Run; }
  static constexpr unsigned shift(std::size_t i) { return static_cast<unsigned>(i / Run % in_byte) * Bits; }

  unsigned get(std::size_t i) const { return bytes[at(i)] >> shift(i) & mask; }
  // Of elements i to i + 3, i a multiple of four, as bytes.
  std::uint32_t four(std::size_t i) const { return four_bytes(bytes + at(i)) >> shift(i) & mask * 0x01010101u; }
  // Of an element that is zero.
  void set(std::size_t i, unsigned code) { bytes[at(i)] |= static_cast<std::uint8_t>(code << shift(i)); }
};

// Eight pairs of six-bit scales and minima, as Q4_K and Q5_K have them.
struct packed_scales {
  // Bytes 0-3: six bits of scales 0-3; 4-7: of minima 0-3; 8-11: four bits of scales (low) and minima (high) 4-7, whose upper
  // two top the bytes 0-7.
  std::uint8_t bytes[12];

  int scale(std::size_t g) const { return g < 4 ? bytes[g] & 63 : (bytes[g + 4] & 15) | (bytes[g - 4] >> 6 << 4); }
  int min(std::size_t g) const { return g < 4 ? bytes[g + 4] & 63 : (bytes[g + 4] >> 4) | (bytes[g] >> 6 << 4); }

  static packed_scales of(const std::uint8_t (&scale)[8], const std::uint8_t (&min)[8]) {
    packed_scales packed;
    for (std::size_t g = 0; g < 4; ++g) {
      packed.bytes[g] = static_cast<std::uint8_t>(scale[g] | (scale[g + 4] >> 4 << 6));
      packed.bytes[g + 4] = static_cast<std::uint8_t>(min[g] | (min[g + 4] >> 4 << 6));
      packed.bytes[g + 8] = static_cast<std::uint8_t>((scale[g + 4] & 15) | (min[g + 4] & 15) << 4);
    }
    return packed;
  }
};

}  // namespace detail

MOTE_END_NAMESPACE
