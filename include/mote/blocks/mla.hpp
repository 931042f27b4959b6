// Multi-head latent attention: all heads' keys and values are rebuilt from one small latent vector per token, and the
// cache holds only that vector and one rotary key.
//
//   q = W_q x   or   W_qb RMSNorm(W_qa x)                  -> heads of [nope | rope]
//   [c' | k'] = W_kva x;   c = RMSNorm(c');   q_r, k_r = rope(q rope part), rope(k');   cache row: [c | k_r]
//   expanded:  k_n = W_uk c, v = W_uv c;   s = scale (q_n · k_n + q_r · k_r);   o = softmax(s) v
//   absorbed:  q_lat = W_ukᵀ q_n;          s = scale (q_lat · c + q_r · k_r);   o = W_uv (softmax(s) c)
//   y = W_o [o^0 | … | o^{H-1}]
//
// Both forms are equal in real arithmetic, but not in their last bits. The absorbed form reads the cache as it is; in it a
// token's bits depend on the sequence up to it alone, whether it is computed by itself or with others. The expanded form
// first rebuilds keys and values of the whole context: fewer operations once enough tokens share that work.
// Source: DeepSeek-V2 (2024), section 2.1 and appendix C; DeepSeek-V3 model code.
#pragma once

#include <cstddef>
#include <optional>

#include "../core/error.hpp"
#include "../core/output.hpp"
#include "../core/paged.hpp"
#include "../ops/add_bias/add_bias.hpp"
#include "../ops/batched_matmul/batched_matmul.hpp"
#include "../ops/matmul/matmul.hpp"
#include "../ops/mla_decode/mla_decode.hpp"
#include "../ops/mla_prefill/mla_prefill.hpp"
#include "../ops/paged_load/paged_load.hpp"
#include "../ops/paged_store/paged_store.hpp"
#include "../ops/rms_norm/rms_norm.hpp"
#include "../ops/rope/rope.hpp"
#include "../quant/rows.hpp"

MOTE_BEGIN_NAMESPACE

// `cheapest` takes the form with fewer multiply-adds, by the number of new tokens: a token's bits then depend on how the
// sequence is cut into calls.
enum class mla_form { absorbed, expanded, cheapest };

// Field names as in config.json.
struct mla_config {
  std::size_t num_attention_heads = 0;
  std::size_t kv_lora_rank = 0;
  std::size_t qk_nope_head_dim = 0;
  std::size_t qk_rope_head_dim = 0;
  std::size_t v_head_dim = 0;
  float softmax_scale = 0.0f;  // (nope + rope)^-1/2, times YaRN's multiplier
  rope_pairing pairing = rope_pairing::interleaved;
  mla_form form = mla_form::absorbed;

  std::size_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  std::size_t cache_width() const { return kv_lora_rank + qk_rope_head_dim; }

  // The form for `tokens` new tokens. Expanding costs (nope + v) · rank for each cached token once, and saves
  // (2 rank + rope) - (nope + rope + v) for each pair of a new and a cached token.
  mla_form choose(std::size_t tokens) const {
    if (form != mla_form::cheapest) return form;
    const std::size_t per_head = qk_nope_head_dim + v_head_dim;
    const bool expand = 2 * kv_lora_rank > per_head && tokens * (2 * kv_lora_rank - per_head) > per_head * kv_lora_rank;
    return expand ? mla_form::expanded : mla_form::absorbed;
  }
};

struct mla_query_lora {
  weight q_a_proj;                     // [q_lora_rank, hidden]
  view<const float, 1> q_a_bias;       // [q_lora_rank], or empty
  view<const float, 1> q_a_layernorm;  // [q_lora_rank]
};

struct mla_weights {
  std::optional<mla_query_lora> q_lora;  // none where q_lora_rank is null
  weight q_proj;                         // [heads · (nope + rope), q_lora_rank or hidden]
  weight kv_a_proj;                      // [kv_lora_rank + rope, hidden]
  view<const float, 1> kv_a_bias;        // [kv_lora_rank + rope], or empty
  view<const float, 1> kv_a_layernorm;   // [kv_lora_rank]
  weight k_up;                           // [heads · nope, kv_lora_rank], W_uk
  weight k_up_transposed;                // [heads · kv_lora_rank, nope], W_ukᵀ of each head
  weight v_up;                           // [heads · v_head_dim, kv_lora_rank], W_uv
  weight o_proj;                         // [hidden, heads · v_head_dim]
  view<const float, 1> o_bias;           // [hidden], or empty
};

