// Adds one vector to every row: y[t, i] += bias[i].
//
// y: [tokens, n], rows may be strided; bias: [n]. Throws shape_error when the shapes differ.
#pragma once

#include "../../core/error.hpp"
#include "../../core/view.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend>
void add_bias(Backend& be, view<const float, 1> bias, view<float, 2> y) {
  check_view("add_bias", "bias", bias, {y.extent(1)});
  check_view("add_bias", "y", y, {y.extent(0), y.extent(1)});
  add_bias_impl(be, bias, y);
}

MOTE_END_NAMESPACE
