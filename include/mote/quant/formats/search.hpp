// Scales that lose least: encoders of formats without a published rule try several ways to round a group of elements to
// its integers q, and take for each the scale (and minimum) of least squared error, which has a closed form.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

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

// q = the integer in [-largest - 1, largest] nearest to x / scale.
struct integer_round {
  float inverse, largest;
  search_batch operator()(const search_batch& x) const {
    const search_batch q = xsimd::nearbyint(x * search_batch(inverse));
    return xsimd::min(xsimd::max(q, search_batch(-largest - 1.0f)), search_batch(largest));
  }
};

// q = the number of an ascending table nearest to x / scale.
template <std::size_t Size>
struct table_round {
  const std::array<std::int8_t, Size>& table;
  float inverse;
  search_batch operator()(const search_batch& x) const {
    const search_batch scaled = x * search_batch(inverse);
    search_batch q(table[0]);
    for (std::size_t i = 1; i < Size; ++i) {
      const search_batch middle(0.5f * static_cast<float>(table[i - 1] + table[i]));
      q = xsimd::select(scaled > middle, search_batch(table[i]), q);
    }
    return q;
  }
};

// The index of the number nearest to x.
template <std::size_t Size>
std::uint8_t nearest_code(const std::array<std::int8_t, Size>& table, float x) {
  int code = 0;
  for (std::size_t i = 1; i < Size; ++i) code += x > 0.5f * static_cast<float>(table[i - 1] + table[i]) ? 1 : 0;
  return static_cast<std::uint8_t>(code);
}

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

struct code_error {
  float error = 0, q = 0;
};

// Σ (scale · q - min - x)² and Σ q.
template <std::size_t N, class Round>
code_error error_of(const float* x, float scale, float min, const Round& round) {
  search_batch error(0.0f), q_sum(0.0f);
  for (std::size_t i = 0; i < N; i += search_batch::size) {
    const auto v = search_batch::load_unaligned(x + i);
    const search_batch q = round(v);
    const search_batch r = search_batch(scale) * q - search_batch(min) - v;
    error = fused_multiply_add<default_arch>(r, r, error);
    q_sum += q;
  }
  return {sum<default_arch>(error), sum<default_arch>(q_sum)};
}

// The scale of least squared error whose codes are those of one of the scales x_peak / peak, x_peak being the element of
// largest magnitude: it is either sign's largest code, or lies a little inside or outside.
template <std::size_t N, class Peaks, class MakeRound>
float fit_scale(const float* x, const Peaks& peaks, const MakeRound& round) {
  const float inverse = finite_inverse(largest_element(x, N));
  float best = 0.0f, best_gain = 0.0f;
  for (const float peak : peaks) {
    const auto s = sums_of<N>(x, round(peak * inverse));
    if (s.xq * s.xq > best_gain * s.qq) {
      best = s.xq / s.qq;
      best_gain = s.xq * best;
    }
  }
  return best;
}

struct affine {
  float scale = 0, min = 0;
};

// The scale >= 0 and min >= 0 whose codes 0..largest reproduce x best, over several ranges that clip none, some or no
// more than the outermost elements; then the codes nearest to x by the scale and min found, as long as that helps.
template <std::size_t N>
affine fit_affine(const float* x, float largest) {
  const float low = std::min(0.0f, *std::min_element(x, x + N)), high = *std::max_element(x, x + N);
  if (!(high - low > 0.0f)) return {0.0f, -low};
  // Relative to `low`: sums of x itself would cancel where all elements lie far from zero.
  float z[N], z_sum = 0.0f;
  for (std::size_t i = 0; i < N; ++i) z_sum += z[i] = x[i] - low;
  affine best{0.0f, -low};
  float best_error = 0.0f;
  // Takes the scale and min of least squared error for a way to round, if none before had less.
  const auto consider = [&](const affine_round& round) {
    const auto s = sums_of<N>(z, round);
    const float n = static_cast<float>(N), determinant = n * s.qq - s.q * s.q;
    float scale = (n * s.xq - z_sum * s.q) / determinant;
    float min = (scale * s.q - z_sum) / n;
    if (!(determinant > 0.0f && min >= low)) {
      min = low;
      scale = s.qq > 0.0f ? (s.xq + low * s.q) / s.qq : 0.0f;
    }
    const float error = scale * scale * s.qq + n * min * min + 2.0f * (min * z_sum - scale * (min * s.q + s.xq));
    // By more than rounding: many ranges reproduce two values without error, and then groups alike shall have the same.
    if (!(error < 1.000002f * best_error)) return false;
    best_error = error;
    best = {scale, min - low};
    return true;
  };
  for (const int step : {0, -10, -8, -6, -4, -2, 2, 4, 6, 8, 10}) {
    consider({(largest + 0.1f * static_cast<float>(step)) / (high - low), 0.0f, largest});
  }
  // A few elements far above the others: those below, which are many, may all have code 0.
  for (const float part : {0.0f, 0.5f}) {
    consider({largest * finite_inverse(std::max(high - part * low, 0.0f)), (1.0f - part) * low, largest});
  }
  for (int again = 0; again < 4 && consider({finite_inverse(best.scale), best.min + low, largest}); ++again) {
  }
  return best;
}

}  // namespace detail

MOTE_END_NAMESPACE
