// Scales that lose least: encoders of formats without a published rule try several ways to round a group of elements to
// its integers q, and take for each the scale (and minimum) of least squared error, which has a closed form.
#pragma once

#include <algorithm>
#include <cstddef>

#include "../../core/simd.hpp"
#include "bits.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

using search_batch = batch<float, default_arch>;

// A magnitude below half of the smallest f16: every format here stores zero for it.
inline constexpr float negligible = 0x1p-25f;

// q = the integer in [0, largest] nearest to (x + min) / scale.
struct affine_round {
  float inverse, min, largest;
  search_batch operator()(const search_batch& x) const {
    const search_batch q = xsimd::nearbyint((x + search_batch(min)) * search_batch(inverse));
    return xsimd::min(xsimd::max(q, search_batch(0.0f)), search_batch(largest));
  }
};

struct code_sums {
  float q = 0, qq = 0, xq = 0;
};

// Σ q, Σ q², Σ x q over N elements.
template <std::size_t N, class Round>
code_sums sums_of(const float* x, const Round& round) {
  search_batch q_sum(0.0f), qq(0.0f), xq(0.0f);
  for (std::size_t i = 0; i < N; i += search_batch::size) {
    const auto v = search_batch::load_unaligned(x + i);
    const search_batch q = round(v);
    q_sum += q;
    qq = fused_multiply_add<default_arch>(q, q, qq);
    xq = fused_multiply_add<default_arch>(v, q, xq);
  }
  return {sum<default_arch>(q_sum), sum<default_arch>(qq), sum<default_arch>(xq)};
}

// Σ (scale · q - min - x)².
template <std::size_t N, class Round>
float error_of(const float* x, float scale, float min, const Round& round) {
  search_batch error(0.0f);
  for (std::size_t i = 0; i < N; i += search_batch::size) {
    const auto v = search_batch::load_unaligned(x + i);
    const search_batch r = search_batch(scale) * round(v) - search_batch(min) - v;
    error = fused_multiply_add<default_arch>(r, r, error);
  }
  return sum<default_arch>(error);
}

struct affine {
  float scale = 0, min = 0;
};

// The scale >= 0 and min >= 0 whose codes 0..largest reproduce x best, over several ranges that clip none, some or no
// more than the outermost elements.
template <std::size_t N>
affine fit_affine(const float* x, float largest) {
  const float low = std::min(0.0f, *std::min_element(x, x + N)), high = *std::max_element(x, x + N);
  if (!(high - low > 0.0f)) return {0.0f, -low};
  // Relative to `low`: sums of x itself would cancel where all elements lie far from zero.
  float z[N], z_sum = 0.0f;
  for (std::size_t i = 0; i < N; ++i) z_sum += z[i] = x[i] - low;
  affine best{0.0f, -low};
  float best_error = 0.0f;
  for (int step = -10; step <= 10; ++step) {
    const float inverse = (largest + 0.1f * static_cast<float>(step)) / (high - low);
    const auto s = sums_of<N>(z, affine_round{inverse, 0.0f, largest});
    const float n = static_cast<float>(N), determinant = n * s.qq - s.q * s.q;
    float scale = (n * s.xq - z_sum * s.q) / determinant;
    float min = (scale * s.q - z_sum) / n;
    if (!(determinant > 0.0f && min >= low)) {
      min = low;
      scale = s.qq > 0.0f ? (s.xq + low * s.q) / s.qq : 0.0f;
    }
    const float error = scale * scale * s.qq + n * min * min + 2.0f * (min * z_sum - scale * (min * s.q + s.xq));
    if (error < best_error) {
      best_error = error;
      best = {scale, min - low};
    }
  }
  return best;
}

}  // namespace detail

MOTE_END_NAMESPACE
