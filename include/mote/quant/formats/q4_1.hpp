// GGUF Q4_1: 32 integers in [0, 15], their scale and the smallest number, 20 bytes. value = d · code + m.
//
//   encode: m = the smallest, d = (the largest - m) / 15, code = min(15, ⌊(x - m) / d + 0.5⌋), with d and m still in float32
#pragma once

#include "../format.hpp"
#include "bits.hpp"

MOTE_BEGIN_NAMESPACE

struct q4_1 {
  static constexpr std::string_view name = "q4_1";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 4;
  static constexpr std::array<std::int8_t, 16> code_values = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  using scale_type = f16;

  f16 d, m;
  std::uint8_t q[16];  // byte i: element i low, element i + 16 high

  std::uint8_t code(std::size_t i) const { return detail::nibble(q, i); }
  std::uint32_t four_codes(std::size_t i) const { return detail::four_nibbles(q, i); }
  f16 scale(std::size_t) const { return d; }
  float min(std::size_t) const { return -static_cast<float>(m); }

  static q4_1 encode(const float* x) {
    q4_1 block;
    std::uint8_t codes[block_size];
    detail::codes_from_smallest(x, 15.0f, block.d, block.m, codes);
    detail::pack_nibbles(codes, block.q);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(format_with_min<q4_1> && sizeof(q4_1) == 20);

MOTE_END_NAMESPACE
