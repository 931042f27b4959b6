// Element types narrower than float32. Each holds its published bit pattern; conversion to float is exact, conversion
// from float rounds to nearest, ties to even, subnormals included.
//
//   type      sign/exponent/mantissa  bias  largest   special values
//   bf16      1/8/7                   127   3.39e38   IEEE
//   f16       1/5/10                  15    65504     IEEE
//   f8_e4m3   1/4/3                   7     448       no infinity, NaN is 0x7F and 0xFF ("e4m3fn")
//   f8_e5m2   1/5/2                   15    57344     IEEE-like
//   f8_e8m0   0/8/0                   127   2^127     a power of two; 255 is NaN; no zero, no sign
//   f4_e2m1   1/2/1                   1     6         none
//
// Source: OCP Microscaling Formats (MX) v1.0 and OCP 8-bit Floating Point v1.0 specifications; IEEE 754.
#pragma once

#include <bit>
#include <cstdint>

#include "config.hpp"

MOTE_BEGIN_NAMESPACE

static_assert(std::endian::native == std::endian::little, "mote: files and packed weights are read as little-endian");

namespace detail {

// std::bit_cast, which CUDA kernels cannot call.
template <class To, class From>
MOTE_HD constexpr To bit_cast(From x) {
  return __builtin_bit_cast(To, x);
}

// |x| rounded to a format with `MantissaBits` and `Bias`, as the unsigned code exponent:mantissa. The code keeps
// counting past the format's largest value: the caller compares with its own largest code.
template <int MantissaBits, int Bias>
MOTE_HD constexpr std::uint32_t round_magnitude(std::uint32_t magnitude_bits) {
  const int exponent = static_cast<int>(magnitude_bits >> 23);
  if (exponent == 0) {
    if constexpr (Bias < 127) return 0;  // a float32 subnormal is below half of any smaller format's last place
  }
  const std::uint32_t mantissa = (magnitude_bits & 0x7FFFFFu) | (exponent == 0 ? 0u : 0x800000u);
  const int normal_exponent = (exponent == 0 ? 1 : exponent) - 127 + Bias;
  const int shift = 23 - MantissaBits + (normal_exponent < 1 ? 1 - normal_exponent : 0);
  if (shift > 24) return 0;
  const std::uint32_t kept = mantissa >> shift;
  const std::uint32_t rest = mantissa & ((1u << shift) - 1u);
  const std::uint32_t half = 1u << (shift - 1);
  const std::uint32_t rounded = kept + ((rest > half || (rest == half && (kept & 1u) != 0)) ? 1u : 0u);
  const std::uint32_t base = normal_exponent < 1 ? 0u : static_cast<std::uint32_t>(normal_exponent - 1) << MantissaBits;
  return base + rounded;
}

// The value of an unsigned code exponent:mantissa of a finite number.
template <int MantissaBits, int Bias>
MOTE_HD constexpr float expand_magnitude(std::uint32_t code) {
  std::uint32_t mantissa = code & ((1u << MantissaBits) - 1u);
  int exponent = static_cast<int>(code >> MantissaBits);
  if (exponent == 0) {
    if (mantissa == 0) return 0.0f;
    exponent = 1;
    while ((mantissa >> MantissaBits) == 0) {
      mantissa <<= 1;
      --exponent;
    }
    mantissa &= (1u << MantissaBits) - 1u;
  }
  const std::uint32_t bits =
      (static_cast<std::uint32_t>(exponent + 127 - Bias) << 23) | (mantissa << (23 - MantissaBits));
  return detail::bit_cast<float>(bits);
}

inline constexpr std::uint32_t float_infinity_bits = 0x7F800000u;
inline constexpr std::uint32_t float_nan_bits = 0x7FC00000u;

}  // namespace detail

struct bf16 {
  std::uint16_t bits = 0;

  bf16() = default;
  MOTE_HD constexpr explicit bf16(float x) {
    const std::uint32_t u = detail::bit_cast<std::uint32_t>(x);
    if ((u & 0x7FFFFFFFu) > detail::float_infinity_bits) {
      bits = static_cast<std::uint16_t>((u >> 16) | 0x40u);
    } else {
      bits = static_cast<std::uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
    }
  }
  MOTE_HD constexpr explicit operator float() const {
    return detail::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
  MOTE_HD static constexpr bf16 from_bits(std::uint16_t b) {
    bf16 y;
    y.bits = b;
    return y;
  }
};

struct f16 {
  std::uint16_t bits = 0;

  f16() = default;
  MOTE_HD constexpr explicit f16(float x) {
    const std::uint32_t u = detail::bit_cast<std::uint32_t>(x), magnitude = u & 0x7FFFFFFFu;
    std::uint32_t code = 0x7E00u;
    if (magnitude <= detail::float_infinity_bits) {
      code = detail::round_magnitude<10, 15>(magnitude);
      if (code > 0x7C00u) code = 0x7C00u;
    }
    bits = static_cast<std::uint16_t>(((u >> 16) & 0x8000u) | code);
  }
  MOTE_HD constexpr explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16, code = bits & 0x7FFFu;
    if (code >= 0x7C00u) {
      return detail::bit_cast<float>(sign | detail::float_infinity_bits | ((code & 0x3FFu) << 13));
    }
    return detail::bit_cast<float>(sign | detail::bit_cast<std::uint32_t>(detail::expand_magnitude<10, 15>(code)));
  }
  MOTE_HD static constexpr f16 from_bits(std::uint16_t b) {
    f16 y;
    y.bits = b;
    return y;
  }
};

