// GGUF Q5_K: 256 elements in 8 groups of 32, each with a six-bit scale and minimum, 176 bytes.
// value = d · scale[group] · code - dmin · min[group].
//
//   encode: scale and min of least squared error for each group; then, with d and dmin rounded, the best of the integer
//   scales and minima nearby; then d and dmin of least squared error for those integers
#pragma once

#include "../format.hpp"
#include "search_two_level_min.hpp"

MOTE_BEGIN_NAMESPACE

struct q5_k {
  static constexpr std::string_view name = "q5_k";
  static constexpr std::size_t block_size = 256, group_size = 32;
  static constexpr int code_bits = 5;
  using scale_type = float;

  f16 d, dmin;
  detail::packed_scales scales;
  detail::packed_runs<1> high;  // bit 4 of the codes
  detail::packed_runs<4> low;

  std::uint8_t code(std::size_t i) const { return static_cast<std::uint8_t>(low.get(i) | high.get(i) << 4); }
  std::uint32_t four_codes(std::size_t i) const { return low.four(i) | high.four(i) << 4; }
  f16 super_scale() const { return d; }
  f16 super_min() const { return dmin; }
  int sub_scale(std::size_t g) const { return scales.scale(g); }
  int sub_min(std::size_t g) const { return scales.min(g); }
  float scale(std::size_t g) const { return static_cast<float>(d) * static_cast<float>(sub_scale(g)); }
  float min(std::size_t g) const { return static_cast<float>(dmin) * static_cast<float>(sub_min(g)); }

  static q5_k encode(const float* x) {
    const detail::two_level_min_fit<8, 32, 31, 63> fit(x);
    q5_k block{};
    block.d = fit.d;
    block.dmin = fit.dmin;
    block.scales = detail::packed_scales::of(fit.scale, fit.min);
    for (std::size_t i = 0; i < block_size; ++i) {
      block.low.set(i, fit.codes[i] & 15u);
      block.high.set(i, fit.codes[i] >> 4);
    }
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(format_with_min<q5_k> && two_level_format<q5_k> && sizeof(q5_k) == 176);

MOTE_END_NAMESPACE
