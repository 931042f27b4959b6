#pragma once

#include <cmath>
#include <cstddef>

#include "../../core/backend.hpp"
#include "../../core/view.hpp"

MOTE_BEGIN_NAMESPACE

inline void mla_prefill_impl(reference& be, view<const float, 3> q_nope, view<const float, 3> q_rope,
                             view<const float, 3> k_nope, view<const float, 2> k_rope, view<const float, 3> v,
                             float scale, view<float, 3> y) {
  const std::size_t tokens = q_nope.extent(0), context = k_nope.extent(0);
  auto scope = be.scope();
  const auto p = scope.tensor<float>(context);
  for (std::size_t t = 0; t < tokens; ++t) {
    const std::size_t visible = context - tokens + t + 1;
    for (std::size_t h = 0; h < q_nope.extent(1); ++h) {
      float maximum = -INFINITY, total = 0.0f;
      for (std::size_t c = 0; c < visible; ++c) {
        float s = 0.0f;
        for (std::size_t i = 0; i < q_nope.extent(2); ++i) s += q_nope(t, h, i) * k_nope(c, h, i);
        for (std::size_t i = 0; i < q_rope.extent(2); ++i) s += q_rope(t, h, i) * k_rope(c, i);
        p(c) = s * scale;
        maximum = std::fmax(maximum, p(c));
      }
      for (std::size_t c = 0; c < visible; ++c) total += p(c) = std::exp(p(c) - maximum);
      for (std::size_t i = 0; i < v.extent(2); ++i) {
        float sum = 0.0f;
        for (std::size_t c = 0; c < visible; ++c) sum += p(c) * v(c, h, i);
        y(t, h, i) = sum / total;
      }
    }
  }
}

MOTE_END_NAMESPACE
