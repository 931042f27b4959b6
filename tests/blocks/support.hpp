// What the block tests share: random layers, and one comparison over back ends.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include <mote/blocks/decoder_layer.hpp>
#include <mote/blocks/mtp.hpp>
#include <mote/core/executors/team.hpp>
#include <mote/decode/kv_cache.hpp>

#include "support/catch.hpp"
#include "support/kernels.hpp"
#include "support/random.hpp"

namespace test {

struct layer_sizes {
  std::size_t hidden = 40, heads = 3, q_lora_rank = 20, kv_lora_rank = 24, nope = 16, rope = 8, v = 12;
  std::size_t experts = 8, top_k = 3, intermediate = 20;
};

inline mote::decoder_config make_config(const layer_sizes& s) {
  mote::decoder_config c;
  c.attention = {.num_attention_heads = s.heads,
                 .kv_lora_rank = s.kv_lora_rank,
                 .qk_nope_head_dim = s.nope,
                 .qk_rope_head_dim = s.rope,
                 .v_head_dim = s.v,
                 .softmax_scale = 1.0f / std::sqrt(static_cast<float>(s.nope + s.rope))};
  c.router = {.scoring = mote::scoring_func::sigmoid,
              .method = mote::topk_method::noaux_tc,
              .num_experts_per_tok = s.top_k,
              .n_group = 4,
              .topk_group = 2,
              .norm_topk_prob = true,
              .routed_scaling_factor = 2.5f};
  return c;
}

inline mote::mla_weights make_mla(random_weights& r, const layer_sizes& s) {
  mote::mla_weights w;
  if (s.q_lora_rank > 0) {
    w.q_lora =
        mote::mla_query_lora{r.matrix(s.q_lora_rank, s.hidden), r.vector(s.q_lora_rank, 0.0f), r.vector(s.q_lora_rank)};
  }
  w.q_proj = r.matrix(s.heads * (s.nope + s.rope), s.q_lora_rank > 0 ? s.q_lora_rank : s.hidden);
  w.kv_a_proj = r.matrix(s.kv_lora_rank + s.rope, s.hidden);
  w.kv_a_layernorm = r.vector(s.kv_lora_rank);
  w.k_up = r.matrix(s.heads * s.nope, s.kv_lora_rank);
  w.v_up = r.matrix(s.heads * s.v, s.kv_lora_rank);
  w.o_proj = r.matrix(s.hidden, s.heads * s.v);
  w.o_bias = r.vector(s.hidden, 0.0f);
  return w;
}

// W_ukᵀ for each head, in float32.
inline std::vector<float> transpose_k_up(const mote::weight& k_up, const layer_sizes& s) {
  const auto& w = std::get<mote::view<const float, 2>>(k_up);
  std::vector<float> transposed(s.heads * s.kv_lora_rank * s.nope);
  for (std::size_t h = 0; h < s.heads; ++h) {
    for (std::size_t j = 0; j < s.kv_lora_rank; ++j) {
      for (std::size_t i = 0; i < s.nope; ++i) transposed[(h * s.kv_lora_rank + j) * s.nope + i] = w(h * s.nope + i, j);
    }
  }
  return transposed;
}

inline void check_close(const std::vector<float>& got, const std::vector<float>& want, float tolerance) {
  REQUIRE(got.size() == want.size());
  float scale = 0.0f, worst = 0.0f;
  for (std::size_t i = 0; i < got.size(); ++i) {
    REQUIRE(std::isfinite(got[i]));
    scale = std::max(scale, std::abs(want[i]));
    worst = std::max(worst, std::abs(got[i] - want[i]));
  }
  CHECK(worst <= tolerance * std::max(scale, 1.0f));
}

}  // namespace test
