// Mixture of experts: a router sends each token to a few of many small feed-forward networks, a shared one sees them all.
//
//   z = x W_gateᵀ;   (indices, weights) = route(z, bias);   y = Σ_k weights_k · FFN_{indices_k}(x) + FFN_shared(x)
//
// x: [tokens, hidden]; y: [tokens, hidden], set or added to, which must not overlap x. The router's logits are float32
// whatever the experts' format. `observe` is called with the logits and routes, for statistics and for showing where tokens
// go: once, by each member of a team.
// Throws shape_error when shapes differ or the router's configuration does not fit.
// Source: Dai et al., "DeepSeekMoE" (2024); DeepSeek-V3 technical report (2024).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "../core/output.hpp"
#include "../ops/grouped_ffn/grouped_ffn.hpp"
#include "../ops/grouped_ffn/residency.hpp"
#include "../ops/matmul/matmul.hpp"
#include "../ops/route/route.hpp"
#include "ffn.hpp"

MOTE_BEGIN_NAMESPACE

struct moe_weights {
  view<const float, 2> gate;              // [experts, hidden]
  view<const float, 1> bias;              // [experts], selection bias, or empty
  std::span<const ffn_weights> experts;   // routed experts
  std::optional<ffn_weights> shared;      // the shared experts as one network
  expert_residency* residency = nullptr;  // of experts that are not all in memory
};

// What a router decided for each token.
struct routing {
  view<const float, 2> logits;          // [tokens, experts]
  view<const std::int32_t, 2> indices;  // [tokens, num_experts_per_tok]
  view<const float, 2> weights;         // [tokens, num_experts_per_tok]
};

struct ignore_routing {
  void operator()(const routing&) const {}
};

template <backend Backend, class Observe = ignore_routing>
void moe(Backend& be, const router_config& router, const moe_weights& w, view<const float, 2> x, view<float, 2> y,
         output mode = output::overwrite, Observe&& observe = {}) {
  const std::size_t tokens = x.extent(0), top_k = router.num_experts_per_tok;
  auto scratch = be.scope();
  const auto logits = scratch.template tensor<float>(tokens, w.gate.extent(0));
  const auto indices = scratch.template tensor<std::int32_t>(tokens, top_k);
  const auto weights = scratch.template tensor<float>(tokens, top_k);
  matmul(be, x, w.gate, logits);
  route(be, router, logits, w.bias, indices, weights);
  observe(routing{logits, indices, weights});
  grouped_ffn(be, x, indices, weights, w.experts, y, mode, w.residency);
  if (w.shared) ffn(be, x, *w.shared, y, output::accumulate);
}

MOTE_END_NAMESPACE
