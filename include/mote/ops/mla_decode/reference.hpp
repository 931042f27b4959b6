#pragma once

#include <cmath>
#include <cstddef>
#include <span>

#include "../../core/backend.hpp"
#include "../../core/paged.hpp"
#include "../../quant/rows.hpp"

MOTE_BEGIN_NAMESPACE

template <class T>
void mla_decode_impl(reference& be, view<const float, 3> q_latent, view<const float, 3> q_rope,
                     std::span<const paged_rows<const T>> context, float scale, view<float, 3> y) {
  const std::size_t rank = q_latent.extent(2), rope_dim = q_rope.extent(2);
  for (std::size_t t = 0; t < q_latent.extent(0); ++t) {
    const auto& rows = context[t];
    auto scope = be.scope();
    const auto p = scope.tensor<float>(rows.length);
    const auto row = scope.tensor<float>(rows.length, rank + rope_dim);
    for (std::size_t c = 0; c < rows.length; ++c) decode_row(rows.row(c), rank + rope_dim, row.row(c));
    for (std::size_t h = 0; h < q_latent.extent(1); ++h) {
      float maximum = -INFINITY, total = 0.0f;
      for (std::size_t c = 0; c < rows.length; ++c) {
        float s = 0.0f;
        for (std::size_t i = 0; i < rank; ++i) s += q_latent(t, h, i) * row(c, i);
        for (std::size_t i = 0; i < rope_dim; ++i) s += q_rope(t, h, i) * row(c, rank + i);
        p(c) = s * scale;
        maximum = std::fmax(maximum, p(c));
      }
      for (std::size_t c = 0; c < rows.length; ++c) total += p(c) = std::exp(p(c) - maximum);
      for (std::size_t i = 0; i < rank; ++i) {
        float sum = 0.0f;
        for (std::size_t c = 0; c < rows.length; ++c) sum += p(c) * row(c, i);
        y(t, h, i) = sum / total;
      }
    }
  }
}

MOTE_END_NAMESPACE
