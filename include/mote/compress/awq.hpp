// AWQ: activation-aware weight quantization. Channels with large activations matter most; multiplied by s > 1 before the
// weight is rounded, and divided after, they lose less. For channel c
//
//   s_c = (mean|x_c|)^α / sqrt(max s · min s),    α ∈ {0, 1/20, …, 1} of least ‖(W - Q(W diag(s)) diag(1/s)) X‖
//
// α = 0 is no scaling. Channels never seen keep s_c = 1.
// Source: Lin et al., AWQ (2023), arXiv:2306.00978.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "../core/backend.hpp"
#include "../core/error.hpp"
#include "../core/view.hpp"
#include "channel_scale.hpp"
#include "grid.hpp"
#include "output_error.hpp"
#include "statistics.hpp"

MOTE_BEGIN_NAMESPACE

struct awq_scale {
  float alpha = 0.0f;
  std::vector<float> scale;  // [in]
  double error = 0.0;        // what `error` returned for it
  double plain_error = 0.0;  // … and for no scaling
};

// The s that awq rounds with at one α.
inline std::vector<float> awq_scale_of(const view<const float, 1>& mean_abs, float alpha) {
  std::vector<float> s(mean_abs.extent(0), 1.0f);
  float low = std::numeric_limits<float>::max(), high = 0.0f;
  for (std::size_t c = 0; c < s.size(); ++c) {
    if (!(mean_abs(c) > 0.0f)) continue;
    s[c] = std::max(std::pow(mean_abs(c), alpha), 1e-4f);
    low = std::min(low, s[c]);
    high = std::max(high, s[c]);
  }
  const float middle = std::sqrt(low) * std::sqrt(high);
  for (std::size_t c = 0; c < s.size(); ++c) {
    if (mean_abs(c) > 0.0f) s[c] /= middle;
  }
  return s;
}

// The best s for any error(view<const float, 1> s) -> double: that of several weights that read the same inputs, or of a
// whole block. Equal errors take the smaller α.
template <class Error>
awq_scale search_awq_scale(const view<const float, 1>& mean_abs, Error&& error) {
  constexpr int steps = 20;
  awq_scale best;
  for (int step = 0; step <= steps; ++step) {
    const float alpha = static_cast<float>(step) / steps;
    std::vector<float> s = awq_scale_of(mean_abs, alpha);
    const double e = error(view<const float, 1>(s));
    if (step == 0) best.plain_error = e;
    if (step == 0 || e < best.error) best = {alpha, std::move(s), e, best.plain_error};
  }
  return best;
}

// One weight w [out, in]: codes of W diag(s) in `grid`, and Q(W diag(s)) diag(1/s) in quantized [out, in], which must not
// overlap w. Throws shape_error, also when a value is not finite.
template <host Backend, rounding_grid Grid>
awq_scale awq(Backend& be, const view<const float, 2>& w, const activation_statistics& statistics, Grid& grid,
              const view<float, 2>& quantized) {
  detail::check_grid(be, "awq", w, grid, quantized);
  check(statistics.in_features() == w.extent(1), "awq", "statistics: their channels differ from the columns");
  const auto round = [&](const view<const float, 1>& s) {
    scale_columns(w, s, quantized);
    round_to_nearest(be, quantized, grid, quantized);
    divide_columns(quantized, s);
  };
  const awq_scale best = search_awq_scale(statistics.mean_abs(), [&](const view<const float, 1>& s) {
    round(s);
    return measure_output_error(be, w, quantized, statistics).error;
  });
  round(best.scale);
  return best;
}

MOTE_END_NAMESPACE
