// int4 quantization of groups of a row's elements, two codes a byte, the even element low.
//
//   symmetric   s = amax / 7,  q = clamp(round(x / s), -8, 7)                                x ≈ s q
//   asymmetric  s = (max - min) / 15 over a range that holds 0,  z = round(-min / s),
//               q = clamp(round(x / s) + z, 0, 15)                                           x ≈ s (q - z)
//
// Ties go to even; a zero group uses s = 1. Signed codes are two's complement.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

#include "../core/error.hpp"
#include "../core/view.hpp"
#include "int8.hpp"

MOTE_BEGIN_NAMESPACE

// The symmetric scale of a group of n values.
inline float int4_scale(const float* x, std::size_t n) {
  float amax = 0.0f;
  for (std::size_t i = 0; i < n; ++i) amax = std::fmax(amax, std::fabs(x[i]));
  return amax / 7.0f > 0.0f ? amax / 7.0f : 1.0f;
}
inline int int4_round(float x, float scale) {
  return static_cast<int>(std::fmin(std::fmax(std::nearbyint(x / scale), -8.0f), 7.0f));
}

// Two codes as a byte, and element i of such bytes.
inline std::uint8_t pack_int4(int even, int odd) { return static_cast<std::uint8_t>((even & 15) | (odd & 15) << 4); }
inline int uint4_code(const std::uint8_t* packed, std::size_t i) { return packed[i / 2] >> (i % 2 * 4) & 15; }
inline int int4_code(const std::uint8_t* packed, std::size_t i) { return (uint4_code(packed, i) ^ 8) - 8; }

namespace detail {

template <class Values, class Packed, class Scale>
void check_int4(std::string_view op, const Values& w, std::size_t group, const Packed& packed, const Scale& scale) {
  if (group == 0 || group % 2 != 0 || w.extent(1) % group != 0) {
    raise<shape_error>(concatenate({op, ": group: expected an even number that divides the ",
                                    std::to_string(w.extent(1)), " columns, got ", std::to_string(group)}));
  }
  check_view(op, "w", w, {w.extent(0), w.extent(1)});
  check_view(op, "packed", packed, {w.extent(0), w.extent(1) / 2});
  check_view(op, "scale", scale, {w.extent(0), w.extent(1) / group});
}

}  // namespace detail

// w [out, in] to packed [out, in / 2] and scale [out, in / group]. Throws shape_error unless `group` is even and divides
// the columns.
inline void quantize_int4(const view<const float, 2>& w, std::size_t group, const view<std::uint8_t, 2>& packed,
                          const view<float, 2>& scale) {
  detail::check_int4("quantize_int4", w, group, packed, scale);
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t begin = 0; begin < w.extent(1); begin += group) {
      const float* x = w.row(n) + begin;
      const float s = scale(n, begin / group) = int4_scale(x, group);
      for (std::size_t i = 0; i < group; i += 2) {
        packed(n, (begin + i) / 2) = pack_int4(int4_round(x[i], s), int4_round(x[i + 1], s));
      }
    }
  }
}

// The same with zero [out, in / group].
inline void quantize_uint4(const view<const float, 2>& w, std::size_t group, const view<std::uint8_t, 2>& packed,
                           const view<float, 2>& scale, const view<std::uint8_t, 2>& zero) {
  detail::check_int4("quantize_uint4", w, group, packed, scale);
  check_view("quantize_uint4", "zero", zero, {w.extent(0), w.extent(1) / group});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t begin = 0; begin < w.extent(1); begin += group) {
      const float* x = w.row(n) + begin;
      const asymmetric_range range(x, group, 15);
      scale(n, begin / group) = range.scale;
      zero(n, begin / group) = range.zero;
      for (std::size_t i = 0; i < group; i += 2) {
        packed(n, (begin + i) / 2) = pack_int4(range.code(x[i], 15), range.code(x[i + 1], 15));
      }
    }
  }
}

// packed [out, in / 2] and scale [out, in / group] to w [out, in]. Throws shape_error.
inline void dequantize_int4(const view<const std::uint8_t, 2>& packed, std::size_t group,
                            const view<const float, 2>& scale, const view<float, 2>& w) {
  detail::check_int4("dequantize_int4", w, group, packed, scale);
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t k = 0; k < w.extent(1); ++k) {
      w(n, k) = scale(n, k / group) * static_cast<float>(int4_code(packed.row(n), k));
    }
  }
}

// The same with zero [out, in / group].
inline void dequantize_uint4(const view<const std::uint8_t, 2>& packed, std::size_t group,
                             const view<const float, 2>& scale, const view<const std::uint8_t, 2>& zero,
                             const view<float, 2>& w) {
  detail::check_int4("dequantize_uint4", w, group, packed, scale);
  check_view("dequantize_uint4", "zero", zero, {w.extent(0), w.extent(1) / group});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t k = 0; k < w.extent(1); ++k) {
      w(n, k) = scale(n, k / group) * static_cast<float>(uint4_code(packed.row(n), k) - zero(n, k / group));
    }
  }
}

MOTE_END_NAMESPACE
