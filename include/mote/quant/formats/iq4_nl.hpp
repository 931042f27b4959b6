// GGUF IQ4_NL: 32 numbers of a table that is denser near zero, and their scale, 18 bytes. value = d · T[code].
//
//   encode: the scale of least squared error among those that put the largest element at or near either end of T
#pragma once

#include "../format.hpp"
#include "search.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// T, for encoders.
struct iq4_codes {
  static constexpr std::array<std::int8_t, 16> values = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                         1,    13,   25,  38,  53,  69,  89,  113};
  static constexpr float largest = 127.0f;  // of the numbers' magnitudes
  // Of fit_scale.
  static constexpr std::array<float, 15> peaks = {-127, -123, -119, -115, -111, -107, -131, -135,
                                                  113,  109,  105,  101,  97,   117,  121};
  static table_round<16> round(float inverse) { return {values, inverse}; }
  static std::uint8_t nearest(float x) { return nearest_code(values, x); }
};

}  // namespace detail

struct iq4_nl {
  static constexpr std::string_view name = "iq4_nl";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 4;
  static constexpr std::array<std::int8_t, 16> code_values = detail::iq4_codes::values;
  using scale_type = f16;

  f16 d;
  std::uint8_t q[16];  // byte i: element i low, element i + 16 high

  std::uint8_t code(std::size_t i) const { return detail::nibble(q, i); }
  std::uint32_t four_codes(std::size_t i) const { return detail::four_nibbles(q, i); }
  f16 scale(std::size_t) const { return d; }

  static iq4_nl encode(const float* values) {
    using table = detail::iq4_codes;
    constexpr float limit = table::largest * detail::largest_f16;
    float x[block_size];
    for (std::size_t i = 0; i < block_size; ++i) x[i] = std::clamp(values[i], -limit, limit);
    iq4_nl block{};
    if (detail::largest_magnitude(x, block_size) >= detail::negligible) {
      const auto error = [&](f16 scale) {
        const float s = static_cast<float>(scale);
        return detail::error_of<block_size>(x, s, 0.0f, table::round(detail::finite_inverse(s))).error;
      };
      const f16 fitted = detail::saturated_f16(detail::fit_scale<block_size>(x, table::peaks, table::round));
      const f16 plain = detail::saturated_f16(detail::largest_element(x, block_size) / -table::largest);
      block.d = error(plain) < error(fitted) ? plain : fitted;
    }
    const float inverse = detail::finite_inverse(static_cast<float>(block.d));
    std::uint8_t codes[block_size];
    for (std::size_t i = 0; i < block_size; ++i) codes[i] = table::nearest(x[i] * inverse);
    detail::pack_nibbles(codes, block.q);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(integer_format<iq4_nl> && sizeof(iq4_nl) == 18);

MOTE_END_NAMESPACE
