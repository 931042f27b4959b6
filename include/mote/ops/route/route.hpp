// Routers: which experts a token goes to, and with what weights.
//
//   greedy                 s = softmax(z) or σ(z); the num_experts_per_tok (K) largest s
//   group_limited_greedy   a group's score is its largest s; only the best topk_group groups take part, K largest s
//   noaux_tc               s = σ(z), c = s + bias; a group's score is the sum of its two largest c; experts outside the
//                          best topk_group groups are left out; the K largest c. Weights come from s, never from c.
//
// Weights: w = s of the chosen. With norm_topk_prob and K > 1 the softmax router gives w / (Σ w + 1e-20) *instead of*
// w · routed_scaling_factor (DeepSeek-V2); noaux_tc normalises and then scales (DeepSeek-V3).
//
// logits: [tokens, experts]; bias: [experts], or empty for none; indices, weights: [tokens, K], sorted by ascending expert.
// Ties go to the lower index. A NaN ranks with -infinity, so that indices are always K different experts of the best groups;
// where it was a score, weights are NaN. Throws shape_error when shapes differ or the configuration does not fit the experts.
// Source: DeepSeek-V2 (2024), DeepSeek-V3 technical report (2024) and their model code; Wang et al., "Auxiliary-Loss-Free
// Load Balancing Strategy for Mixture-of-Experts" (2024).
#pragma once

#include <cstdint>

#include "../../core/error.hpp"
#include "../../core/view.hpp"
#include "config.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend>
void route(Backend& be, const router_config& config, view<const float, 2> logits, view<const float, 1> bias,
           view<std::int32_t, 2> indices, view<float, 2> weights) {
  check_router(config, logits.extent(1));
  if (!bias.empty()) check_view("route", "bias", bias, {logits.extent(1)});
  check_view("route", "logits", logits, {logits.extent(0), logits.extent(1)});
  check_view("route", "indices", indices, {logits.extent(0), config.num_experts_per_tok});
  check_view("route", "weights", weights, {logits.extent(0), config.num_experts_per_tok});
  route_impl(be, config, logits, bias, indices, weights);
}

MOTE_END_NAMESPACE
