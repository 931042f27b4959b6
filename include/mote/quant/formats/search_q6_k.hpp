// The search behind q6_k::encode.
#pragma once

#include <cstdint>

#include "search.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

struct q6_k_fit {
  static constexpr std::size_t groups = 16, group_size = 16, size = groups * group_size;
  f16 d;
  std::int8_t scale[groups], codes[size];
};

// Chooses every scale[g] around `target` for fit.d and returns the block's squared error.
inline float fit_groups(const float* x, const float (&target)[q6_k_fit::groups], q6_k_fit& fit) {
  const float d = static_cast<float>(fit.d), inverse = finite_inverse(d);
  float total = 0.0f;
  for (std::size_t g = 0; g < q6_k_fit::groups; ++g) {
    const int nearest = round_half_away(std::clamp(target[g] * inverse, -128.0f, 127.0f));
    float best = -1.0f;
    for (int scale = std::max(nearest - 1, -128); scale <= std::min(nearest + 1, 127); ++scale) {
      const float s = d * static_cast<float>(scale);
      const integer_round round{finite_inverse(s), 31.0f};
      const float error = error_of<q6_k_fit::group_size>(x + g * q6_k_fit::group_size, s, 0.0f, round).error;
      if (best >= 0.0f && error >= best) continue;
      best = error;
      fit.scale[g] = static_cast<std::int8_t>(scale);
    }
    total += best;
  }
  return total;
}

// d of least squared error for the integers chosen.
inline float refit_super_scale(const float* x, const q6_k_fit& fit) {
  float aa = 0.0f, ax = 0.0f;
  for (std::size_t g = 0; g < q6_k_fit::groups; ++g) {
    const float scale = fit.scale[g];
    const integer_round round{finite_inverse(static_cast<float>(fit.d) * scale), 31.0f};
    const auto sums = sums_of<q6_k_fit::group_size>(x + g * q6_k_fit::group_size, round);
    aa += scale * scale * sums.qq;
    ax += scale * sums.xq;
  }
  return aa > 0.0f ? ax / aa : 0.0f;
}

inline q6_k_fit fit_q6_k(const float* values) {
  constexpr std::size_t groups = q6_k_fit::groups, group_size = q6_k_fit::group_size;
  constexpr float limit = 128.0f * 32.0f * largest_f16;
  q6_k_fit fit{};
  if (largest_magnitude(values, q6_k_fit::size) < negligible) return fit;
  float x[q6_k_fit::size];
  for (std::size_t i = 0; i < q6_k_fit::size; ++i) x[i] = std::clamp(values[i], -limit, limit);

  float target[groups];
  for (std::size_t g = 0; g < groups; ++g) {
    const auto round = [](float inverse) { return integer_round{inverse, 31.0f}; };
    target[g] = fit_scale<group_size>(
        x + g * group_size, {-32.0f, -31.75f, -31.5f, -31.25f, -32.25f, -32.5f, -33.0f, 31.0f, 31.25f, 31.5f}, round);
  }
  const float largest = largest_element(target, groups);
  float error = -1.0f;
  const auto consider = [&](float super) {
    q6_k_fit other = fit;
    other.d = saturated_f16(super);
    if (other.d.bits << 1 == 0) other.d.bits |= 1;  // no integer scale could save the block
    const float other_error = fit_groups(x, target, other);
    const bool better = error < 0.0f || other_error < error;
    if (better) {
      fit = other;
      error = other_error;
    }
    return better;
  };
  // The largest integers that the groups may use.
  for (const float top : {-128.0f, -126.0f, -123.0f, 127.0f}) consider(largest / top);
  consider(refit_super_scale(x, fit));

  for (std::size_t g = 0; g < groups; ++g) {
    const float inverse = finite_inverse(static_cast<float>(fit.d) * fit.scale[g]);
    for (std::size_t i = g * group_size; i < (g + 1) * group_size; ++i) {
      fit.codes[i] = static_cast<std::int8_t>(round_half_away(std::clamp(x[i] * inverse, -32.0f, 31.0f)));
    }
  }
  return fit;
}

}  // namespace detail

MOTE_END_NAMESPACE
