#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "../../core/backend.hpp"
#include "../../core/view.hpp"
#include "pairing.hpp"

MOTE_BEGIN_NAMESPACE

// One row of the table: both back ends use it, since angles of some thousand radians need an exact range reduction.
inline void rope_table_row(float position, std::span<const float> inv_freq, float attention_factor, float* cos,
                           float* sin) noexcept {
  for (std::size_t i = 0; i < inv_freq.size(); ++i) {
    const float angle = position * inv_freq[i];
    cos[i] = attention_factor * std::cos(angle);
    sin[i] = attention_factor * std::sin(angle);
  }
}

inline void rope_table_impl(reference&, std::span<const std::int32_t> positions, std::span<const float> inv_freq,
                            float attention_factor, view<float, 2> cos, view<float, 2> sin) noexcept {
  for (std::size_t t = 0; t < positions.size(); ++t) {
    rope_table_row(static_cast<float>(positions[t]), inv_freq, attention_factor, cos.row(t), sin.row(t));
  }
}

// Each head is copied before it is rotated, so that y may be x in every pairing.
inline void rope_impl(reference& be, view<const float, 3> x, view<const float, 2> cos, view<const float, 2> sin,
                      rope_pairing pairing, view<float, 3> y) {
  const std::size_t dim = x.extent(2), half = dim / 2;
  auto scope = be.scope();
  const auto head = scope.tensor<float>(dim);
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    for (std::size_t h = 0; h < x.extent(1); ++h) {
      for (std::size_t i = 0; i < dim; ++i) head(i) = x(t, h, i);
      for (std::size_t i = 0; i < half; ++i) {
        const bool split_in = pairing == rope_pairing::half_split, split_out = pairing != rope_pairing::interleaved;
        const float a = head(split_in ? i : 2 * i), b = head(split_in ? i + half : 2 * i + 1);
        y(t, h, split_out ? i : 2 * i) = a * cos(t, i) - b * sin(t, i);
        y(t, h, split_out ? i + half : 2 * i + 1) = b * cos(t, i) + a * sin(t, i);
      }
    }
  }
}

MOTE_END_NAMESPACE
