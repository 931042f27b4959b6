// MXFP4 as GGUF stores it: 32 e2m1 numbers and a power of two, 17 bytes. value = e2m1(code) · 2^(e - 127).
//
//   encode: e - 127 = ⌊log2 amax⌋ - 2, at least -127; the nearest code, the first of two as near
//
// The safetensors layout of the same numbers is in quant/microscaling.hpp. Source: OCP Microscaling Formats v1.0.
#pragma once

#include "../format.hpp"
#include "bits.hpp"

MOTE_BEGIN_NAMESPACE

struct mxfp4 {
  static constexpr std::string_view name = "mxfp4";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 4;
  // Twice the e2m1 number, so that it is an integer.
  static constexpr std::array<std::int8_t, 16> code_values = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  static constexpr float unit = 0.5f;
  using scale_type = f8_e8m0;

  f8_e8m0 e;
  std::uint8_t q[16];  // byte i: element i low, element i + 16 high

  std::uint8_t code(std::size_t i) const { return detail::nibble(q, i); }
  std::uint32_t four_codes(std::size_t i) const { return detail::four_nibbles(q, i); }
  f8_e8m0 scale(std::size_t) const { return e; }

  static mxfp4 encode(const float* x) {
    mxfp4 block;
    const std::uint8_t exponent = f8_e8m0(detail::largest_magnitude(x, block_size)).bits;
    block.e = f8_e8m0::from_bits(exponent > 2 ? static_cast<std::uint8_t>(exponent - 2) : std::uint8_t{0});
    std::uint8_t codes[block_size];
    detail::nearest_e2m1(x, group_scale(block, 0), codes);
    detail::pack_nibbles(codes, block.q);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(integer_format<mxfp4> && sizeof(mxfp4) == 17);

MOTE_END_NAMESPACE
