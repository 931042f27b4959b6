// One linear layer for each entry of a batch (in MLA: for each head).
//
//   y[b, t, n] = Σ_k x[b, t, k] · W[b · out + n, k]
//
// x: [batch, tokens, in], y: [batch, tokens, out], both with any strides but a contiguous last dimension;
// W: [batch · out, in] in any weight format. Numbers as in matmul. Throws shape_error when the shapes differ.
#pragma once

#include "../../core/error.hpp"
#include "../../quant/weight.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend>
void batched_matmul(Backend& be, view<const float, 3> x, const weight& w, view<float, 3> y) {
  check_view("batched_matmul", "x", x, {x.extent(0), x.extent(1), in_features(w)});
  check_rows("batched_matmul", "w", w);
  check(x.extent(0) != 0 && out_features(w) % x.extent(0) == 0, "batched_matmul",
        "w: its rows must be a multiple of the batch");
  check_view("batched_matmul", "y", y, {x.extent(0), x.extent(1), out_features(w) / x.extent(0)});
  batched_matmul_impl(be, x, w, y);
}

MOTE_END_NAMESPACE
