// Activations in int8 blocks of 32, as products with integer formats read them: made once for all matrices of a layer.
//
//   d = max |x| / 127,  q = round(x · 127 / max |x|), ties to even      x ≈ d · q
//
// A block below 2^-100 counts as zero; infinity and NaN make d infinite or NaN, and so every product with it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../core/config.hpp"
#include "../core/types.hpp"

MOTE_BEGIN_NAMESPACE

struct alignas(64) activation_block {
  static constexpr std::size_t size = 32;

  std::int8_t q[size];
  float d;
  std::int32_t minus_sum;          // -Σ q
  std::int32_t minus_half_sum[2];  // of 16 each
  float sum;                       // d · Σ q
  float half_sum[2];

  // Blocks for a row of n; the last one is padded with zeros.
  static constexpr std::size_t count(std::size_t n) { return (n + size - 1) / size; }

  // Sets d for the largest magnitude, given as the bits of a float32; returns what to multiply x by.
  float set_scale(std::int32_t magnitude) {
    const float amax = detail::bit_cast<float>(magnitude);
    const bool zero = amax < 0x1p-100f;
    d = zero ? 0.0f : amax / 127.0f;
    return zero ? 0.0f : 127.0f / amax;
  }
  // The sums of the codes of each half.
  void set_sums(std::int32_t first, std::int32_t second) {
    minus_sum = -(first + second);
    minus_half_sum[0] = -first;
    minus_half_sum[1] = -second;
    sum = d * static_cast<float>(first + second);
    half_sum[0] = d * static_cast<float>(first);
    half_sum[1] = d * static_cast<float>(second);
  }

  // The sums that groups of 16 or 32 weights need; `half` is 0 for 32.
  template <std::size_t Group>
  std::int32_t minus(std::size_t half) const {
    return Group == size ? minus_sum : minus_half_sum[half];
  }
  template <std::size_t Group>
  float scaled_sum(std::size_t half) const {
    return Group == size ? sum : half_sum[half];
  }
};

// x[n] to activation_block::count(n) blocks, in plain steps.
inline void quantize_activation_blocks(const float* x, std::size_t n, activation_block* blocks) {
  for (std::size_t begin = 0; begin < n; begin += activation_block::size) {
    activation_block& block = *blocks++;
    const std::size_t count = std::min(activation_block::size, n - begin);
    std::int32_t magnitude = 0;  // as integers, because NaN comes after infinity then
    for (std::size_t i = 0; i < count; ++i) {
      magnitude = std::max(magnitude, detail::bit_cast<std::int32_t>(std::fabs(x[begin + i])));
    }
    const float inverse = block.set_scale(magnitude);
    std::int32_t sums[2] = {};
    for (std::size_t i = 0; i < activation_block::size; ++i) {
      const float scaled = i < count ? x[begin + i] * inverse : 0.0f;
      block.q[i] = std::fabs(scaled) <= 127.5f ? static_cast<std::int8_t>(std::nearbyint(scaled)) : std::int8_t{0};
      sums[i / 16] += block.q[i];
    }
    block.set_sums(sums[0], sums[1]);
  }
}

MOTE_END_NAMESPACE
