// Dense linear layer.
//
//   y[t, n] = Σ_k x[t, k] · W[n, k]            (output::overwrite)
//   y[t, n] += Σ_k x[t, k] · W[n, k]           (output::accumulate)
//
// x: [tokens, in] float32, rows may be strided; W: [out, in], a `weight` (quant/weight.hpp) or a matrix of any one form;
// y: [tokens, out], rows may be strided, must not overlap x.
//
//   float32, bf16, f16   products and sums in float32
//   scaled (fp8 …)       each number rounded to float32, scale · (code - zero), then as float32: the same bits
//   int8                 x is quantized to int8 per token; y = scale_x · scale_w · Σ q_x q_w, the sum exact in int32, of at
//                        most 131072 columns
//   packed bf16          x is rounded to bf16, sums in float32
//   integer formats      x is quantized to int8 in blocks of 32; each group's sum is exact in int32, then scaled and added
//                        (nvfp4: at the end times the tensor's scale)
//   other block formats  decoded, then as float32
//
// A token's result does not depend on the other tokens or on the number of threads.
// Throws shape_error when the shapes differ, or int8 has more columns.
#pragma once

#include "../../core/error.hpp"
#include "../../core/output.hpp"
#include "../../quant/weight.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend, matrix Matrix>
void matmul(Backend& be, view<const float, 2> x, const Matrix& w, view<float, 2> y, output mode = output::overwrite) {
  check_view("matmul", "x", x, {x.extent(0), in_features(w)});
  check_rows("matmul", "w", w);
  check_view("matmul", "y", y, {x.extent(0), out_features(w)});
  matmul_impl(be, x, w, y, mode);
}

template <backend Backend>
void matmul(Backend& be, view<const float, 2> x, const weight& w, view<float, 2> y, output mode = output::overwrite) {
  check_view("matmul", "x", x, {x.extent(0), in_features(w)});
  check_rows("matmul", "w", w);
  check_view("matmul", "y", y, {x.extent(0), out_features(w)});
  matmul_impl(be, x, w, y, mode);
}

MOTE_END_NAMESPACE
