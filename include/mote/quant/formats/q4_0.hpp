// GGUF Q4_0: 32 integers in [-8, 7] and their scale, 18 bytes. value = d · (code - 8).
//
//   encode: d = (the value of largest magnitude) / -8, code = min(15, ⌊x / d + 8.5⌋), with d still in float32
#pragma once

#include "../format.hpp"
#include "bits.hpp"

MOTE_BEGIN_NAMESPACE

struct q4_0 {
  static constexpr std::string_view name = "q4_0";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 4;
  static constexpr std::array<std::int8_t, 16> code_values = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
  using scale_type = f16;

  f16 d;
  std::uint8_t q[16];  // byte i: element i low, element i + 16 high

  std::uint8_t code(std::size_t i) const { return detail::nibble(q, i); }
  std::uint32_t four_codes(std::size_t i) const { return detail::four_nibbles(q, i); }
  f16 scale(std::size_t) const { return d; }

  static q4_0 encode(const float* x) {
    const float scale =
        std::clamp(detail::largest_element(x, block_size) / -8.0f, -detail::largest_f16, detail::largest_f16);
    float scaled[block_size];
    detail::rounded_products(x, detail::finite_inverse(scale), scaled);
    std::uint8_t codes[block_size];
    for (std::size_t i = 0; i < block_size; ++i) {
      codes[i] = static_cast<std::uint8_t>(std::clamp(scaled[i] + 8.5f, 0.0f, 15.0f));
    }
    q4_0 block;
    block.d = f16(scale);
    detail::pack_nibbles(codes, block.q);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(integer_format<q4_0> && sizeof(q4_0) == 18);

MOTE_END_NAMESPACE
