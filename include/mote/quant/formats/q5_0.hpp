// GGUF Q5_0: 32 integers in [-16, 15] and their scale, 22 bytes. value = d · (code - 16).
//
//   encode: d = (the value of largest magnitude) / -16, code = min(31, ⌊x / d + 16.5⌋), with d still in float32
#pragma once

#include "../format.hpp"
#include "bits.hpp"

MOTE_BEGIN_NAMESPACE

struct q5_0 {
  static constexpr std::string_view name = "q5_0";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 5;
  using scale_type = f16;

  f16 d;
  std::uint8_t high[4];  // bit i: bit 4 of element i
  std::uint8_t q[16];    // byte i: element i low, element i + 16 high

  std::int8_t code(std::size_t i) const {
    const int top = high[i / 8] >> (i % 8) & 1;
    return static_cast<std::int8_t>((detail::nibble(q, i) | (top << 4)) - 16);
  }
  std::uint32_t four_codes(std::size_t i) const {
    const std::uint32_t top = detail::four_bits(high[i / 8] >> (i % 8));
    const std::uint32_t below = (detail::four_nibbles(q, i) | top << 4) ^ 0x10101010u;
    return below | (below & 0x10101010u) * 14u;  // - 16
  }
  f16 scale(std::size_t) const { return d; }

  static q5_0 encode(const float* x) {
    const float scale =
        std::clamp(detail::largest_element(x, block_size) / -16.0f, -detail::largest_f16, detail::largest_f16);
    float scaled[block_size];
    detail::rounded_products(x, detail::finite_inverse(scale), scaled);
    q5_0 block{};
    block.d = f16(scale);
    std::uint8_t low[block_size];
    for (std::size_t i = 0; i < block_size; ++i) {
      const auto code = static_cast<unsigned>(std::clamp(scaled[i] + 16.5f, 0.0f, 31.0f));
      low[i] = static_cast<std::uint8_t>(code & 15u);
      block.high[i / 8] |= static_cast<std::uint8_t>((code >> 4) << (i % 8));
    }
    detail::pack_nibbles(low, block.q);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(integer_format<q5_0> && sizeof(q5_0) == 22);

MOTE_END_NAMESPACE
