// widen<Arch>(p): one vector of float32 from as many numbers of a narrower type at p.
#pragma once

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

template <class Arch>
batch<float, Arch> widen(const float* p) {
  return batch<float, Arch>::load_unaligned(p);
}

// One by one, for the types and instruction sets that have no conversion below.
template <class Arch, class T>
batch<float, Arch> widen(const T* p) {
  float lanes[batch<float, Arch>::size];
  for (std::size_t i = 0; i < batch<float, Arch>::size; ++i) lanes[i] = static_cast<float>(p[i]);
  return batch<float, Arch>::load_unaligned(lanes);
}

// bf16 is the upper half of a float32, so widening is exact.
template <class Arch>
batch<float, Arch> widen(const bf16* p) {
  using vector [[maybe_unused]] = batch<float, Arch>;
  if constexpr (vector::size == 16) {
#if defined(__AVX512F__)
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return vector(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16)));
#endif
  } else if constexpr (vector::size == 8) {
#if defined(__AVX2__)
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return vector(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16)));
#elif defined(__AVX__)
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), zero = _mm_setzero_si128();
    const __m128 low = _mm_castsi128_ps(_mm_unpacklo_epi16(zero, narrow));
    const __m128 high = _mm_castsi128_ps(_mm_unpackhi_epi16(zero, narrow));
    return vector(_mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1));
#endif
  } else {
#if defined(__SSE2__)
    const __m128i narrow = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return vector(_mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), narrow)));
#elif defined(__ARM_NEON)
    const uint16x4_t narrow = vld1_u16(reinterpret_cast<const std::uint16_t*>(p));
    return vector(vreinterpretq_f32_u32(vshll_n_u16(narrow, 16)));
#endif
  }
}

template <class Arch>
batch<float, Arch> widen(const f16* p) {
  using vector [[maybe_unused]] = batch<float, Arch>;
#if defined(__AVX512F__)
  if constexpr (vector::size == 16) {
    return vector(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
#endif
#if defined(__F16C__)
  if constexpr (vector::size == 8) {
    return vector(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
#endif
#if defined(__aarch64__)
  return vector(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p)))));
#endif
  return widen<Arch, f16>(p);
}

#if defined(__aarch64__)
// Four bytes as the upper halves of 16-bit lanes.
template <class T>
uint16x4_t upper_bytes(const T* p) {
  std::uint32_t four = 0;
  std::memcpy(&four, p, 4);
  return vshl_n_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))), 8);
}
#endif

// fp8 as float16, whose exponent has the range of both: e5m2 is its upper byte; e4m3's bits one place lower are 2^-8 of the
// number, but that NaN has to be told from 480.
template <class Arch>
batch<float, Arch> widen(const f8_e5m2* p) {
  using vector [[maybe_unused]] = batch<float, Arch>;
#if defined(__AVX512F__)
  if constexpr (vector::size == 16) {
    const __m256i codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return vector(_mm512_cvtph_ps(_mm256_slli_epi16(codes, 8)));
  }
#endif
#if defined(__F16C__)
  if constexpr (vector::size == 8) {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return vector(_mm256_cvtph_ps(_mm_unpacklo_epi8(_mm_setzero_si128(), codes)));
  }
#endif
#if defined(__aarch64__)
  return vector(vcvt_f32_f16(vreinterpret_f16_u16(upper_bytes(p))));
#endif
  return widen<Arch, f8_e5m2>(p);
}