// What becomes of a finite value beyond the largest one, and of infinity: the largest value, or NaN (infinity in e5m2).
enum class overflow { saturate, to_special };

struct f8_e4m3 {
  std::uint8_t bits = 0;

  f8_e4m3() = default;
  MOTE_HD constexpr explicit f8_e4m3(float x, overflow mode = overflow::saturate) {
    const std::uint32_t u = detail::bit_cast<std::uint32_t>(x), magnitude = u & 0x7FFFFFFFu;
    std::uint32_t code = 0x7Fu;
    if (magnitude <= detail::float_infinity_bits) {
      code = detail::round_magnitude<3, 7>(magnitude);
      if (code > 0x7Eu) code = mode == overflow::saturate ? 0x7Eu : 0x7Fu;
    }
    bits = static_cast<std::uint8_t>(((u >> 24) & 0x80u) | code);
  }
  MOTE_HD constexpr explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x80u) << 24, code = bits & 0x7Fu;
    if (code == 0x7Fu) return detail::bit_cast<float>(sign | detail::float_nan_bits);
    return detail::bit_cast<float>(sign | detail::bit_cast<std::uint32_t>(detail::expand_magnitude<3, 7>(code)));
  }
  MOTE_HD static constexpr f8_e4m3 from_bits(std::uint8_t b) {
    f8_e4m3 y;
    y.bits = b;
    return y;
  }
};

struct f8_e5m2 {
  std::uint8_t bits = 0;

  f8_e5m2() = default;
  MOTE_HD constexpr explicit f8_e5m2(float x, overflow mode = overflow::saturate) {
    const std::uint32_t u = detail::bit_cast<std::uint32_t>(x), magnitude = u & 0x7FFFFFFFu;
    std::uint32_t code = 0x7Eu;
    if (magnitude <= detail::float_infinity_bits) {
      code = detail::round_magnitude<2, 15>(magnitude);
      if (code > 0x7Bu) code = mode == overflow::saturate ? 0x7Bu : 0x7Cu;
    }
    bits = static_cast<std::uint8_t>(((u >> 24) & 0x80u) | code);
  }
  MOTE_HD constexpr explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x80u) << 24, code = bits & 0x7Fu;
    if (code >= 0x7Cu) {
      return detail::bit_cast<float>(sign | detail::float_infinity_bits | ((code & 3u) << 21));
    }
    return detail::bit_cast<float>(sign | detail::bit_cast<std::uint32_t>(detail::expand_magnitude<2, 15>(code)));
  }
  MOTE_HD static constexpr f8_e5m2 from_bits(std::uint8_t b) {
    f8_e5m2 y;
    y.bits = b;
    return y;
  }
};

// How a positive float becomes a power of two: down (the MX rule) or up (a scale that never overflows).
enum class exponent_rounding { floor, ceil };

struct f8_e8m0 {
  std::uint8_t bits = 0;

  f8_e8m0() = default;
  MOTE_HD constexpr explicit f8_e8m0(float x, exponent_rounding mode = exponent_rounding::floor) {
    const std::uint32_t u = detail::bit_cast<std::uint32_t>(x), magnitude = u & 0x7FFFFFFFu;
    if (magnitude > detail::float_infinity_bits) {
      bits = 255;
      return;
    }
    std::uint32_t code = magnitude >> 23;
    const std::uint32_t mantissa = magnitude & 0x7FFFFFu;
    if (mode == exponent_rounding::ceil) {
      if (code == 0) {
        code = mantissa > 0x400000u ? 1u : 0u;  // code 0 is 2^-127, a float32 subnormal
      } else if (mantissa != 0) {
        ++code;
      }
    }
    bits = static_cast<std::uint8_t>(code > 254u ? 254u : code);
  }
  MOTE_HD constexpr explicit operator float() const {
    if (bits == 255) return detail::bit_cast<float>(detail::float_nan_bits);
    return detail::bit_cast<float>(bits == 0 ? 0x400000u : static_cast<std::uint32_t>(bits) << 23);
  }
  MOTE_HD static constexpr f8_e8m0 from_bits(std::uint8_t b) {
    f8_e8m0 y;
    y.bits = b;
    return y;
  }
};

// One code in the low four bits; packing two into a byte is the business of the block formats.
struct f4_e2m1 {
  std::uint8_t bits = 0;

  f4_e2m1() = default;
  MOTE_HD constexpr explicit f4_e2m1(float x) {
    const std::uint32_t u = detail::bit_cast<std::uint32_t>(x), magnitude = u & 0x7FFFFFFFu;
    std::uint32_t code = 7u;  // NaN has no code: the largest value by convention
    if (magnitude <= detail::float_infinity_bits) {
      code = detail::round_magnitude<1, 1>(magnitude);
      if (code > 7u) code = 7u;
      bits = static_cast<std::uint8_t>((u >> 28) & 0x8u);
    }
    bits = static_cast<std::uint8_t>(bits | code);
  }
  MOTE_HD constexpr explicit operator float() const {
    const float magnitude = detail::expand_magnitude<1, 1>(bits & 7u);
    return (bits & 8u) != 0 ? -magnitude : magnitude;
  }
  MOTE_HD static constexpr f4_e2m1 from_bits(std::uint8_t b) {
    f4_e2m1 y;
    y.bits = b;
    return y;
  }
};

MOTE_END_NAMESPACE
