#pragma once

#include <cmath>
#include <cstddef>

#include "../../core/backend.hpp"
#include "../../core/view.hpp"

MOTE_BEGIN_NAMESPACE

inline void rms_norm_impl(reference&, view<const float, 2> x, view<const float, 1> gain, float eps,
                          view<float, 2> y) noexcept {
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    float squares = 0.0f;
    for (std::size_t i = 0; i < x.extent(1); ++i) squares += x(t, i) * x(t, i);
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(x.extent(1)) + eps);
    for (std::size_t i = 0; i < x.extent(1); ++i) y(t, i) = x(t, i) * scale * (gain.empty() ? 1.0f : gain(i));
  }
}

MOTE_END_NAMESPACE
