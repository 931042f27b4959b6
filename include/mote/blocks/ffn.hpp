// The SwiGLU feed-forward network.
//
//   FFN(x) = down( silu(gate x) ⊙ (up x) )
//
// x: [tokens, hidden]; y: [tokens, hidden], set or added to. Throws shape_error when the shapes differ.
// Source: Shazeer, "GLU Variants Improve Transformer" (2020).
#pragma once

#include "../core/output.hpp"
#include "../ops/matmul/matmul.hpp"
#include "../ops/swiglu/swiglu.hpp"
#include "../quant/weight.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend>
void ffn(Backend& be, view<const float, 2> x, const ffn_weights& w, view<float, 2> y, output mode = output::overwrite) {
  auto scratch = be.scope();
  const auto gate = scratch.template tensor<float>(x.extent(0), out_features(w.gate));
  const auto up = scratch.template tensor<float>(x.extent(0), out_features(w.up));
  matmul(be, x, w.gate, gate);
  matmul(be, x, w.up, up);
  swiglu(be, gate, up, gate);
  matmul(be, gate, w.down, y, mode);
}

MOTE_END_NAMESPACE
