// Verifying drafted tokens: speculative decoding keeps the target model's distribution exactly.
//
// With draft distributions q_i and target distributions p_i, draft token x_i is accepted if u_i · q_i(x_i) < p_i(x_i). At
// the first rejection the next token is drawn from max(p - q, 0) / Σ; if all are accepted, one more from the last p.
// Greedily, drafts are accepted while they equal argmax p, and the next token is the argmax where that stops.
// Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (2023).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "../core/error.hpp"
#include "../core/view.hpp"

MOTE_BEGIN_NAMESPACE

struct verification {
  std::size_t accepted = 0;     // drafts kept
  std::int32_t next_token = 0;  // the token after them
};

// draft: [n] tokens; draft_probs: [n, vocab], q; target_probs: [n + 1, vocab], p; uniforms: [n]; residual_uniforms: [n + 1],
// the number that draws the next token after i accepted drafts. Draws take the first index whose cumulative sum is at
// least u. Throws shape_error when shapes differ or a draft token is out of range.
inline verification verify_draft(std::span<const std::int32_t> draft, view<const float, 2> draft_probs,
                                 view<const float, 2> target_probs, std::span<const float> uniforms,
                                 std::span<const float> residual_uniforms) {
  const std::size_t n = draft.size(), vocab = target_probs.extent(1);
  check(vocab > 0, "verify_draft", "target_probs: expected a vocabulary");
  check_shape("verify_draft", "draft_probs", draft_probs.extents(), {n, vocab});
  check_shape("verify_draft", "target_probs", target_probs.extents(), {n + 1, vocab});
  check(uniforms.size() == n && residual_uniforms.size() == n + 1, "verify_draft", "uniforms: expected n and n + 1");
  verification result;
  for (const std::int32_t token : draft) {
    check(token >= 0 && static_cast<std::size_t>(token) < vocab, "verify_draft", "draft: token outside the vocabulary");
  }
  while (result.accepted < n) {
    const std::size_t i = result.accepted, token = static_cast<std::size_t>(draft[i]);
    const double p = static_cast<double>(target_probs(i, token)), q = static_cast<double>(draft_probs(i, token));
    if (!(static_cast<double>(uniforms[i]) * q < p)) break;
    ++result.accepted;
  }
  const std::size_t row = result.accepted;
  bool subtract = row < n;
  const auto residual = [&](std::size_t v) {
    const double p = static_cast<double>(target_probs(row, v));
    return subtract ? std::max(p - static_cast<double>(draft_probs(row, v)), 0.0) : p;
  };
  const auto sum = [&] {
    double total = 0.0;
    for (std::size_t v = 0; v < vocab; ++v) total += residual(v);
    return total;
  };
  double total = sum();
  if (!(total > 0.0)) {  // p and q differ by rounding alone
    subtract = false;
    total = sum();
  }
  const double u = static_cast<double>(residual_uniforms[row]);
  double cumulative = 0.0;
  std::size_t chosen = 0;
  for (std::size_t v = 0; v < vocab; ++v) {
    const double r = residual(v);
    if (r > 0.0) chosen = v;  // rounding may keep the sum below u: then the last possible token
    cumulative += r / total;
    if (cumulative >= u && r > 0.0) break;
  }
  result.next_token = static_cast<std::int32_t>(chosen);
  return result;
}

// The greedy rule on target logits or probabilities [n + 1, vocab]; ties to the lower token.
inline verification verify_draft_greedy(std::span<const std::int32_t> draft, view<const float, 2> target) {
  check_view("verify_draft_greedy", "target", target, {draft.size() + 1, target.extent(1)});
  check(target.extent(1) > 0, "verify_draft_greedy", "target: expected a vocabulary");
  verification result;
  for (;; ++result.accepted) {
    const float* row = target.row(result.accepted);
    result.next_token = static_cast<std::int32_t>(std::max_element(row, row + target.extent(1)) - row);
    if (result.accepted == draft.size() || draft[result.accepted] != result.next_token) return result;
  }
}

MOTE_END_NAMESPACE
