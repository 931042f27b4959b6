// Multi-head latent attention in its expanded form: keys and values are given per head.
//
//   s[t, h, c] = scale · (q_nope[t, h] · k_nope[c, h] + q_rope[t, h] · k_rope[c]),   c <= context - tokens + t
//   y[t, h] = Σ_c softmax_c(s[t, h, :]) v[c, h]
//
// The tokens are the last ones of the context (causal). q_nope: [tokens, heads, qk_nope_head_dim], q_rope: [tokens, heads,
// qk_rope_head_dim], k_nope: [context, heads, qk_nope_head_dim], k_rope: [context, qk_rope_head_dim] (one key for all
// heads), v: [context, heads, v_head_dim], y: [tokens, heads, v_head_dim]; last dimensions contiguous.
// Throws shape_error when shapes differ or the context is shorter than the tokens.
// Source: DeepSeek-V2 (2024), section 2.1.
#pragma once

#include "../../core/error.hpp"
#include "../../core/view.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend>
void mla_prefill(Backend& be, view<const float, 3> q_nope, view<const float, 3> q_rope, view<const float, 3> k_nope,
                 view<const float, 2> k_rope, view<const float, 3> v, float scale, view<float, 3> y) {
  const std::size_t tokens = q_nope.extent(0), heads = q_nope.extent(1), context = k_nope.extent(0);
  check_view("mla_prefill", "q_nope", q_nope, {tokens, heads, q_nope.extent(2)});
  check_view("mla_prefill", "q_rope", q_rope, {tokens, heads, q_rope.extent(2)});
  check_view("mla_prefill", "k_nope", k_nope, {context, heads, q_nope.extent(2)});
  check_view("mla_prefill", "k_rope", k_rope, {context, q_rope.extent(2)});
  check_view("mla_prefill", "v", v, {context, heads, v.extent(2)});
  check_view("mla_prefill", "y", y, {tokens, heads, v.extent(2)});
  check(context >= tokens, "mla_prefill", "k_nope: the context must hold at least the tokens");
  mla_prefill_impl(be, q_nope, q_rope, k_nope, k_rope, v, scale, y);
}

MOTE_END_NAMESPACE
