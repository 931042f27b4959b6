#pragma once

#include <cstddef>

#include "../../core/backend.hpp"
#include "../../core/view.hpp"

MOTE_BEGIN_NAMESPACE

inline void add_bias_impl(reference&, view<const float, 1> bias, view<float, 2> y) noexcept {
  for (std::size_t t = 0; t < y.extent(0); ++t) {
    for (std::size_t i = 0; i < y.extent(1); ++i) y(t, i) += bias(i);
  }
}

MOTE_END_NAMESPACE
