// Frequencies of rotary position embeddings, with YaRN's extension to longer contexts.
//
//   θ_i = base^(-2i/d),  i = 0 … d/2-1;   angle of position p and pair i: p · θ_i
//
// YaRN with s = factor, L = original_max_position_embeddings:
//   corr(r) = d · ln(L / (2π r)) / (2 ln base);  lo = corr(beta_fast), hi = corr(beta_slow), floored and raised to whole
//   numbers if `truncate`; lo = max(lo, 0), hi = min(hi, d-1), and hi += 0.001 when both are equal
//   ramp_i = clamp((i - lo) / (hi - lo), 0, 1);   θ'_i = θ_i/s · ramp_i + θ_i · (1 - ramp_i)
//   m(k) = 1 if s <= 1 else 0.1 k ln s + 1
//   attention_factor = m(mscale) / m(mscale_all_dim) if both are non-zero, else m(1), unless given;
//   the softmax scale of MLA is multiplied by m(mscale_all_dim)² if mscale_all_dim is non-zero.
//
// Source: Su et al., "RoFormer" (2021); Peng et al., "YaRN" (2023); DeepSeek-V2 and V3 model code.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <optional>
#include <vector>

#include "../../core/error.hpp"

MOTE_BEGIN_NAMESPACE

// The `rope_scaling` object of a config.json whose type is "yarn".
struct yarn_scaling {
  double factor = 1.0;
  double original_max_position_embeddings = 4096.0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale = 0.0;
  double mscale_all_dim = 0.0;
  std::optional<double> attention_factor;
  bool truncate = true;

  // m(k): the growth of attention logits with the context's extension.
  double magnitude(double k) const { return factor <= 1.0 ? 1.0 : 0.1 * k * std::log(factor) + 1.0; }
};

struct rope_frequencies {
  std::vector<float> inv_freq;      // [dim / 2], θ_i
  float attention_factor = 1.0f;    // multiplies cos and sin
  float softmax_multiplier = 1.0f;  // multiplies the softmax scale of MLA
};

// Frequencies for `dim` rotated channels. Throws shape_error when dim is odd or zero or base is not above 1.
inline rope_frequencies make_rope_frequencies(std::size_t dim, double base,
                                              const std::optional<yarn_scaling>& yarn = std::nullopt) {
  check(dim > 0 && dim % 2 == 0, "rope", "dim: must be even and positive");
  check(base > 1.0, "rope", "base: must be above 1");
  const double d = static_cast<double>(dim);
  rope_frequencies f;
  f.inv_freq.resize(dim / 2);
  for (std::size_t i = 0; i < dim / 2; ++i) {
    f.inv_freq[i] = static_cast<float>(std::pow(base, -2.0 * static_cast<double>(i) / d));
  }
  if (!yarn) return f;

  const auto correction = [&](double rotations) {
    return d * std::log(yarn->original_max_position_embeddings / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(base));
  };
  double lo = correction(yarn->beta_fast), hi = correction(yarn->beta_slow);
  if (yarn->truncate) {
    lo = std::floor(lo);
    hi = std::ceil(hi);
  }
  lo = std::max(lo, 0.0);
  hi = std::min(hi, d - 1.0);
  if (lo == hi) hi += 0.001;
  for (std::size_t i = 0; i < dim / 2; ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - lo) / (hi - lo), 0.0, 1.0);
    const double theta = std::pow(base, -2.0 * static_cast<double>(i) / d);
    f.inv_freq[i] = static_cast<float>(theta / yarn->factor * ramp + theta * (1.0 - ramp));
  }
  if (yarn->attention_factor) {
    f.attention_factor = static_cast<float>(*yarn->attention_factor);
  } else if (yarn->mscale != 0.0 && yarn->mscale_all_dim != 0.0) {
    f.attention_factor = static_cast<float>(yarn->magnitude(yarn->mscale) / yarn->magnitude(yarn->mscale_all_dim));
  } else {
    f.attention_factor = static_cast<float>(yarn->magnitude(1.0));
  }
  if (yarn->mscale_all_dim != 0.0) {
    const double m = yarn->magnitude(yarn->mscale_all_dim);
    f.softmax_multiplier = static_cast<float>(m * m);
  }
  return f;
}

MOTE_END_NAMESPACE
