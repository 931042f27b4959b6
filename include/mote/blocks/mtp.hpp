// Multi-token prediction: from the main model's state at token t and the embedding of token t+1, one more layer predicts
// token t+2.
//
//   x_t = W_eh [ RMSNorm_e(Emb(token_{t+1})) | RMSNorm_h(h_t) ];   g = Layer(x);   state_t = RMSNorm_shared(g_t)
//   logits_t = Head(state_t)
//
// h_t is the main model's state after its final norm.
// Source: DeepSeek-V3 technical report (2024), section 2.2, and model code.
#pragma once

#include <cstdint>
#include <span>

#include "../ops/embedding/embedding.hpp"
#include "../ops/matmul/matmul.hpp"
#include "../ops/rms_norm/rms_norm.hpp"
#include "decoder_layer.hpp"

MOTE_BEGIN_NAMESPACE

struct mtp_weights {
  weight embed_tokens;         // [vocab, hidden]
  view<const float, 1> enorm;  // [hidden]
  view<const float, 1> hnorm;  // [hidden]
  weight eh_proj;              // [hidden, 2 hidden]
  decoder_layer_weights layer;
  view<const float, 1> shared_head_norm;  // [hidden]
  weight shared_head;                     // [vocab, hidden]
};

// next: [tokens], token t+1 of each row; hidden: [tokens, hidden], h_t; cache: the module's own, as in mla;
// state: [tokens, hidden], after shared_head.norm (the head is the caller's to apply, to the rows it needs).
template <backend Backend, class Cache, class Observe = ignore_routing>
void mtp(Backend& be, const decoder_config& c, const mtp_weights& w, std::span<const std::int32_t> next,
         view<const float, 2> hidden, const step_context& step, const Cache& cache, view<float, 2> state,
         Observe&& observe = {}) {
  const std::size_t tokens = hidden.extent(0), width = hidden.extent(1);
  auto scratch = be.scope();
  const auto embedded = scratch.template tensor<float>(tokens, width);
  const auto both = scratch.template tensor<float>(tokens, 2 * width);
  embedding(be, next, w.embed_tokens, embedded);
  rms_norm(be, embedded, w.enorm, c.rms_norm_eps, both.slice(1, 0, width));
  rms_norm(be, hidden, w.hnorm, c.rms_norm_eps, both.slice(1, width, width));
  matmul(be, both, w.eh_proj, state);
  decoder_layer(be, c, w.layer, step, cache, state, observe);
  rms_norm(be, state, w.shared_head_norm, c.rms_norm_eps, state);
}

MOTE_END_NAMESPACE
