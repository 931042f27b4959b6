// int8_dot<Arch>: dot products of int8 codes with one weight row in each int32 lane, by instruction set.
//
//   operand   for each lane four codes of k, one row's; unsigned where `unsigned_limit` allows, else signed
//   dot       acc[lane] += Σ_{i<4} w[lane][i] · x[i], exact; the four signed codes x are the same for every lane
//
// `unsigned_limit` is the largest code that dot_unsigned takes without saturating: 0 where only dot_signed exists, 255
// where only dot_unsigned does; there flip_signs makes signed codes q + 128.
//
// Where a dot product is two instructions, the first of which leaves two sums of 16 bits in each lane, small codes need the
// second only now and then: narrow_dot starts or adds to such sums, which stay within 2 · 2^7 · Σ w, and widen adds them to acc.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "simd.hpp"
#include "types.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Any instruction set: what the vector ones must agree with.
template <class Arch, std::size_t Lanes = batch<float, Arch>::size>
struct int8_dot {
  static constexpr std::size_t lanes = Lanes;
  static constexpr int unsigned_limit = 0;
  using floats = batch<float, Arch>;
  struct ints {
    std::int32_t lane[Lanes];
  };
  struct operand {
    std::int8_t code[Lanes * 4];
  };
  static ints splat(std::int32_t x) {
    ints all;
    for (auto& lane : all.lane) lane = x;
    return all;
  }
  template <int Bits>
  static ints shift_left(ints x) {
    for (auto& lane : x.lane) lane = static_cast<std::int32_t>(static_cast<std::uint32_t>(lane) << Bits);
    return x;
  }
  static operand load(const std::uint8_t* p) {
    operand w;
    std::memcpy(w.code, p, sizeof w);
    return w;
  }
  static operand splat_codes(const std::int8_t* x) {
    operand all;
    for (std::size_t i = 0; i < Lanes * 4; ++i) all.code[i] = x[i % 4];
    return all;
  }
  static ints dot_signed(ints acc, const operand& w, const operand& x) {
    for (std::size_t i = 0; i < Lanes * 4; ++i) acc.lane[i / 4] += w.code[i] * x.code[i];
    return acc;
  }
  static operand low_nibbles(operand w) {
    for (auto& c : w.code) c = static_cast<std::int8_t>(c & 15);
    return w;
  }
  static operand high_nibbles(operand w) {
    for (auto& c : w.code) c = static_cast<std::int8_t>(static_cast<std::uint8_t>(c) >> 4);
    return w;
  }
  static operand lookup(const std::array<std::int8_t, 16>& table, operand w) {
    for (auto& c : w.code) c = table[static_cast<std::uint8_t>(c)];
    return w;
  }
  static floats to_float(const ints& x) {
    float lane[Lanes];
    for (std::size_t i = 0; i < Lanes; ++i) lane[i] = static_cast<float>(x.lane[i]);
    return floats::load_unaligned(lane);
  }
  // Codes round(x), |x| <= 127, ties to even. Adding 1.5 · 2^23 leaves them in the low bits.
  static void store_codes(std::int8_t* codes, const floats& x) {
    float lane[Lanes];
    floats rounded = x;
    keep_in_register(rounded);  // else compilers fuse the caller's product with this sum
    (rounded + floats(12582912.0f)).store_unaligned(lane);
    for (std::size_t i = 0; i < Lanes; ++i) {
      codes[i] = static_cast<std::int8_t>(static_cast<std::uint8_t>(bit_cast<std::uint32_t>(lane[i])));
    }
  }
  // Of all lanes.
  static std::int32_t largest(const ints& x) {
    std::int32_t most = x.lane[0];
    for (const std::int32_t lane : x.lane) most = lane > most ? lane : most;
    return most;
  }
};

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
template <class Arch>
struct int8_dot<Arch, 16> {
  static constexpr std::size_t lanes = 16;
  using floats = batch<float, Arch>;
  using ints = __m512i;
  using operand = __m512i;
  static ints splat(std::int32_t x) { return _mm512_set1_epi32(x); }
  template <int Bits>
  static ints shift_left(ints x) {
    return _mm512_slli_epi32(x, Bits);
  }
  static operand load(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
  static operand splat_codes(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
  }
#if defined(__AVX512VNNI__)
  static constexpr int unsigned_limit = 255;
  static ints dot_unsigned(ints acc, operand w, operand x) { return _mm512_dpbusd_epi32(acc, w, x); }
  static operand flip_signs(operand w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }
#else
  static constexpr int unsigned_limit = 127;
  static ints narrow_dot(operand w, operand x) { return _mm512_maddubs_epi16(w, x); }
  static ints narrow_dot(ints sums, operand w, operand x) { return in_order(_mm512_add_epi16(sums, narrow_dot(w, x))); }
  static ints widen(ints acc, ints sums) {
    return in_order(_mm512_add_epi32(acc, _mm512_madd_epi16(sums, _mm512_set1_epi16(1))));
  }
  static ints in_order(ints sums) {
    keep_in_register(sums);
    return sums;
  }
  static ints dot_unsigned(ints acc, operand w, operand x) { return widen(acc, narrow_dot(w, x)); }
  static ints dot_signed(ints acc, operand w, operand x) {
    const operand signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
    return dot_unsigned(acc, _mm512_abs_epi8(w), signed_x);
  }
#endif
  static operand low_nibbles(operand w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
  static operand high_nibbles(operand w) { return low_nibbles(_mm512_srli_epi16(w, 4)); }
  static operand lookup(const std::array<std::int8_t, 16>& table, operand w) {
    const __m128i row = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table.data()));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(row), w);
  }
  static floats to_float(ints x) { return floats(_mm512_cvtepi32_ps(x)); }
  static void store_codes(std::int8_t* codes, const floats& x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
  }
  static std::int32_t largest(ints x) { return _mm512_reduce_max_epi32(x); }
};
#endif

