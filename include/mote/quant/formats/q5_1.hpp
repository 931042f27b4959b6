// GGUF Q5_1: 32 integers in [0, 31], their scale and the smallest number, 24 bytes. value = d · code + m.
//
//   encode: m = the smallest, d = (the largest - m) / 31, code = min(31, ⌊(x - m) / d + 0.5⌋), with d and m still in float32
#pragma once

#include "../format.hpp"
#include "bits.hpp"

MOTE_BEGIN_NAMESPACE

struct q5_1 {
  static constexpr std::string_view name = "q5_1";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 5;
  using scale_type = f16;

  f16 d, m;
  std::uint8_t high[4];  // bit i: bit 4 of element i
  std::uint8_t q[16];    // byte i: element i low, element i + 16 high

  std::uint8_t code(std::size_t i) const {
    const int top = high[i / 8] >> (i % 8) & 1;
    return static_cast<std::uint8_t>(detail::nibble(q, i) | top << 4);
  }
  std::uint32_t four_codes(std::size_t i) const {
    return detail::four_nibbles(q, i) | detail::four_bits(high[i / 8] >> (i % 8)) << 4;
  }
  f16 scale(std::size_t) const { return d; }
  float min(std::size_t) const { return -static_cast<float>(m); }

  static q5_1 encode(const float* x) {
    q5_1 block{};
    std::uint8_t codes[block_size];
    detail::codes_from_smallest(x, 31.0f, block.d, block.m, codes);
    for (std::size_t i = 0; i < block_size; ++i) {
      block.high[i / 8] |= static_cast<std::uint8_t>(codes[i] >> 4 << (i % 8));
      codes[i] &= 15u;
    }
    detail::pack_nibbles(codes, block.q);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(format_with_min<q5_1> && sizeof(q5_1) == 24);

MOTE_END_NAMESPACE
