// GGUF Q2_K: 256 elements in 16 groups of 16, each with a four-bit scale and minimum, 84 bytes.
// value = d · scale[group] · code - dmin · min[group].
//
//   encode: scale and min of least squared error for each group; then, with d and dmin rounded, the best of the integer
//   scales and minima nearby; then d and dmin of least squared error for those integers
#pragma once

#include "../format.hpp"
#include "search_two_level_min.hpp"

MOTE_BEGIN_NAMESPACE

struct q2_k {
  static constexpr std::string_view name = "q2_k";
  static constexpr std::size_t block_size = 256, group_size = 16;
  static constexpr int code_bits = 2;
  static constexpr std::array<std::int8_t, 16> code_values = {0, 1, 2, 3};
  using scale_type = float;

  std::uint8_t scales[16];  // of each group scale low, min high
  detail::packed_runs<2> q;
  f16 d, dmin;

  std::uint8_t code(std::size_t i) const { return static_cast<std::uint8_t>(q.get(i)); }
  std::uint32_t four_codes(std::size_t i) const { return q.four(i); }
  f16 super_scale() const { return d; }
  f16 super_min() const { return dmin; }
  int sub_scale(std::size_t g) const { return scales[g] & 15; }
  int sub_min(std::size_t g) const { return scales[g] >> 4; }
  float scale(std::size_t g) const { return static_cast<float>(d) * static_cast<float>(sub_scale(g)); }
  float min(std::size_t g) const { return static_cast<float>(dmin) * static_cast<float>(sub_min(g)); }

  static q2_k encode(const float* x) {
    const detail::two_level_min_fit<16, 16, 3, 15> fit(x);
    q2_k block{};
    block.d = fit.d;
    block.dmin = fit.dmin;
    for (std::size_t g = 0; g < 16; ++g) {
      block.scales[g] = static_cast<std::uint8_t>(fit.scale[g] | fit.min[g] << 4);
    }
    for (std::size_t i = 0; i < block_size; ++i) block.q.set(i, fit.codes[i]);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(format_with_min<q2_k> && two_level_format<q2_k> && sizeof(q2_k) == 84);

MOTE_END_NAMESPACE
