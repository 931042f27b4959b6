// GGUF Q8_0: 32 int8 and their scale, 34 bytes. value = d · q.
//
//   encode: d = amax / 127, q = round(x / d), halves away from zero, with d still in float32
#pragma once

#include "../format.hpp"
#include "bits.hpp"

MOTE_BEGIN_NAMESPACE

struct q8_0 {
  static constexpr std::string_view name = "q8_0";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 8;
  using scale_type = f16;

  f16 d;
  std::int8_t q[32];

  std::int8_t code(std::size_t i) const { return q[i]; }
  std::uint32_t four_codes(std::size_t i) const { return detail::four_bytes(q + i); }
  f16 scale(std::size_t) const { return d; }

  static q8_0 encode(const float* x) {
    const float scale = std::min(detail::largest_magnitude(x, block_size) / 127.0f, detail::largest_f16);
    float scaled[block_size];
    detail::rounded_products(x, detail::finite_inverse(scale), scaled);
    q8_0 block;
    block.d = f16(scale);
    for (std::size_t i = 0; i < block_size; ++i) {
      block.q[i] = static_cast<std::int8_t>(detail::round_half_away(std::clamp(scaled[i], -127.0f, 127.0f)));
    }
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(integer_format<q8_0> && sizeof(q8_0) == 34);

MOTE_END_NAMESPACE