// The latent norms of the published models use this epsilon, whatever rms_norm_eps says.
inline constexpr float mla_norm_eps = 1e-6f;

// x: [tokens, hidden], the sequence's tokens at positions `position` …; cos, sin: [tokens, rope / 2] of those positions;
// cache: the sequence's rows, cache_rows or a paged_rows<T> of any form, length = position + tokens, written here for the new tokens; y: [tokens,
// hidden], set or added to. The new tokens too attend to what the cache holds of them. Throws shape_error when the shapes
// differ.
template <backend Backend, class Cache>
void mla(Backend& be, const mla_config& c, const mla_weights& w, view<const float, 2> x, view<const float, 2> cos,
         view<const float, 2> sin, const Cache& cache, std::size_t position, view<float, 2> y,
         output mode = output::overwrite) {
  const std::size_t tokens = x.extent(0), heads = c.num_attention_heads, rank = c.kv_lora_rank;
  const std::size_t nope = c.qk_nope_head_dim, rope_dim = c.qk_rope_head_dim, v_dim = c.v_head_dim;
  check(length(cache) == position + tokens, "mla", "cache: its length must be position + tokens");
  auto scratch = be.scope();

  const auto q = scratch.template tensor<float>(tokens, heads * c.qk_head_dim());
  if (w.q_lora) {
    const auto q_a = scratch.template tensor<float>(tokens, out_features(w.q_lora->q_a_proj));
    matmul(be, x, w.q_lora->q_a_proj, q_a);
    if (!w.q_lora->q_a_bias.empty()) add_bias(be, w.q_lora->q_a_bias, q_a);
    rms_norm(be, q_a, w.q_lora->q_a_layernorm, mla_norm_eps, q_a);
    matmul(be, q_a, w.q_proj, q);
  } else {
    matmul(be, x, w.q_proj, q);
  }
  const auto q_heads = q.reshaped(tokens, heads, c.qk_head_dim());
  const auto q_nope = q_heads.slice(2, 0, nope), q_rope = q_heads.slice(2, nope, rope_dim);
  rope(be, q_rope, cos, sin, c.pairing, q_rope);

  const auto kv = scratch.template tensor<float>(tokens, c.cache_width());
  const auto latent = kv.slice(1, 0, rank);
  const auto k_rope = kv.reshaped(tokens, 1, c.cache_width()).slice(2, rank, rope_dim);
  matmul(be, x, w.kv_a_proj, kv);
  if (!w.kv_a_bias.empty()) add_bias(be, w.kv_a_bias, kv);
  rms_norm(be, latent, w.kv_a_layernorm, mla_norm_eps, latent);
  rope(be, k_rope, cos, sin, c.pairing, k_rope);
  paged_store(be, kv, cache, position, 0);

  const auto heads_out = scratch.template tensor<float>(tokens, heads, v_dim);
  if (c.choose(tokens) == mla_form::expanded) {
    const std::size_t context = length(cache);
    const auto rows = scratch.template tensor<float>(context, c.cache_width());
    const auto all_latent = rows.slice(1, 0, rank), all_rope = rows.slice(1, rank, rope_dim);
    const auto k_nope = scratch.template tensor<float>(context, heads * nope);
    const auto v = scratch.template tensor<float>(context, heads * v_dim);
    paged_load(be, cache, 0, rows);
    matmul(be, all_latent, w.k_up, k_nope);
    matmul(be, all_latent, w.v_up, v);
    mla_prefill(be, q_nope, q_rope, k_nope.reshaped(context, heads, nope), all_rope, v.reshaped(context, heads, v_dim),
                c.softmax_scale, heads_out);
  } else {
    const auto q_latent = scratch.template tensor<float>(tokens, heads, rank);
    const auto o_latent = scratch.template tensor<float>(tokens, heads, rank);
    batched_matmul(be, q_nope.transposed({1, 0, 2}), w.k_up_transposed, q_latent.transposed({1, 0, 2}));
    mla_decode_sequence(be, q_latent, q_rope, cache, c.softmax_scale, o_latent);
    batched_matmul(be, o_latent.transposed({1, 0, 2}), w.v_up, heads_out.transposed({1, 0, 2}));
  }
  matmul(be, heads_out.reshaped(tokens, heads * v_dim), w.o_proj, y, mode);
  if (!w.o_bias.empty()) add_bias(be, w.o_bias, y);
}

MOTE_END_NAMESPACE
