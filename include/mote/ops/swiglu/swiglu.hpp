// Gated activation of the feed-forward network.
//
//   y[t, i] = silu(gate[t, i]) · up[t, i],   silu(a) = a / (1 + exp(-a))
//
// gate, up, y: [tokens, intermediate], rows may be strided; y may be gate or up. Throws shape_error when shapes differ.
// Source: Shazeer, "GLU Variants Improve Transformer" (2020).
#pragma once

#include "../../core/error.hpp"
#include "../../core/view.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend>
void swiglu(Backend& be, view<const float, 2> gate, view<const float, 2> up, view<float, 2> y) {
  check_view("swiglu", "gate", gate, {gate.extent(0), gate.extent(1)});
  check_view("swiglu", "up", up, {gate.extent(0), gate.extent(1)});
  check_view("swiglu", "y", y, {gate.extent(0), gate.extent(1)});
  swiglu_impl(be, gate, up, y);
}

MOTE_END_NAMESPACE
