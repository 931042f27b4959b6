// MXFP8: 32 e4m3 numbers and a power of two, 33 bytes. value = e4m3(code) · 2^(e - 127).
//
//   encode: 2^(e - 127) is the least power of two not below amax / 448, so that nothing saturates; codes to nearest,
//           ties to even
//
// For caches: the dynamic range of a float in a byte. Source: OCP Microscaling Formats v1.0.
#pragma once

#include <limits>

#include "../format.hpp"
#include "bits.hpp"

MOTE_BEGIN_NAMESPACE

struct mxfp8 {
  static constexpr std::string_view name = "mxfp8";
  static constexpr std::size_t block_size = 32;

  f8_e8m0 e;
  f8_e4m3 q[block_size];

  static mxfp8 encode(const float* x) {
    mxfp8 block;
    block.e = f8_e8m0(detail::largest_magnitude(x, block_size) / 448.0f, exponent_rounding::ceil);
    const float inverse = 1.0f / static_cast<float>(block.e);
    for (std::size_t i = 0; i < block_size; ++i) block.q[i].bits = code(x[i] * inverse);
    return block;
  }

  // e4m3's exponent and mantissa in float32's places are the number times 2^-120.
  void decode(float* y) const {
    const float scale = static_cast<float>(e);
    for (std::size_t i = 0; i < block_size; ++i) {
      const std::uint32_t code = q[i].bits, magnitude = code & 0x7Fu;
      const float value = detail::bit_cast<float>((code & 0x80u) << 24 | magnitude << 20) * 0x1p120f;
      y[i] = (magnitude == 0x7Fu ? std::numeric_limits<float>::quiet_NaN() : value) * scale;
    }
  }

 private:
  // f8_e4m3(v).bits for |v| <= 448, without branches, that loops become vectors: normal numbers round in their place,
  // subnormal ones as multiples of 2^-9, which is the last place of what is added to them.
  static std::uint8_t code(float v) {
    const std::uint32_t bits = detail::bit_cast<std::uint32_t>(v), magnitude = bits & 0x7FFFFFFFu;
    const std::uint32_t normal = ((magnitude + 0x7FFFFu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
    const std::uint32_t subnormal =
        detail::bit_cast<std::uint32_t>(detail::bit_cast<float>(magnitude) + 0x1.8p14f) - 0x46C00000u;
    const std::uint32_t rounded = magnitude < 0x3C800000u ? subnormal : normal;
    return static_cast<std::uint8_t>((bits >> 24 & 0x80u) | rounded);
  }
};
static_assert(block_format<mxfp8> && sizeof(mxfp8) == 33);

MOTE_END_NAMESPACE
