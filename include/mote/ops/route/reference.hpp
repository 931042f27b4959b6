#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../../core/backend.hpp"
#include "../../core/view.hpp"
#include "config.hpp"

MOTE_BEGIN_NAMESPACE

inline void route_impl(reference& be, const router_config& config, view<const float, 2> logits,
                       view<const float, 1> bias, view<std::int32_t, 2> indices, view<float, 2> weights) {
  const std::size_t experts = logits.extent(1), top_k = config.num_experts_per_tok;
  const bool grouped = config.method != topk_method::greedy;
  const std::size_t groups = grouped ? config.n_group : 1, group_size = experts / groups;
  auto scope = be.scope();
  const auto score = scope.tensor<float>(experts), choice = scope.tensor<float>(experts);
  const auto group_score = scope.tensor<float>(groups);

  for (std::size_t t = 0; t < logits.extent(0); ++t) {
    if (config.scoring == scoring_func::softmax) {
      float maximum = -INFINITY, total = 0.0f;
      for (std::size_t e = 0; e < experts; ++e) maximum = std::max(maximum, logits(t, e));
      for (std::size_t e = 0; e < experts; ++e) total += score(e) = std::exp(logits(t, e) - maximum);
      for (std::size_t e = 0; e < experts; ++e) score(e) /= total;
    } else {
      for (std::size_t e = 0; e < experts; ++e) score(e) = 1.0f / (1.0f + std::exp(-logits(t, e)));
    }
    for (std::size_t e = 0; e < experts; ++e) choice(e) = score(e) + (bias.empty() ? 0.0f : bias(e));

    if (grouped) {
      for (std::size_t g = 0; g < groups; ++g) {
        float first = -INFINITY, second = -INFINITY;
        for (std::size_t e = g * group_size; e < (g + 1) * group_size; ++e) {
          if (choice(e) > first) {
            second = first;
            first = choice(e);
          } else {
            second = std::max(second, choice(e));
          }
        }
        const bool pair = config.method == topk_method::noaux_tc && group_size > 1;
        group_score(g) = pair ? first + second : first;
      }
      for (std::size_t g = 0; g < groups; ++g) {
        std::size_t better = 0;
        for (std::size_t o = 0; o < groups; ++o) {
          better += group_score(o) > group_score(g) || (group_score(o) == group_score(g) && o < g);
        }
        if (better < config.topk_group) continue;
        for (std::size_t e = g * group_size; e < (g + 1) * group_size; ++e) choice(e) = -INFINITY;
      }
    }

    for (std::size_t k = 0; k < top_k; ++k) {
      std::size_t best = 0;
      for (std::size_t e = 1; e < experts; ++e) best = choice(e) > choice(best) ? e : best;
      indices(t, k) = static_cast<std::int32_t>(best);
      choice(best) = -INFINITY;
    }
    std::sort(indices.row(t), indices.row(t) + top_k);

    float total = 1e-20f;
    for (std::size_t k = 0; k < top_k; ++k) total += score(static_cast<std::size_t>(indices(t, k)));
    const bool normalise = config.norm_topk_prob && (top_k > 1 || config.method == topk_method::noaux_tc);
    const bool scale = !normalise || config.method == topk_method::noaux_tc;
    for (std::size_t k = 0; k < top_k; ++k) {
      float w = score(static_cast<std::size_t>(indices(t, k)));
      if (normalise) w /= total;
      weights(t, k) = scale ? w * config.routed_scaling_factor : w;
    }
  }
}

MOTE_END_NAMESPACE
