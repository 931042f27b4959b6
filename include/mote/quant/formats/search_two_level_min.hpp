// The search behind the encoders of formats of two levels with a minimum (Q2_K, Q4_K, Q5_K).
#pragma once

#include <cstddef>
#include <cstdint>

#include "search.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// The f16 nearest to x >= 0; not zero unless x is: then no integer scale could save the group.
inline f16 positive_f16(float x) {
  const f16 y = saturated_f16(x);
  return y.bits == 0 && x > 0.0f ? f16::from_bits(1) : y;
}

// A block as integers: value = d · scale[group] · code - dmin · min[group], codes from 0 to LargestCode, scales and minima from
// 0 to LargestScale.
template <std::size_t Groups, std::size_t GroupSize, int LargestCode, int LargestScale>
struct two_level_min_fit {
  static constexpr std::size_t size = Groups * GroupSize;
  static constexpr float largest_code = LargestCode, largest_scale = LargestScale;
  f16 d, dmin;
  std::uint8_t scale[Groups], min[Groups], codes[size];

  // The fit to x[size].
  explicit two_level_min_fit(const float* values) : two_level_min_fit() {
    constexpr float limit = largest_scale * largest_code * largest_f16;
    if (largest_magnitude(values, size) < negligible) return;
    float x[size];
    for (std::size_t i = 0; i < size; ++i) x[i] = std::clamp(values[i], -limit, limit);

    affine target[Groups];
    affine largest;
    for (std::size_t g = 0; g < Groups; ++g) {
      target[g] = fit_affine<GroupSize>(x + g * GroupSize, largest_code);
      largest.scale = std::max(largest.scale, target[g].scale);
      largest.min = std::max(largest.min, target[g].min);
    }
    float error = -1.0f;
    const auto consider = [&](const affine& super) {
      two_level_min_fit other = *this;
      other.d = positive_f16(super.scale);
      other.dmin = positive_f16(super.min);
      float other_error = 0.0f;
      for (std::size_t g = 0; g < Groups; ++g) other_error += other.fit_group(x + g * GroupSize, g, target[g]);
      const bool better = error < 0.0f || other_error < error;
      if (better) {
        *this = other;
        error = other_error;
      }
      return better;
    };
    // The largest integers that the groups may use, as 63, 61 and 58 of 63.
    for (const float spared : {0.0f, 2.0f, 5.0f}) {
      const float top = largest_scale - spared * largest_scale / 63.0f;
      consider({largest.scale / top, largest.min / top});
    }
    for (int round = 0; round < 2; ++round) {
      const affine super = refitted(x);
      if (!(super.scale > 0.0f && super.min >= 0.0f && consider(super))) break;
    }
    set_codes(x);
  }

 private:
  two_level_min_fit() : d(), dmin(), scale(), min(), codes() {}

  static int integer(float x) { return static_cast<int>(std::clamp(x + 0.5f, 0.0f, largest_scale)); }
  static float sum(const float* x) {
    float sum = 0.0f;
    for (std::size_t i = 0; i < GroupSize; ++i) sum += x[i];
    return sum;
  }

  // Chooses scale[g] and min[g] around `target`, with d and dmin given; returns the group's squared error.
  float fit_group(const float* x, std::size_t g, const affine& target) {
    constexpr float n = GroupSize;
    const float super = static_cast<float>(d), super_min = static_cast<float>(dmin);
    const float inverse_min = finite_inverse(super_min);
    const float x_sum = sum(x);
    float best = -1.0f;
    // Takes this pair if it is the best so far; returns the minimum that suits its codes best.
    const auto consider = [&](int group_scale, int group_min) {
      const float s = super * static_cast<float>(group_scale), m = super_min * static_cast<float>(group_min);
      const auto result = error_of<GroupSize>(x, s, m, affine_round{finite_inverse(s), m, largest_code});
      if (best < 0.0f || result.error < best) {
        best = result.error;
        scale[g] = static_cast<std::uint8_t>(group_scale);
        min[g] = static_cast<std::uint8_t>(group_min);
      }
      return integer((s * result.q - x_sum) / n * inverse_min);
    };
    const int nearest = integer(target.scale * finite_inverse(super)), nearest_min = integer(target.min * inverse_min);
    for (int s = std::max(nearest - 1, 0); s <= std::min(nearest + 1, LargestScale); ++s) {
      const int centre = consider(s, nearest_min);
      for (int m = std::max(centre - 1, 0); m <= std::min(centre + 1, LargestScale); ++m) {
        if (m != nearest_min) consider(s, m);
      }
    }
    return best;
  }

  // d and dmin of least squared error for the integers chosen: Σ (d a - dmin b - x)², a = scale · code, b = min.
  affine refitted(const float* x) const {
    float aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
    for (std::size_t g = 0; g < Groups; ++g) {
      const float* group = x + g * GroupSize;
      const float a = scale[g], b = min[g];
      const float s = static_cast<float>(d) * a, m = static_cast<float>(dmin) * b;
      const auto sums = sums_of<GroupSize>(group, affine_round{finite_inverse(s), m, largest_code});
      aa += a * a * sums.qq;
      ab += a * b * sums.q;
      bb += b * b * static_cast<float>(GroupSize);
      ax += a * sums.xq;
      bx += b * sum(group);
    }
    const float determinant = aa * bb - ab * ab;
    if (determinant > 1e-6f * aa * bb) return {(ax * bb - ab * bx) / determinant, (ab * ax - aa * bx) / determinant};
    return {aa > 0.0f ? ax / aa : 0.0f, 0.0f};
  }

  void set_codes(const float* x) {
    for (std::size_t g = 0; g < Groups; ++g) {
      const float s = static_cast<float>(d) * scale[g], m = static_cast<float>(dmin) * min[g];
      const float inverse = finite_inverse(s);
      for (std::size_t i = g * GroupSize; i < (g + 1) * GroupSize; ++i) {
        codes[i] = static_cast<std::uint8_t>(std::clamp((x[i] + m) * inverse + 0.5f, 0.0f, largest_code));
      }
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE
