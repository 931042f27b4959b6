// SmoothQuant: activations with a few channels far larger than the others round badly to int8 per token, weights do not;
// so part of those channels' magnitude moves into the weights. For channel j of inputs X and of the weights W that read it
//
//   s_j = max|X_j|^α / max|W_j|^(1-α),    W ← W diag(s),  X ← X diag(1/s)
//
// α = 0.5 shares the difficulty evenly; larger α takes more of it off the activations. Channels never seen, or whose
// weights are all zero, keep s_j = 1.
// Source: Xiao et al., SmoothQuant (2022), arXiv:2211.10438.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "../core/error.hpp"
#include "../core/view.hpp"
#include "channel_scale.hpp"

MOTE_BEGIN_NAMESPACE

// s from max|X_j| (activation_statistics::absmax) and max|W_j| (update_column_absmax). Throws shape_error unless the
// shapes agree and 0 <= alpha <= 1.
inline std::vector<float> smoothing_scale(const view<const float, 1>& x_absmax, const view<const float, 1>& w_absmax,
                                          float alpha = 0.5f) {
  check_view("smoothing_scale", "w_absmax", w_absmax, {x_absmax.extent(0)});
  check(alpha >= 0.0f && alpha <= 1.0f, "smoothing_scale", "alpha: expected 0 to 1");
  std::vector<float> s(x_absmax.extent(0), 1.0f);
  for (std::size_t j = 0; j < s.size(); ++j) {
    if (!(x_absmax(j) > 0.0f && w_absmax(j) > 0.0f)) continue;
    s[j] = std::pow(x_absmax(j), alpha) / std::pow(w_absmax(j), 1.0f - alpha);
  }
  return s;
}

MOTE_END_NAMESPACE