#if defined(__AVX2__)
template <class Arch>
struct int8_dot<Arch, 8> {
  static constexpr std::size_t lanes = 8;
  using floats = batch<float, Arch>;
  using ints = __m256i;
  using operand = __m256i;
  static ints splat(std::int32_t x) { return _mm256_set1_epi32(x); }
  template <int Bits>
  static ints shift_left(ints x) {
    return _mm256_slli_epi32(x, Bits);
  }
  static operand load(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static operand splat_codes(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
  }
#if defined(__AVXVNNI__)
  static constexpr int unsigned_limit = 255;
  static ints dot_unsigned(ints acc, operand w, operand x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
  static operand flip_signs(operand w) { return _mm256_xor_si256(w, _mm256_set1_epi8(-128)); }
#else
  static constexpr int unsigned_limit = 127;  // 2 · 127 · 127 fits 16 bits
  static ints narrow_dot(operand w, operand x) { return _mm256_maddubs_epi16(w, x); }
  static ints narrow_dot(ints sums, operand w, operand x) { return in_order(_mm256_add_epi16(sums, narrow_dot(w, x))); }
  static ints widen(ints acc, ints sums) {
    return in_order(_mm256_add_epi32(acc, _mm256_madd_epi16(sums, _mm256_set1_epi16(1))));
  }
  static ints in_order(ints sums) {
    keep_in_register(sums);
    return sums;
  }
  static ints dot_unsigned(ints acc, operand w, operand x) { return widen(acc, narrow_dot(w, x)); }
  static ints dot_signed(ints acc, operand w, operand x) {
    return dot_unsigned(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  }
#endif
  static operand low_nibbles(operand w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
  static operand high_nibbles(operand w) { return low_nibbles(_mm256_srli_epi16(w, 4)); }
  static operand lookup(const std::array<std::int8_t, 16>& table, operand w) {
    const __m128i row = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table.data()));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(row), w);
  }
  static floats to_float(ints x) { return floats(_mm256_cvtepi32_ps(x)); }
  static void store_codes(std::int8_t* codes, const floats& x) {
    const ints whole = _mm256_cvtps_epi32(x);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(codes), _mm_packs_epi16(words, words));
  }
  static std::int32_t largest(ints x) {
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32(most, 0xB1)));
  }
};
#endif

