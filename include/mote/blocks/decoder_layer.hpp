// A pre-norm transformer layer of the DeepSeek family.
//
//   x += MLA(RMSNorm(x));   x += FFN(RMSNorm(x))   with a dense network or a mixture of experts as FFN
//
// Source: DeepSeek-V2 and DeepSeek-V3 model code.
#pragma once

#include <cstddef>
#include <variant>

#include "../ops/rms_norm/rms_norm.hpp"
#include "ffn.hpp"
#include "mla.hpp"
#include "moe.hpp"

MOTE_BEGIN_NAMESPACE

struct decoder_config {
  mla_config attention;
  router_config router;
  float rms_norm_eps = 1e-6f;
};

struct decoder_layer_weights {
  view<const float, 1> input_layernorm;  // [hidden]
  mla_weights attention;
  view<const float, 1> post_attention_layernorm;  // [hidden]
  std::variant<ffn_weights, moe_weights> mlp;
};

// The tokens of one sequence that a forward step processes, and what depends on their positions only.
struct step_context {
  std::size_t position = 0;  // of the first token
  view<const float, 2> cos;  // [tokens, qk_rope_head_dim / 2]
  view<const float, 2> sin;
};

// x: [tokens, hidden], replaced by the layer's output; cache: as in mla.
template <backend Backend, class Cache, class Observe = ignore_routing>
void decoder_layer(Backend& be, const decoder_config& c, const decoder_layer_weights& w, const step_context& step,
                   const Cache& cache, view<float, 2> x, Observe&& observe = {}) {
  auto scratch = be.scope();
  const auto normed = scratch.template tensor<float>(x.extent(0), x.extent(1));
  rms_norm(be, x, w.input_layernorm, c.rms_norm_eps, normed);
  mla(be, c.attention, w.attention, normed, step.cos, step.sin, cache, step.position, x, output::accumulate);
  rms_norm(be, x, w.post_attention_layernorm, c.rms_norm_eps, normed);
  if (const auto* dense = std::get_if<ffn_weights>(&w.mlp)) {
    ffn(be, normed, *dense, x, output::accumulate);
  } else {
    moe(be, c.router, std::get<moe_weights>(w.mlp), normed, x, output::accumulate, observe);
  }
}

MOTE_END_NAMESPACE
