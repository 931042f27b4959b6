// GGUF Q3_K: 256 integers in [-4, 3] in 16 groups of 16, each with a six-bit scale, 110 bytes.
// value = d · scale[group] · (code - 4).
//
//   encode: the scale of least squared error for each group; then, with d rounded, the best of the integer scales nearby;
//   then d of least squared error for those integers
#pragma once

#include "../format.hpp"
#include "search_two_level.hpp"

MOTE_BEGIN_NAMESPACE

struct q3_k {
  static constexpr std::string_view name = "q3_k";
  static constexpr std::size_t block_size = 256, group_size = 16;
  static constexpr int code_bits = 3;
  static constexpr std::array<std::int8_t, 16> code_values = {-4, -3, -2, -1, 0, 1, 2, 3};
  using scale_type = float;

  detail::packed_runs<1> high;  // bit 2 of the codes
  detail::packed_runs<2> low;
  // Of scale + 32: bytes 0-7: four bits of groups g (low) and g + 8 (high); bytes 8-11: from the lowest up, two bits each of
  // groups g, g + 4, g + 8, g + 12.
  std::uint8_t scales[12];
  f16 d;

  std::uint8_t code(std::size_t i) const { return static_cast<std::uint8_t>(low.get(i) | high.get(i) << 2); }
  std::uint32_t four_codes(std::size_t i) const { return low.four(i) | high.four(i) << 2; }
  f16 super_scale() const { return d; }
  int sub_scale(std::size_t g) const {
    return ((scales[g % 8] >> (g / 8 * 4) & 15) | (scales[8 + g % 4] >> (g / 4 * 2) & 3) << 4) - 32;
  }
  float scale(std::size_t g) const { return static_cast<float>(d) * static_cast<float>(sub_scale(g)); }

  static q3_k encode(const float* x) {
    const detail::two_level_fit<16, 16, 31, detail::integer_codes<3>> fit(x);
    q3_k block{};
    block.d = fit.d;
    for (std::size_t g = 0; g < 16; ++g) {
      const auto scale = static_cast<unsigned>(fit.scale[g] + 32);
      block.scales[g % 8] |= static_cast<std::uint8_t>((scale & 15u) << (g / 8 * 4));
      block.scales[8 + g % 4] |= static_cast<std::uint8_t>(scale >> 4 << (g / 4 * 2));
    }
    for (std::size_t i = 0; i < block_size; ++i) {
      const auto code = static_cast<unsigned>(fit.codes[i] + 4);
      block.low.set(i, code & 3u);
      block.high.set(i, code >> 2);
    }
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(two_level_format<q3_k> && sizeof(q3_k) == 110);

MOTE_END_NAMESPACE