#if defined(__SSE2__)
template <class Arch>
struct int8_dot<Arch, 4> {
  static constexpr std::size_t lanes = 4;
  static constexpr int unsigned_limit = 0;
  using floats = batch<float, Arch>;
  using ints = __m128i;
  using operand = __m128i;
  static ints splat(std::int32_t x) { return _mm_set1_epi32(x); }
  template <int Bits>
  static ints shift_left(ints x) {
    return _mm_slli_epi32(x, Bits);
  }
  static operand load(const std::uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static operand splat_codes(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, 4);
    return _mm_set1_epi32(four);
  }
  static ints dot_signed(ints acc, operand w, operand x) {
    const operand none = _mm_setzero_si128(), sign = _mm_cmpgt_epi8(none, w), sign_x = _mm_cmpgt_epi8(none, x);
    const operand wide_x = _mm_unpacklo_epi8(x, sign_x);  // x repeats itself
    const __m128 low = _mm_castsi128_ps(_mm_madd_epi16(_mm_unpacklo_epi8(w, sign), wide_x));
    const __m128 high = _mm_castsi128_ps(_mm_madd_epi16(_mm_unpackhi_epi8(w, sign), wide_x));
    const ints even = _mm_castps_si128(_mm_shuffle_ps(low, high, 0x88));
    const ints odd = _mm_castps_si128(_mm_shuffle_ps(low, high, 0xDD));
    return _mm_add_epi32(acc, _mm_add_epi32(even, odd));
  }
  static operand low_nibbles(operand w) { return _mm_and_si128(w, _mm_set1_epi8(15)); }
  static operand high_nibbles(operand w) { return low_nibbles(_mm_srli_epi16(w, 4)); }
  static operand lookup(const std::array<std::int8_t, 16>& table, operand w) {
    alignas(16) std::uint8_t codes[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(codes), w);
    for (auto& c : codes) c = static_cast<std::uint8_t>(table[c]);
    return _mm_load_si128(reinterpret_cast<const __m128i*>(codes));
  }
  static floats to_float(ints x) { return floats(_mm_cvtepi32_ps(x)); }
  static void store_codes(std::int8_t* codes, const floats& x) {
    const ints whole = _mm_cvtps_epi32(x), words = _mm_packs_epi32(whole, whole);
    const std::int32_t four = _mm_cvtsi128_si32(_mm_packs_epi16(words, words));
    std::memcpy(codes, &four, 4);
  }
  static std::int32_t largest(ints x) {
    std::int32_t lane[lanes];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(lane), x);
    return std::max(std::max(lane[0], lane[1]), std::max(lane[2], lane[3]));
  }
};
#endif

#if defined(__aarch64__) && defined(__ARM_NEON)
template <class Arch>
struct int8_dot<Arch, 4> {
  static constexpr std::size_t lanes = 4;
  static constexpr int unsigned_limit = 0;
  using floats = batch<float, Arch>;
  using ints = int32x4_t;
  using operand = int8x16_t;
  static ints splat(std::int32_t x) { return vdupq_n_s32(x); }
  template <int Bits>
  static ints shift_left(ints x) {
    return vshlq_n_s32(x, Bits);
  }
  static operand load(const std::uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
  static operand splat_codes(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }
  static ints dot_signed(ints acc, operand w, operand x) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(acc, w, x);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
  }
  static operand low_nibbles(operand w) { return vandq_s8(w, vdupq_n_s8(15)); }
  static operand high_nibbles(operand w) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(w), 4)); }
  static operand lookup(const std::array<std::int8_t, 16>& table, operand w) {
    return vqtbl1q_s8(vld1q_s8(table.data()), vreinterpretq_u8_s8(w));
  }
  static floats to_float(ints x) { return floats(vcvtq_f32_s32(x)); }
  static void store_codes(std::int8_t* codes, const floats& x) {
    const int16x4_t words = vmovn_s32(vcvtnq_s32_f32(x));
    const std::int32_t four = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(words, words))), 0);
    std::memcpy(codes, &four, 4);
  }
  static std::int32_t largest(ints x) { return vmaxvq_s32(x); }
};
#endif

// The sum of sixteen codes.
inline std::int32_t sum_of_codes(const std::int8_t* codes) {
#if defined(__SSE2__)
  const __m128i flipped = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)), _mm_set1_epi8(-128));
  const __m128i sums = _mm_sad_epu8(flipped, _mm_setzero_si128());  // of the codes + 128, eight each
  return _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4E))) - 16 * 128;
#elif defined(__aarch64__) && defined(__ARM_NEON)
  return vaddlvq_s8(vld1q_s8(codes));
#else
  std::int32_t sum = 0;
  for (std::size_t i = 0; i < 16; ++i) sum += codes[i];
  return sum;
#endif
}

}  // namespace detail

MOTE_END_NAMESPACE
