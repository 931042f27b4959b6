// NVFP4 as GGUF stores it: 64 e2m1 numbers in 4 groups of 16, each with an unsigned e4m3 scale, 36 bytes.
// value = e2m1(code) · e4m3(scale); scale codes 0 and 0x7F mean 0.
//
//   encode: for each group the scale of least squared error around amax / 6; the nearest code, the first of two as near
//
// The safetensors layout, with a scale of the whole tensor, is in quant/microscaling.hpp. Source: NVIDIA's NVFP4.
#pragma once

#include "../format.hpp"
#include "mxfp4.hpp"
#include "search.hpp"

MOTE_BEGIN_NAMESPACE

struct nvfp4 {
  static constexpr std::string_view name = "nvfp4";
  static constexpr std::size_t block_size = 64, group_size = 16;
  static constexpr int code_bits = 4;
  static constexpr bool has_tensor_scale = true;
  static constexpr std::array<std::int8_t, 16> code_values = mxfp4::code_values;  // twice e2m1
  using scale_type = f16;

  std::uint8_t scales[4];
  std::uint8_t q[32];  // byte 8 g + i: element 16 g + i low, element 16 g + 8 + i high

  std::uint8_t code(std::size_t i) const {
    const unsigned byte = q[i / 16 * 8 + i % 8];
    return static_cast<std::uint8_t>(i / 8 % 2 == 0 ? byte & 15u : byte >> 4);
  }
  std::uint32_t four_codes(std::size_t i) const {
    return detail::four_bytes(q + i / 16 * 8 + i % 8) >> (i / 8 % 2 * 4) & 0x0F0F0F0Fu;
  }
  f16 scale(std::size_t g) const { return f16(half_e4m3(scales[g])); }

  // The scale code of a group.
  static std::uint8_t fit(const float* x) {
    const int nearest = f8_e4m3(std::min(detail::largest_magnitude(x, group_size) / 6.0f, 448.0f)).bits;
    float best = -1.0f;
    std::uint8_t scale = 0;
    for (int code = std::max(nearest - 4, 0); code <= std::min(nearest + 4, 0x7E); ++code) {
      const float unit = half_e4m3(static_cast<std::uint8_t>(code));
      const detail::table_round<15> round{detail::e2m1_numbers, detail::finite_inverse(unit)};
      const float error = detail::error_of<group_size>(x, unit, 0.0f, round).error;
      if (best >= 0.0f && error >= best) continue;
      best = error;
      scale = static_cast<std::uint8_t>(code);
    }
    return scale;
  }

  static nvfp4 encode(const float* values) {
    constexpr float limit = 1e15f;  // whose squared errors float32 holds
    nvfp4 block{};
    for (std::size_t g = 0; g < 4; ++g) {
      float x[group_size];
      for (std::size_t i = 0; i < group_size; ++i) x[i] = std::clamp(values[g * group_size + i], -limit, limit);
      block.scales[g] = fit(x);
      std::uint8_t codes[group_size];
      detail::nearest_e2m1(x, group_scale(block, g), codes);
      for (std::size_t i = 0; i < 8; ++i) block.q[g * 8 + i] = static_cast<std::uint8_t>(codes[i] | codes[i + 8] << 4);
    }
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }

 private:
  static float half_e4m3(std::uint8_t code) {
    return code == 0x7F ? 0.0f : 0.5f * detail::expand_magnitude<3, 7>(code & 0x7Fu);
  }
};
static_assert(integer_format<nvfp4> && sizeof(nvfp4) == 36);

MOTE_END_NAMESPACE
