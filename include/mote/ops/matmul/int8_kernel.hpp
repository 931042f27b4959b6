// The inner loop of int8 products with weights in rows: exact int32 sums of int8 codes, vectors along k.
//
// x86's dot product multiplies unsigned by signed bytes: there weights are read as q + 128 (their sign bit flipped), and
// the surplus, 128 · Σ_k x, is taken off at the end (modulo 2^32, so it never matters that partial sums wrap). Where the
// dot product is missing, codes are widened and multiplied as 16-bit integers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "../../core/int8_dot.hpp"
#include "../../core/simd.hpp"
#include "../../core/vector_math.hpp"
#include "micro_kernel.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// An accumulator of int32 lanes, how many codes one step takes and what is added to weights: by instruction set.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
struct int8_lanes {
  static constexpr std::size_t step = 64, tile_rows = 4, tile_tokens = 6;
  static constexpr std::int32_t offset = 128;
  using accumulator = __m512i;
  static accumulator zero() { return _mm512_setzero_si512(); }
  static accumulator dot(accumulator a, const std::int8_t* x, const std::int8_t* w) {
    const __m512i ws = _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8(-128));
    return _mm512_dpbusd_epi32(a, ws, _mm512_loadu_si512(x));
  }
  static std::int32_t sum(accumulator a) { return _mm512_reduce_add_epi32(a); }
};
#elif defined(__AVX2__)
struct int8_lanes {
  static constexpr std::size_t step = 32, tile_rows = 2, tile_tokens = 4;
  using accumulator = __m256i;
  static accumulator zero() { return _mm256_setzero_si256(); }
#if defined(__AVXVNNI__)
  static constexpr std::int32_t offset = 128;
  static accumulator dot(accumulator a, const std::int8_t* x, const std::int8_t* w) {
    const __m256i xs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    const __m256i ws = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    return _mm256_dpbusd_avx_epi32(a, _mm256_xor_si256(ws, _mm256_set1_epi8(-128)), xs);
  }
#else
  static constexpr std::int32_t offset = 0;
  // |w| ≤ 127 by x with w's sign: 2 · 127 · 127 fits 16 bits.
  static accumulator dot(accumulator a, const std::int8_t* x, const std::int8_t* w) {
    const __m256i xs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    const __m256i ws = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(ws), _mm256_sign_epi8(xs, ws));
    return _mm256_add_epi32(a, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
#endif
  static std::int32_t sum(accumulator a) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1));
    return _mm_cvtsi128_si32(s);
  }
};
#elif defined(__SSE2__)
struct int8_lanes {
  static constexpr std::size_t step = 16, tile_rows = 2, tile_tokens = 4;
  static constexpr std::int32_t offset = 0;
  using accumulator = __m128i;
  static accumulator zero() { return _mm_setzero_si128(); }
  static accumulator dot(accumulator a, const std::int8_t* x, const std::int8_t* w) {
    const __m128i xs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x)), none = _mm_setzero_si128();
    const __m128i ws = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
    const __m128i sign = _mm_cmpgt_epi8(none, ws), sign_x = _mm_cmpgt_epi8(none, xs);
    const __m128i low = _mm_madd_epi16(_mm_unpacklo_epi8(xs, sign_x), _mm_unpacklo_epi8(ws, sign));
    const __m128i high = _mm_madd_epi16(_mm_unpackhi_epi8(xs, sign_x), _mm_unpackhi_epi8(ws, sign));
    return _mm_add_epi32(a, _mm_add_epi32(low, high));
  }
  static std::int32_t sum(accumulator a) {
    a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4E));
    a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0xB1));
    return _mm_cvtsi128_si32(a);
  }
};
#elif defined(__ARM_NEON)
struct int8_lanes {
  static constexpr std::size_t step = 16, tile_rows = 4, tile_tokens = 4;
  static constexpr std::int32_t offset = 0;
  using accumulator = int32x4_t;
  static accumulator zero() { return vdupq_n_s32(0); }
  static accumulator dot(accumulator a, const std::int8_t* x, const std::int8_t* w) {
    const int8x16_t ws = vld1q_s8(w), xs = vld1q_s8(x);
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(a, xs, ws);
#else
    a = vpadalq_s16(a, vmull_s8(vget_low_s8(xs), vget_low_s8(ws)));
    return vpadalq_s16(a, vmull_s8(vget_high_s8(xs), vget_high_s8(ws)));
#endif
  }
  static std::int32_t sum(accumulator a) { return vaddvq_s32(a); }
};
#else
struct int8_lanes {
  static constexpr std::size_t step = 1, tile_rows = 1, tile_tokens = 1;
  static constexpr std::int32_t offset = 0;
  using accumulator = std::int32_t;
  static accumulator zero() { return 0; }
  static accumulator dot(accumulator a, const std::int8_t* x, const std::int8_t* w) { return a + *x * *w; }
  static std::int32_t sum(accumulator a) { return a; }
};
#endif

