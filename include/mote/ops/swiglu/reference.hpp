#pragma once

#include <cmath>
#include <cstddef>

#include "../../core/backend.hpp"
#include "../../core/view.hpp"

MOTE_BEGIN_NAMESPACE

inline float silu(float a) { return a / (1.0f + std::exp(-a)); }

inline void swiglu_impl(reference&, view<const float, 2> gate, view<const float, 2> up, view<float, 2> y) noexcept {
  for (std::size_t t = 0; t < y.extent(0); ++t) {
    for (std::size_t i = 0; i < y.extent(1); ++i) y(t, i) = silu(gate(t, i)) * up(t, i);
  }
}

MOTE_END_NAMESPACE
