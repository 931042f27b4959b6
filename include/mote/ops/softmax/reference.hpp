#pragma once

#include <cmath>
#include <cstddef>

#include "../../core/backend.hpp"
#include "../../core/view.hpp"

MOTE_BEGIN_NAMESPACE

inline void softmax_impl(reference&, view<const float, 2> x, view<float, 2> y) noexcept {
  for (std::size_t r = 0; r < x.extent(0); ++r) {
    float maximum = -INFINITY, total = 0.0f;
    for (std::size_t i = 0; i < x.extent(1); ++i) maximum = std::fmax(maximum, x(r, i));
    for (std::size_t i = 0; i < x.extent(1); ++i) {
      y(r, i) = std::exp(x(r, i) - maximum);
      total += y(r, i);
    }
    for (std::size_t i = 0; i < x.extent(1); ++i) y(r, i) /= total;
  }
}

MOTE_END_NAMESPACE