// One row of activations to codes round(x / s), s = amax / 127, as quantize_int8_row does. Returns s; `sum` receives the
// codes' sum.
template <class Arch>
float quantize_activations(const float* x, std::size_t n, std::int8_t* codes, std::int32_t& sum) noexcept {
  using dot = int8_dot<Arch>;
  using vector = batch<float, Arch>;
  constexpr std::size_t at_once = 4, step = at_once * vector::size;
  const std::size_t steps = n / step * step;
  const auto larger = [](const vector& values, const vector& most) __attribute__((always_inline)) {
    const vector magnitude = xsimd::abs(values);
    return xsimd::select(magnitude > most, magnitude, most);  // not max, which may keep a NaN: that is found below
  };
  vector largest[at_once];  // so that no maximum waits for the one before
  for (auto& l : largest) l = vector(0.0f);
  for (std::size_t i = 0; i < steps; i += step) {
    unroll<at_once>([&](std::size_t v) __attribute__((always_inline)) {
      largest[v] = larger(vector::load_unaligned(x + i + v * vector::size), largest[v]);
    });
  }
  for_each_vector<Arch>(n - steps,
                        [&](std::size_t i, auto load, auto) { largest[0] = larger(load(x + steps + i), largest[0]); });
  float lanes[at_once * vector::size], amax = 0.0f;
  for (std::size_t v = 0; v < at_once; ++v) largest[v].store_unaligned(lanes + v * vector::size);
  for (const float lane : lanes) amax = lane > amax ? lane : amax;
  const float scale = amax / 127.0f > 0.0f ? amax / 127.0f : 1.0f;
  // A product with the inverse has the quotient's code, unless it ends within 127 · 3 · 2^-24 < 3e-5 of a tie (three
  // roundings) or is NaN; the inverse may be infinite or subnormal. Divisions are scalar: xsimd only approximates a
  // vector's for NEON.
  const vector inverse(1.0f / scale);
  const bool divides = !(scale > 0x1p-100f && scale < 0x1p100f);
  bool finite = std::isfinite(amax);
  const auto divided = [&](const vector& values) {
    float quotients[vector::size];
    values.store_unaligned(quotients);
    for (float& q : quotients) {
      q /= scale;
      finite = finite && !std::isnan(q);
      q = std::min(std::max(-127.0f, q), 127.0f);
    }
    return vector::load_unaligned(quotients);
  };
  const auto is_sure = [](const vector& q) {
    return xsimd::abs(q - xsimd::to_float(xsimd::nearbyint_as_int(q))) <= vector(0.49997f);
  };
  for (std::size_t i = 0; i < steps; i += step) {
    vector q[at_once];
    unroll<at_once>([&](std::size_t v) __attribute__((always_inline)) {
      q[v] = vector::load_unaligned(x + i + v * vector::size) * inverse;
    });
    if (divides || !xsimd::all(is_sure(q[0]) & is_sure(q[1]) & is_sure(q[2]) & is_sure(q[3]))) {
      for (std::size_t v = 0; v < at_once; ++v) q[v] = divided(vector::load_unaligned(x + i + v * vector::size));
    }
    unroll<at_once>([&](std::size_t v)
                        __attribute__((always_inline)) { dot::store_codes(codes + i + v * vector::size, q[v]); });
  }
  for (std::size_t i = steps; i < n; i += vector::size) {
    const std::size_t some = std::min(vector::size, n - i);
    std::int8_t last[vector::size];
    dot::store_codes(last, divided(load_tail<Arch>(x + i, some)));
    std::copy_n(last, some, codes + i);
  }
  sum = 0;
  if (!finite) {
    std::fill_n(codes, n, std::int8_t{0});
    return std::numeric_limits<float>::quiet_NaN();
  }
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) sum += sum_of_codes(codes + i);
  for (; i < n; ++i) sum += codes[i];
  return scale;
}

// R weight rows by C tokens over k codes: out[r + c · out_stride] = Σ_k x (w + offset), modulo 2^32.
template <std::size_t R, std::size_t C>
void dot_tile_int8(const std::int8_t* const* w, const std::int8_t* const* x, std::size_t k, std::int32_t* out,
                   std::size_t out_stride) noexcept {
  int8_lanes::accumulator acc[R][C];
  for (auto& row : acc) {
    for (auto& a : row) a = int8_lanes::zero();
  }
  const std::size_t whole = k / int8_lanes::step * int8_lanes::step;
  for (std::size_t i = 0; i < whole; i += int8_lanes::step) {
    for (std::size_t c = 0; c < C; ++c) {
      for (std::size_t r = 0; r < R; ++r) acc[r][c] = int8_lanes::dot(acc[r][c], x[c] + i, w[r] + i);
    }
  }
  for (std::size_t r = 0; r < R; ++r) {
    for (std::size_t c = 0; c < C; ++c) {
      auto total = static_cast<std::uint32_t>(int8_lanes::sum(acc[r][c]));
      for (std::size_t i = whole; i < k; ++i) {
        total += static_cast<std::uint32_t>(x[c][i] * (w[r][i] + int8_lanes::offset));
      }
      out[r + c * out_stride] = static_cast<std::int32_t>(total);
    }
  }
}

}  // namespace detail

MOTE_END_NAMESPACE
