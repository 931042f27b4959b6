// How a router turns logits into experts and weights.
#pragma once

#include <cstddef>
#include <string>

#include "../../core/error.hpp"

MOTE_BEGIN_NAMESPACE

// Names as `scoring_func` and `topk_method` of config.json.
enum class scoring_func { softmax, sigmoid };
enum class topk_method { greedy, group_limited_greedy, noaux_tc };

struct router_config {
  scoring_func scoring = scoring_func::softmax;
  topk_method method = topk_method::greedy;
  std::size_t num_experts_per_tok = 1;
  std::size_t n_group = 1;
  std::size_t topk_group = 1;
  bool norm_topk_prob = false;
  float routed_scaling_factor = 1.0f;
};

// Throws shape_error naming the field unless the configuration fits `experts`.
inline void check_router(const router_config& c, std::size_t experts) {
  const auto fail = [&](const std::string& message) { raise<shape_error>("route: " + message); };
  if (c.num_experts_per_tok == 0 || c.num_experts_per_tok > experts) {
    fail("num_experts_per_tok: expected 1 to " + std::to_string(experts) + " (the experts), got " +
         std::to_string(c.num_experts_per_tok));
  }
  if (c.method == topk_method::greedy) return;
  if (c.n_group == 0 || experts % c.n_group != 0) {
    fail("n_group: expected a divisor of " + std::to_string(experts) + " experts, got " + std::to_string(c.n_group));
  }
  if (c.topk_group == 0 || c.topk_group > c.n_group) {
    fail("topk_group: expected 1 to " + std::to_string(c.n_group) + " (n_group), got " + std::to_string(c.topk_group));
  }
  if (c.num_experts_per_tok > experts / c.n_group * c.topk_group) {
    fail("num_experts_per_tok: " + std::to_string(c.num_experts_per_tok) + " exceeds the " +
         std::to_string(experts / c.n_group * c.topk_group) + " experts of topk_group groups");
  }
}

MOTE_END_NAMESPACE