#if defined(__AVX2__)
// Codes of e4m3, their signs extended to 16 bits, as float16.
inline __m256i e4m3_to_f16(__m256i codes) {
  const __m256i bits = _mm256_and_si256(_mm256_slli_epi16(codes, 7), _mm256_set1_epi16(~0x4000));
  const __m256i nan = _mm256_cmpeq_epi16(_mm256_slli_epi16(bits, 1), _mm256_set1_epi16(0x7F00));
  return _mm256_or_si256(bits, nan);
}
// Sixteen codes as float16, each 2^-8 of its number.
inline __m256i load_e4m3(const f8_e4m3* p) {
  return e4m3_to_f16(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
#endif
#if defined(__AVX512F__) && defined(__AVX512BW__)
// Thirty-two.
inline __m512i load_32_e4m3(const f8_e4m3* p) {
  const __m512i codes = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const __m512i bits = _mm512_and_si512(_mm512_slli_epi16(codes, 7), _mm512_set1_epi16(~0x4000));
  const __mmask32 nan = _mm512_cmpeq_epi16_mask(_mm512_slli_epi16(bits, 1), _mm512_set1_epi16(0x7F00));
  return _mm512_mask_mov_epi16(bits, nan, _mm512_set1_epi16(-1));
}
#endif

template <class Arch>
batch<float, Arch> widen(const f8_e4m3* p) {
  using vector [[maybe_unused]] = batch<float, Arch>;
#if defined(__AVX512F__)
  if constexpr (vector::size == 16) return vector(_mm512_mul_ps(_mm512_cvtph_ps(load_e4m3(p)), _mm512_set1_ps(256.0f)));
#endif
#if defined(__F16C__) && defined(__AVX2__)
  if constexpr (vector::size == 8) {
    const __m128i codes = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m128i bits = _mm256_castsi256_si128(e4m3_to_f16(_mm256_castsi128_si256(codes)));
    return vector(_mm256_mul_ps(_mm256_cvtph_ps(bits), _mm256_set1_ps(256.0f)));
  }
#endif
#if defined(__aarch64__)
  const uint16x4_t codes = upper_bytes(p), magnitude = vand_u16(codes, vdup_n_u16(0x7F00));
  const uint16x4_t nan = vceq_u16(magnitude, vdup_n_u16(0x7F00));
  const uint16x4_t bits = vorr_u16(vsra_n_u16(vand_u16(codes, vdup_n_u16(0x8000)), magnitude, 1), nan);
  return vector(vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(bits)), 256.0f));
#endif
  return widen<Arch, f8_e4m3>(p);
}

template <class Arch>
batch<float, Arch> widen(const std::int8_t* p) {
  using vector [[maybe_unused]] = batch<float, Arch>;
#if defined(__AVX512F__)
  if constexpr (vector::size == 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return vector(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
  }
#endif
#if defined(__AVX2__)
  if constexpr (vector::size == 8) {
    return vector(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
  }
#endif
  return widen<Arch, std::int8_t>(p);
}

// 2^(e - 127): e in the exponent's place, but that float32 writes 2^-127 as a subnormal and NaN with another bit set.
template <class Arch>
batch<float, Arch> widen(const f8_e8m0* p) {
  using vector [[maybe_unused]] = batch<float, Arch>;
#if defined(__AVX512F__)
  if constexpr (vector::size == 16) {
    const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i next = _mm512_and_si512(_mm512_add_epi32(e, _mm512_set1_epi32(1)), _mm512_set1_epi32(255));
    const __mmask16 special = _mm512_cmplt_epi32_mask(next, _mm512_set1_epi32(2));
    const __m512i bits = _mm512_slli_epi32(e, 23);
    return vector(_mm512_castsi512_ps(_mm512_mask_or_epi32(bits, special, bits, _mm512_set1_epi32(0x400000))));
  }
#endif
#if defined(__AVX2__)
  if constexpr (vector::size == 8) {
    const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m256i next = _mm256_and_si256(_mm256_add_epi32(e, _mm256_set1_epi32(1)), _mm256_set1_epi32(255));
    const __m256i special = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), next);
    const __m256i extra = _mm256_and_si256(special, _mm256_set1_epi32(0x400000));
    return vector(_mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32(e, 23), extra)));
  }
#endif
  return widen<Arch, f8_e8m0>(p);
}

}  // namespace detail

MOTE_END_NAMESPACE
