// Root mean square normalisation.
//
//   y[t, i] = gain[i] · x[t, i] / sqrt(mean_j x[t, j]² + eps)
//
// x, y: [tokens, hidden], rows may be strided, y may be x; gain: [hidden], a checkpoint's `weight`, or empty for the
// unweighted form.
// Accumulated in float32. Throws shape_error when the shapes differ.
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019); DeepSeek-V3 model code.
#pragma once

#include "../../core/error.hpp"
#include "../../core/view.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend>
void rms_norm(Backend& be, view<const float, 2> x, view<const float, 1> gain, float eps, view<float, 2> y) {
  if (!gain.empty()) check_view("rms_norm", "gain", gain, {x.extent(1)});
  check_view("rms_norm", "x", x, {x.extent(0), x.extent(1)});
  check_view("rms_norm", "y", y, {x.extent(0), x.extent(1)});
  rms_norm_impl(be, x, gain, eps, y);
}

MOTE_END_NAMESPACE
