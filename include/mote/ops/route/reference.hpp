#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../../core/backend.hpp"
#include "../../core/view.hpp"
#include "config.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// NaN ranks with the lowest.
inline float rankable(float x) { return std::isnan(x) ? -INFINITY : x; }

// The number of values that come before values[i]: larger ones, and equal ones of a lower index.
inline std::size_t rank_of(std::size_t i, view<const float, 1> values) {
  std::size_t before = 0;
  for (std::size_t j = 0; j < values.extent(0); ++j) {
    before += values(j) > values(i) || (values(j) == values(i) && j < i);
  }
  return before;
}

// The factor of a token's weights, given the sum of its chosen scores.
inline float route_scale(const router_config& config, float total) {
  const bool noaux = config.method == topk_method::noaux_tc;
  const bool normalise = config.norm_topk_prob && (config.num_experts_per_tok > 1 || noaux);
  const float inverse = normalise ? 1.0f / (total + 1e-20f) : 1.0f;
  return normalise && !noaux ? inverse : inverse * config.routed_scaling_factor;
}

}  // namespace detail

inline void route_impl(reference& be, const router_config& config, view<const float, 2> logits,
                       view<const float, 1> bias, view<std::int32_t, 2> indices, view<float, 2> weights) {
  const std::size_t experts = logits.extent(1), top_k = config.num_experts_per_tok;
  const bool grouped = config.method != topk_method::greedy;
  const std::size_t groups = grouped ? config.n_group : 1, group_size = experts / groups;
  const std::size_t kept_groups = grouped ? config.topk_group : 1;
  auto scope = be.scope();
  const auto score = scope.tensor<float>(experts), choice = scope.tensor<float>(experts);
  const auto group_score = scope.tensor<float>(groups);
  const auto candidate = scope.tensor<bool>(experts);

  for (std::size_t t = 0; t < logits.extent(0); ++t) {
    if (config.scoring == scoring_func::softmax) {
      float maximum = -INFINITY;
      double total = 0.0;
      for (std::size_t e = 0; e < experts; ++e) maximum = std::fmax(maximum, logits(t, e));
      for (std::size_t e = 0; e < experts; ++e) {
        score(e) = std::exp(logits(t, e) - maximum);
        total += static_cast<double>(score(e));
      }
      for (std::size_t e = 0; e < experts; ++e) score(e) = static_cast<float>(static_cast<double>(score(e)) / total);
    } else {
      for (std::size_t e = 0; e < experts; ++e) score(e) = 1.0f / (1.0f + std::exp(-logits(t, e)));
    }
    for (std::size_t e = 0; e < experts; ++e) choice(e) = detail::rankable(score(e) + (bias.empty() ? 0.0f : bias(e)));

    for (std::size_t g = 0; g < groups; ++g) {
      float first = -INFINITY, second = -INFINITY;
      for (std::size_t e = g * group_size; e < (g + 1) * group_size; ++e) {
        second = std::max(second, std::min(first, choice(e)));
        first = std::max(first, choice(e));
      }
      const bool pair = config.method == topk_method::noaux_tc && group_size > 1;
      group_score(g) = detail::rankable(pair ? first + second : first);
    }
    for (std::size_t e = 0; e < experts; ++e) {
      candidate(e) = detail::rank_of(e / group_size, group_score) < kept_groups;
    }

    for (std::size_t k = 0; k < top_k; ++k) {
      std::size_t best = experts;
      for (std::size_t e = 0; e < experts; ++e) {
        if (candidate(e) && (best == experts || choice(e) > choice(best))) best = e;
      }
      indices(t, k) = static_cast<std::int32_t>(best);
      candidate(best) = false;
    }
    std::sort(indices.row(t), indices.row(t) + top_k);

    float total = 0.0f;
    for (std::size_t k = 0; k < top_k; ++k) total += score(static_cast<std::size_t>(indices(t, k)));
    const float scale = detail::route_scale(config, total);
    for (std::size_t k = 0; k < top_k; ++k) {
      weights(t, k) = score(static_cast<std::size_t>(indices(t, k))) * scale;
    }
  }
}

MOTE_END_NAMESPACE
