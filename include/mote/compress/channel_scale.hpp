// Scaling channels between a layer and what comes before it: for positive s [in],
//
//   W x = (W diag(s)) (diag(1/s) x)
//
// W diag(s) is what gets quantized; diag(1/s) goes into the norm's weight before the layer, or into the rows of the linear
// layer before it (up_proj before down_proj), or stays as a scale of its own. Every layer that reads x must be scaled.
// Used by SmoothQuant (smoothquant.hpp) and AWQ (awq.hpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "../core/error.hpp"
#include "../core/view.hpp"

MOTE_BEGIN_NAMESPACE

// scaled[n, c] = w[n, c] s[c]; scaled may be w. Throws shape_error.
inline void scale_columns(const view<const float, 2>& w, const view<const float, 1>& s, const view<float, 2>& scaled) {
  check_view("scale_columns", "s", s, {w.extent(1)});
  check_view("scale_columns", "scaled", scaled, {w.extent(0), w.extent(1)});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t c = 0; c < w.extent(1); ++c) scaled(n, c) = w(n, c) * s(c);
  }
}

// Divides columns by s: undoes scale_columns. Throws shape_error.
inline void divide_columns(const view<float, 2>& w, const view<const float, 1>& s) {
  check_view("divide_columns", "s", s, {w.extent(1)});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t c = 0; c < w.extent(1); ++c) w(n, c) /= s(c);
  }
}

// Folds diag(1/s) into the weight of a norm, norm [in]. Throws shape_error.
inline void divide_norm(const view<float, 1>& norm, const view<const float, 1>& s) {
  check_view("divide_norm", "s", s, {norm.extent(0)});
  for (std::size_t c = 0; c < norm.extent(0); ++c) norm(c) /= s(c);
}

// Folds diag(1/s) into the linear layer before, w [in of the next, …]. Throws shape_error.
inline void divide_rows(const view<float, 2>& w, const view<const float, 1>& s) {
  check_view("divide_rows", "s", s, {w.extent(0)});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t c = 0; c < w.extent(1); ++c) w(n, c) /= s(n);
  }
}

// absmax[c] = max(absmax[c], max_n |w[n, c]|): call it for each of the weights that read the same inputs.
inline void update_column_absmax(const view<const float, 2>& w, const view<float, 1>& absmax) {
  check_view("update_column_absmax", "absmax", absmax, {w.extent(1)});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t c = 0; c < w.extent(1); ++c) absmax(c) = std::max(absmax(c), std::fabs(w(n, c)));
  }
}

MOTE_END_NAMESPACE
