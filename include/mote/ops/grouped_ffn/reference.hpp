#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "../matmul/reference.hpp"
#include "../swiglu/reference.hpp"
#include "residency.hpp"

MOTE_BEGIN_NAMESPACE

// Token by token through its experts, in small steps. `offsets` and `slots` are those of group_by_expert.
inline void grouped_ffn_impl(reference& be, view<const float, 2> x, view<const float, 2> weights,
                             std::span<const ffn_weights> experts, view<const std::int32_t, 1> offsets,
                             view<const std::int32_t, 1> slots, view<float, 2> y, output mode,
                             expert_residency* residency) {
  const std::size_t top_k = weights.extent(1), hidden = x.extent(1), intermediate = out_features(experts[0].gate);
  auto scope = be.scope();
  const auto gate = scope.tensor<float>(1, intermediate);
  const auto up = scope.tensor<float>(1, intermediate);
  const auto down = scope.tensor<float>(slots.size(), hidden);
  const auto apply = [&](view<const float, 2> in, const weight& w, view<float, 2> out) {
    matmul_impl(be, in, w, out, output::overwrite);
  };
  detail::for_each_expert_group(be, residency, offsets, [&](std::size_t first, std::size_t last) {
    for (std::size_t e = first; e < last; ++e) {
      for (std::int32_t i = offsets(e); i < offsets(e + 1); ++i) {
        const std::size_t slot = static_cast<std::size_t>(slots(static_cast<std::size_t>(i)));
        const auto token = x.slice(0, slot / top_k, 1);
        apply(token, experts[e].gate, gate);
        apply(token, experts[e].up, up);
        swiglu_impl(be, gate, up, gate);
        apply(gate, experts[e].down, down.slice(0, slot, 1));
      }
    }
  });
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    for (std::size_t i = 0; i < hidden; ++i) {
      float sum = 0.0f;
      for (std::size_t k = 0; k < top_k; ++k) sum += weights(t, k) * down(t * top_k + k, i);
      y(t, i) = mode == output::accumulate ? y(t, i) + sum : sum;
    }
  }
}

MOTE_END_NAMESPACE
