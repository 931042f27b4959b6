// Multi-head latent attention in its absorbed form, on the paged latent cache: multi-query attention whose key is
// [latent | rope key] and whose value is the latent.
//
//   s[t, h, c] = scale · (q_latent[t, h] · latent[c] + q_rope[t, h] · k_rope[c]),   c < length of token t's context
//   y[t, h] = Σ_c softmax_c(s[t, h, :]) latent[c]
//
// q_latent, y: [tokens, heads, kv_lora_rank]; q_rope: [tokens, heads, qk_rope_head_dim]; context[t] are the cached rows
// [latent | rope key] that token t sees, its own included, float32 or any other row_element (quant/rows.hpp): tokens may
// belong to one sequence or to several. Consecutive tokens of one sequence share the reading of its rows.
// A token's bits depend on its queries and its context alone, not on the other tokens, on threads or on pages.
// Throws shape_error when shapes differ, a context is empty or its block table too short.
// Source: DeepSeek-V2 (2024), section 2.1 and appendix C.
#pragma once

#include <cstddef>
#include <ranges>
#include <span>
#include <variant>

#include "../../core/error.hpp"
#include "../../core/paged.hpp"
#include "../../quant/rows.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend, std::ranges::range Contexts = std::span<const paged_rows<const float>>>
void mla_decode(Backend& be, view<const float, 3> q_latent, view<const float, 3> q_rope, const Contexts& contexts,
                float scale, view<float, 3> y) {
  const std::span<const std::ranges::range_value_t<Contexts>> context(contexts);
  const std::size_t tokens = q_latent.extent(0), heads = q_latent.extent(1), rank = q_latent.extent(2);
  check_view("mla_decode", "q_latent", q_latent, {tokens, heads, rank});
  check_view("mla_decode", "q_rope", q_rope, {tokens, heads, q_rope.extent(2)});
  check_view("mla_decode", "y", y, {tokens, heads, rank});
  check(context.size() == tokens, "mla_decode", "context: expected one entry for each token");
  for (const auto& rows : context) {
    check(columns(rows) == rank + q_rope.extent(2), "mla_decode", "context: width must be kv_lora_rank + rope dim");
    check(rows.length > 0, "mla_decode", "context: must not be empty");
    check_pages("mla_decode", "context", rows);
  }
  mla_decode_impl(be, q_latent, q_rope, context, scale, y);
}

// The same for the last tokens of one sequence: each sees its rows up to the token's own.
template <backend Backend, class T>
void mla_decode_sequence(Backend& be, view<const float, 3> q_latent, view<const float, 3> q_rope,
                         const paged_rows<T>& sequence, float scale, view<float, 3> y) {
  const std::size_t tokens = q_latent.extent(0);
  check(tokens <= sequence.length, "mla_decode_sequence", "sequence: must hold at least the tokens");
  auto scope = be.scope();
  const auto contexts = scope.template tensor<paged_rows<const T>>(tokens);
  causal_contexts(be, sequence, contexts);
  mla_decode(be, q_latent, q_rope, std::span<const paged_rows<const T>>(contexts.data(), tokens), scale, y);
}
template <backend Backend>
void mla_decode_sequence(Backend& be, view<const float, 3> q_latent, view<const float, 3> q_rope,
                         const cache_rows& sequence, float scale, view<float, 3> y) {
  std::visit([&](const auto& rows) { mla_decode_sequence(be, q_latent, q_rope, rows, scale, y); }, sequence);
}

MOTE_END_NAMESPACE
