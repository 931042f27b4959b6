// GGUF Q4_K: 256 elements in 8 groups of 32, each with a six-bit scale and minimum, 144 bytes.
// value = d · scale[group] · code - dmin · min[group].
//
//   encode: scale and min of least squared error for each group; then, with d and dmin rounded, the best of the integer
//   scales and minima nearby; then d and dmin of least squared error for those integers
#pragma once

#include "../format.hpp"
#include "search_two_level_min.hpp"

MOTE_BEGIN_NAMESPACE

struct q4_k {
  static constexpr std::string_view name = "q4_k";
  static constexpr std::size_t block_size = 256, group_size = 32;
  static constexpr int code_bits = 4;
  static constexpr std::array<std::int8_t, 16> code_values = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  using scale_type = float;

  f16 d, dmin;
  detail::packed_scales scales;
  detail::packed_runs<4> q;

  std::uint8_t code(std::size_t i) const { return static_cast<std::uint8_t>(q.get(i)); }
  std::uint32_t four_codes(std::size_t i) const { return q.four(i); }
  f16 super_scale() const { return d; }
  f16 super_min() const { return dmin; }
  int sub_scale(std::size_t g) const { return scales.scale(g); }
  int sub_min(std::size_t g) const { return scales.min(g); }
  float scale(std::size_t g) const { return static_cast<float>(d) * static_cast<float>(sub_scale(g)); }
  float min(std::size_t g) const { return static_cast<float>(dmin) * static_cast<float>(sub_min(g)); }

  static q4_k encode(const float* x) {
    const detail::two_level_min_fit<8, 32, 15, 63> fit(x);
    q4_k block{};
    block.d = fit.d;
    block.dmin = fit.dmin;
    block.scales = detail::packed_scales::of(fit.scale, fit.min);
    for (std::size_t i = 0; i < block_size; ++i) block.q.set(i, fit.codes[i]);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(format_with_min<q4_k> && two_level_format<q4_k> && sizeof(q4_k) == 144);

MOTE_END_NAMESPACE
