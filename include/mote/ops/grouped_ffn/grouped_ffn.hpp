// The routed part of a mixture of experts: gather, gate and up, SwiGLU, down, weighted scatter, in one op.
//
//   y[t, :] += Σ_k weights[t, k] · FFN_{indices[t, k]}(x[t, :]),   FFN_e(h) = down_e(silu(gate_e h) ⊙ up_e h)
//
// x, y: [tokens, hidden] (y must not overlap x); indices, weights: [tokens, top_k]; experts: one entry each, gate and up
// [intermediate, hidden], down [hidden, intermediate], all of one shape, formats may differ between experts.
// With output::overwrite y is set instead. The slots of a token are added in the order k = 0 … top_k - 1, after which the
// sum is added to y, so that the result depends neither on threads nor on the other tokens. Numbers as in matmul.
// With `residency` the experts need not all be in memory: they are read in groups, each asked for before; the bits are the
// same. Throws shape_error when shapes differ or an index is out of range.
// Source: Dai et al., "DeepSeekMoE" (2024).
#pragma once

#include <cstdint>
#include <span>

#include "../../core/error.hpp"
#include "../../core/output.hpp"
#include "../../quant/weight.hpp"
#include "../group_by_expert/group_by_expert.hpp"
#include "reference.hpp"
#include "residency.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend>
void grouped_ffn(Backend& be, view<const float, 2> x, view<const std::int32_t, 2> indices, view<const float, 2> weights,
                 std::span<const ffn_weights> experts, view<float, 2> y, output mode = output::overwrite,
                 expert_residency* residency = nullptr) {
  check(!experts.empty(), "grouped_ffn", "experts: must not be empty");
  const std::size_t tokens = x.extent(0), hidden = x.extent(1), intermediate = out_features(experts[0].gate);
  check_view("grouped_ffn", "x", x, {tokens, hidden});
  check_view("grouped_ffn", "indices", indices, {tokens, indices.extent(1)});
  check_view("grouped_ffn", "weights", weights, {tokens, indices.extent(1)});
  check_view("grouped_ffn", "y", y, {tokens, hidden});
  const auto check_matrix = [](const char* name, const weight& w, std::size_t out, std::size_t in) {
    const std::size_t shape[] = {out_features(w), in_features(w)};
    check_shape("grouped_ffn", name, shape, {out, in});
    check_rows("grouped_ffn", name, w);
  };
  for (const ffn_weights& expert : experts) {
    check_matrix("gate", expert.gate, intermediate, hidden);
    check_matrix("up", expert.up, intermediate, hidden);
    check_matrix("down", expert.down, hidden, intermediate);
  }
  auto scope = be.scope();
  const auto offsets = scope.template tensor<std::int32_t>(experts.size() + 1);
  const auto slots = scope.template tensor<std::int32_t>(indices.size());
  group_by_expert(be, indices, offsets, slots);
  grouped_ffn_impl(be, x, weights, experts, offsets, slots, y, mode, residency);
}

MOTE_END_NAMESPACE
