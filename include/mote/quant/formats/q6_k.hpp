// GGUF Q6_K: 256 integers in [-32, 31] in 16 groups of 16, each with an int8 scale, 210 bytes.
// value = d · scale[group] · q.
//
//   encode: the scale of least squared error for each group; then, with d rounded, the best of the integer scales nearby;
//   then d of least squared error for those integers
#pragma once

#include "../format.hpp"
#include "search_two_level.hpp"

MOTE_BEGIN_NAMESPACE

struct q6_k {
  static constexpr std::string_view name = "q6_k";
  static constexpr std::size_t block_size = 256, group_size = 16;
  static constexpr int code_bits = 6;
  using scale_type = float;

  detail::packed_runs<4, 64> low;
  detail::packed_runs<2> high;  // the two bits above
  std::int8_t scales[16];
  f16 d;

  std::int8_t code(std::size_t i) const {
    return static_cast<std::int8_t>(static_cast<int>(low.get(i) | high.get(i) << 4) - 32);
  }
  std::uint32_t four_codes(std::size_t i) const {
    const std::uint32_t below = (low.four(i) | high.four(i) << 4) ^ 0x20202020u;
    return below | (below & 0x20202020u) * 6u;  // - 32
  }
  f16 super_scale() const { return d; }
  int sub_scale(std::size_t g) const { return scales[g]; }
  float scale(std::size_t g) const { return static_cast<float>(d) * static_cast<float>(scales[g]); }

  static q6_k encode(const float* x) {
    const detail::two_level_fit<16, 16, 127, detail::integer_codes<31>> fit(x);
    q6_k block{};
    block.d = fit.d;
    std::copy(fit.scale, fit.scale + 16, block.scales);
    for (std::size_t i = 0; i < block_size; ++i) {
      const auto code = static_cast<unsigned>(fit.codes[i] + 32);
      block.low.set(i, code & 15u);
      block.high.set(i, code >> 4);
    }
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(two_level_format<q6_k> && sizeof(q6_k) == 210);

MOTE_END_NAMESPACE
