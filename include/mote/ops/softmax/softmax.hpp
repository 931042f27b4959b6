// Softmax over the last axis, with the row maximum subtracted first.
//
//   y[r, i] = exp(x[r, i] - max_j x[r, j]) / Σ_k exp(x[r, k] - max_j x[r, j])
//
// x, y: [rows, n], rows may be strided; y may be x. Throws shape_error when the shapes differ.
#pragma once

#include "../../core/error.hpp"
#include "../../core/view.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend>
void softmax(Backend& be, view<const float, 2> x, view<float, 2> y) {
  check_view("softmax", "x", x, {x.extent(0), x.extent(1)});
  check_view("softmax", "y", y, {x.extent(0), x.extent(1)});
  softmax_impl(be, x, y);
}

MOTE_END_NAMESPACE
