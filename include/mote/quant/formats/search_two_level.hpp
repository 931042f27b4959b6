// The search behind the encoders of formats of two levels without a minimum (Q3_K, Q6_K, IQ4_XS).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "search.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Integers from -Largest - 1 to Largest.
template <int Largest>
struct integer_codes {
  static constexpr float largest = Largest + 1;  // of the numbers' magnitudes
  // Of fit_scale.
  static constexpr std::array<float, 10> peaks = [] {
    std::array<float, 10> values{-0.0f, 0.25f, 0.5f, 0.75f, -0.25f, -0.5f, -1.0f};
    for (float& v : values) v -= largest;
    for (std::size_t i = 0; i < 3; ++i) values[7 + i] = static_cast<float>(Largest) + 0.25f * static_cast<float>(i);
    return values;
  }();
  static integer_round round(float inverse) { return {inverse, static_cast<float>(Largest)}; }
  static int nearest(float x) { return round_half_away(std::clamp(x, -largest, largest - 1.0f)); }
};

// A block as integers: value = d · scale[group] · (the number of code), scales from -LargestScale - 1 to LargestScale.
template <std::size_t Groups, std::size_t GroupSize, int LargestScale, class Codes>
struct two_level_fit {
  static constexpr std::size_t size = Groups * GroupSize;
  f16 d;
  std::int8_t scale[Groups], codes[size];

  // The fit to x[size].
  explicit two_level_fit(const float* values) : two_level_fit() {
    constexpr float limit = static_cast<float>(LargestScale + 1) * Codes::largest * largest_f16;
    if (largest_magnitude(values, size) < negligible) return;
    float x[size];
    for (std::size_t i = 0; i < size; ++i) x[i] = std::clamp(values[i], -limit, limit);

    float target[Groups];
    for (std::size_t g = 0; g < Groups; ++g) {
      target[g] = fit_scale<GroupSize>(x + g * GroupSize, Codes::peaks, Codes::round);
    }
    const float largest = largest_element(target, Groups);
    float error = -1.0f;
    const auto consider = [&](float super) {
      two_level_fit other = *this;
      other.d = saturated_f16(super);
      if (other.d.bits << 1 == 0) other.d.bits |= 1;  // no integer scale could save the block
      const float other_error = other.fit_groups(x, target);
      const bool better = error < 0.0f || other_error < error;
      if (better) {
        *this = other;
        error = other_error;
      }
      return better;
    };
    // The largest integers that the groups may use, as -128, -126, -123 and 127 of 128.
    constexpr float top = LargestScale + 1;
    for (const float part : {-top, -126.0f / 128.0f * top, -123.0f / 128.0f * top, top - 1.0f}) {
      consider(largest / part);
    }
    consider(refitted(x));

    for (std::size_t g = 0; g < Groups; ++g) {
      const float inverse = finite_inverse(static_cast<float>(d) * scale[g]);
      for (std::size_t i = g * GroupSize; i < (g + 1) * GroupSize; ++i) {
        codes[i] = static_cast<std::int8_t>(Codes::nearest(x[i] * inverse));
      }
    }
  }

 private:
  two_level_fit() : d(), scale(), codes() {}

  // Chooses every scale[g] around `target` for d and returns the block's squared error.
  float fit_groups(const float* x, const float (&target)[Groups]) {
    constexpr int least = -LargestScale - 1;
    const float super = static_cast<float>(d), inverse = finite_inverse(super);
    float total = 0.0f;
    for (std::size_t g = 0; g < Groups; ++g) {
      const int nearest =
          round_half_away(std::clamp(target[g] * inverse, static_cast<float>(least), static_cast<float>(LargestScale)));
      float best = -1.0f;
      for (int s = std::max(nearest - 1, least); s <= std::min(nearest + 1, LargestScale); ++s) {
        const float group_scale = super * static_cast<float>(s);
        const auto round = Codes::round(finite_inverse(group_scale));
        const float error = error_of<GroupSize>(x + g * GroupSize, group_scale, 0.0f, round).error;
        if (best >= 0.0f && error >= best) continue;
        best = error;
        scale[g] = static_cast<std::int8_t>(s);
      }
      total += best;
    }
    return total;
  }

  // d of least squared error for the integers chosen.
  float refitted(const float* x) const {
    float aa = 0.0f, ax = 0.0f;
    for (std::size_t g = 0; g < Groups; ++g) {
      const float s = scale[g];
      const auto sums = sums_of<GroupSize>(x + g * GroupSize, Codes::round(finite_inverse(static_cast<float>(d) * s)));
      aa += s * s * sums.qq;
      ax += s * sums.xq;
    }
    return aa > 0.0f ? ax / aa : 0.0f;
  }
};

}  // namespace detail

MOTE_END_NAMESPACE
