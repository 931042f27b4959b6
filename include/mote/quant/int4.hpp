// int4 quantization of groups of a row's elements, as codes of a scaled_matrix.
//
//   symmetric   s = amax / 7,  q = clamp(round(x / s), -8, 7)                                x ≈ s q
//   asymmetric  s = (max - min) / 15 over a range that holds 0,  z = round(-min / s) - 8,
//               q = clamp(round(x / s) + z, -8, 7)                                           x ≈ s (q - z)
//
// Ties go to even; a zero group uses s = 1.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "../core/error.hpp"
#include "../core/view.hpp"
#include "int8.hpp"
#include "scaled_matrix.hpp"

MOTE_BEGIN_NAMESPACE

// The symmetric scale of a group of n values.
inline float int4_scale(const float* x, std::size_t n) {
  float amax = 0.0f;
  for (std::size_t i = 0; i < n; ++i) amax = std::fmax(amax, std::fabs(x[i]));
  return amax / 7.0f > 0.0f ? amax / 7.0f : 1.0f;
}

namespace detail {

inline void check_int4(std::string_view op, const view<const float, 2>& w, std::size_t group,
                       const view<int4_pair, 2>& codes, const view<float, 2>& scale) {
  if (group == 0 || group % 2 != 0 || w.extent(1) % group != 0) {
    raise<shape_error>(concatenate({op, ": group: expected an even number that divides the ",
                                    std::to_string(w.extent(1)), " columns, got ", std::to_string(group)}));
  }
  check_view(op, "w", w, {w.extent(0), w.extent(1)});
  check_view(op, "codes", codes, {w.extent(0), w.extent(1) / 2});
  check_view(op, "scale", scale, {w.extent(0), w.extent(1) / group});
}

// codes(n, k) = code(x) of every element, where fit(x, n, g) makes `code` for group g of row n.
template <class Fit>
void for_each_int4_group(const view<const float, 2>& w, std::size_t group, const view<int4_pair, 2>& codes, Fit&& fit) {
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t begin = 0; begin < w.extent(1); begin += group) {
      const float* x = w.row(n) + begin;
      const auto code = fit(x, n, begin / group);
      for (std::size_t i = 0; i < group; i += 2) {
        codes(n, (begin + i) / 2) = int4_pair::of(code(x[i]), code(x[i + 1]));
      }
    }
  }
}

}  // namespace detail

// w [out, in] to codes [out, in / 2] and scale [out, in / group]. Throws shape_error unless `group` is even and divides the
// columns.
inline void quantize_int4(const view<const float, 2>& w, std::size_t group, const view<int4_pair, 2>& codes,
                          const view<float, 2>& scale) {
  detail::check_int4("quantize_int4", w, group, codes, scale);
  detail::for_each_int4_group(w, group, codes, [&](const float* x, std::size_t n, std::size_t g) {
    const float s = scale(n, g) = int4_scale(x, group);
    return [s](float v) { return static_cast<int>(std::fmin(std::fmax(std::nearbyint(v / s), -8.0f), 7.0f)); };
  });
}

// Asymmetric, with zero [out, in / group].
inline void quantize_int4(const view<const float, 2>& w, std::size_t group, const view<int4_pair, 2>& codes,
                          const view<float, 2>& scale, const view<std::int8_t, 2>& zero) {
  detail::check_int4("quantize_int4", w, group, codes, scale);
  check_view("quantize_int4", "zero", zero, {w.extent(0), w.extent(1) / group});
  detail::for_each_int4_group(w, group, codes, [&](const float* x, std::size_t n, std::size_t g) {
    const asymmetric_range range(x, group, 4);
    scale(n, g) = range.scale;
    zero(n, g) = range.zero;
    return [range](float v) { return range.code(v); };
  });
}

MOTE_END_NAMESPACE
