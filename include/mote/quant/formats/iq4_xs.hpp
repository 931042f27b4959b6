// GGUF IQ4_XS: 256 numbers of IQ4_NL's table in 8 groups of 32, each with a six-bit scale, 136 bytes.
// value = d · scale[group] · T[code].
//
//   encode: the scale of least squared error for each group; then, with d rounded, the best of the integer scales nearby;
//   then d of least squared error for those integers
#pragma once

#include "../format.hpp"
#include "iq4_nl.hpp"
#include "search_two_level.hpp"

MOTE_BEGIN_NAMESPACE

struct iq4_xs {
  static constexpr std::string_view name = "iq4_xs";
  static constexpr std::size_t block_size = 256, group_size = 32;
  static constexpr int code_bits = 4;
  static constexpr std::array<std::int8_t, 16> code_values = iq4_nl::code_values;
  using scale_type = float;

  f16 d;
  std::uint8_t scales_high[2];  // two bits of each group's scale + 32, from the lowest up
  std::uint8_t scales_low[4];   // four bits: byte i: group 2 i low, group 2 i + 1 high
  detail::packed_runs<4, 16> q;

  std::uint8_t code(std::size_t i) const { return static_cast<std::uint8_t>(q.get(i)); }
  std::uint32_t four_codes(std::size_t i) const { return q.four(i); }
  f16 super_scale() const { return d; }
  int sub_scale(std::size_t g) const {
    return ((scales_low[g / 2] >> (g % 2 * 4) & 15) | (scales_high[g / 4] >> (g % 4 * 2) & 3) << 4) - 32;
  }
  float scale(std::size_t g) const { return static_cast<float>(d) * static_cast<float>(sub_scale(g)); }

  static iq4_xs encode(const float* x) {
    const detail::two_level_fit<8, 32, 31, detail::iq4_codes> fit(x);
    iq4_xs block{};
    block.d = fit.d;
    for (std::size_t g = 0; g < 8; ++g) {
      const auto scale = static_cast<unsigned>(fit.scale[g] + 32);
      block.scales_low[g / 2] |= static_cast<std::uint8_t>((scale & 15u) << (g % 2 * 4));
      block.scales_high[g / 4] |= static_cast<std::uint8_t>(scale >> 4 << (g % 4 * 2));
    }
    for (std::size_t i = 0; i < block_size; ++i) block.q.set(i, static_cast<unsigned>(fit.codes[i]));
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(two_level_format<iq4_xs> && sizeof(iq4_xs) == 136);

MOTE_END_NAMESPACE
