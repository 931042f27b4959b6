// The search behind q4_k::encode.
#pragma once

#include <cstdint>

#include "search.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

struct q4_k_fit {
  static constexpr std::size_t groups = 8, group_size = 32, size = groups * group_size;
  f16 d, dmin;
  std::uint8_t scale[groups], min[groups], codes[size];
};

// The f16 nearest to x >= 0; not zero unless x is: then no integer scale could save the group.
inline f16 positive_f16(float x) {
  const f16 y = saturated_f16(x);
  return y.bits == 0 && x > 0.0f ? f16::from_bits(1) : y;
}

inline int six_bits(float x) { return static_cast<int>(std::clamp(x + 0.5f, 0.0f, 63.0f)); }

// Chooses scale[g] and min[g] around `target`, with d and dmin given; returns the group's squared error.
inline float fit_group(const float* x, std::size_t g, const affine& target, q4_k_fit& fit) {
  constexpr float n = q4_k_fit::group_size;
  const float d = static_cast<float>(fit.d), dmin = static_cast<float>(fit.dmin);
  const float inverse_dmin = finite_inverse(dmin);
  float x_sum = 0.0f;
  for (std::size_t i = 0; i < q4_k_fit::group_size; ++i) x_sum += x[i];
  float best = -1.0f;
  // Takes this pair if it is the best so far; returns the minimum that suits its codes best.
  const auto consider = [&](int scale, int min) {
    const float s = d * static_cast<float>(scale), m = dmin * static_cast<float>(min);
    const auto result = error_of<q4_k_fit::group_size>(x, s, m, affine_round{finite_inverse(s), m, 15.0f});
    if (best < 0.0f || result.error < best) {
      best = result.error;
      fit.scale[g] = static_cast<std::uint8_t>(scale);
      fit.min[g] = static_cast<std::uint8_t>(min);
    }
    return six_bits((s * result.q - x_sum) / n * inverse_dmin);
  };
  const int scale = six_bits(target.scale * finite_inverse(d)), min = six_bits(target.min * inverse_dmin);
  for (int s = std::max(scale - 1, 0); s <= std::min(scale + 1, 63); ++s) {
    const int centre = consider(s, min);
    for (int m = std::max(centre - 1, 0); m <= std::min(centre + 1, 63); ++m) {
      if (m != min) consider(s, m);
    }
  }
  return best;
}

// d and dmin of least squared error for the integers chosen: Σ (d a - dmin b - x)², a = scale · code, b = min.
inline affine refit_super_scales(const float* x, const q4_k_fit& fit) {
  float aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
  for (std::size_t g = 0; g < q4_k_fit::groups; ++g) {
    const float* group = x + g * q4_k_fit::group_size;
    const float scale = fit.scale[g], min = fit.min[g];
    const float s = static_cast<float>(fit.d) * scale, m = static_cast<float>(fit.dmin) * min;
    const auto sums = sums_of<q4_k_fit::group_size>(group, affine_round{finite_inverse(s), m, 15.0f});
    float x_sum = 0.0f;
    for (std::size_t i = 0; i < q4_k_fit::group_size; ++i) x_sum += group[i];
    aa += scale * scale * sums.qq;
    ab += scale * min * sums.q;
    bb += min * min * static_cast<float>(q4_k_fit::group_size);
    ax += scale * sums.xq;
    bx += min * x_sum;
  }
  const float determinant = aa * bb - ab * ab;
  if (determinant > 1e-6f * aa * bb) return {(ax * bb - ab * bx) / determinant, (ab * ax - aa * bx) / determinant};
  return {aa > 0.0f ? ax / aa : 0.0f, 0.0f};
}

inline q4_k_fit fit_q4_k(const float* values) {
  constexpr std::size_t groups = q4_k_fit::groups, group_size = q4_k_fit::group_size;
  constexpr float limit = 63.0f * 15.0f * largest_f16;
  q4_k_fit fit{};
  if (largest_magnitude(values, q4_k_fit::size) < negligible) return fit;
  float x[q4_k_fit::size];
  for (std::size_t i = 0; i < q4_k_fit::size; ++i) x[i] = std::clamp(values[i], -limit, limit);

  affine target[groups];
  affine largest;
  for (std::size_t g = 0; g < groups; ++g) {
    target[g] = fit_affine<group_size>(x + g * group_size, 15.0f);
    largest.scale = std::max(largest.scale, target[g].scale);
    largest.min = std::max(largest.min, target[g].min);
  }
  float error = -1.0f;
  const auto consider = [&](const affine& super) {
    q4_k_fit other = fit;
    other.d = positive_f16(super.scale);
    other.dmin = positive_f16(super.min);
    float other_error = 0.0f;
    for (std::size_t g = 0; g < groups; ++g) other_error += fit_group(x + g * group_size, g, target[g], other);
    const bool better = error < 0.0f || other_error < error;
    if (better) {
      fit = other;
      error = other_error;
    }
    return better;
  };
  // The largest integers that the groups may use.
  for (const float top : {63.0f, 61.0f, 58.0f}) consider({largest.scale / top, largest.min / top});
  for (int round = 0; round < 2; ++round) {
    const affine super = refit_super_scales(x, fit);
    if (!(super.scale > 0.0f && super.min >= 0.0f && consider(super))) break;
  }

  for (std::size_t g = 0; g < groups; ++g) {
    const float scale = static_cast<float>(fit.d) * fit.scale[g], min = static_cast<float>(fit.dmin) * fit.min[g];
    const float inverse = finite_inverse(scale);
    for (std::size_t i = g * group_size; i < (g + 1) * group_size; ++i) {
      fit.codes[i] = static_cast<std::uint8_t>(std::clamp((x[i] + min) * inverse + 0.5f, 0.0f, 15.0f));
    }
  }
  return fit;
}

}  // namespace detail

MOTE_END_NAMESPACE
