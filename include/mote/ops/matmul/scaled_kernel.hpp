// Products of scaled matrices (quant/scaled_matrix.hpp). Codes become float32 numbers in the registers, and those are
// multiplied as float32 matrices are: the bits are those of the dequantized matrix.
//
// Up to four tokens are multiplied on the way (`scaled_kernel`); for more, a piece of some rows is first decoded into the
// cache, once for many of them (`decode`).
#pragma once

#include <algorithm>
#include <cstddef>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../../core/simd.hpp"
#include "../../core/widen.hpp"
#include "../../quant/scaled_matrix.hpp"
#include "micro_kernel.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Two vectors of codes from the even element i on, in multiples of 1 / unit.
template <class Arch, class Code>
struct code_vectors {
  using vector = batch<float, Arch>;
  static constexpr float unit = 1.0f;
  static void load(const Code* row, std::size_t i, vector (&out)[2]) {
    if constexpr (codes_each<Code> == 1) {
      out[0] = widen<Arch>(row + i);
      out[1] = widen<Arch>(row + i + vector::size);
    } else {
      float lanes[2 * vector::size];
      for (std::size_t l = 0; l < 2 * vector::size; ++l) lanes[l] = code_value(row, i + l);
      for (std::size_t v = 0; v < 2; ++v) out[v] = vector::load_unaligned(lanes + v * vector::size);
    }
  }
};

#if defined(__AVX2__) && defined(__F16C__)
#if defined(__AVX512F__) && defined(__AVX512BW__)
inline constexpr std::size_t most_e4m3_lanes = 16;
#else
inline constexpr std::size_t most_e4m3_lanes = 8;
#endif
template <class Arch>
  requires(batch<float, Arch>::size == 8 || batch<float, Arch>::size == most_e4m3_lanes)
struct code_vectors<Arch, f8_e4m3> {
  using vector = batch<float, Arch>;
  static constexpr float unit = 256.0f;
  static void load(const f8_e4m3* row, std::size_t i, vector (&out)[2]) {
    if constexpr (vector::size == 8) {
      const __m256i halves = load_e4m3(row + i);
      out[0] = vector(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)));
      out[1] = vector(_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)));
    } else {
#if defined(__AVX512F__) && defined(__AVX512BW__)
      const __m512i halves = load_32_e4m3(row + i);
      out[0] = vector(_mm512_cvtph_ps(_mm512_castsi512_si256(halves)));
      out[1] = vector(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)));
#endif
    }
  }
};
#endif

#if defined(__AVX2__)
template <class Arch>
  requires(batch<float, Arch>::size >= 8)
struct code_vectors<Arch, int4_pair> {
  using vector = batch<float, Arch>;
  static constexpr float unit = 1.0f;
  static __m128i sixteen(const int4_pair* p) {
    const __m128i pairs = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), mask = _mm_set1_epi8(15);
    const __m128i low = _mm_and_si128(pairs, mask), high = _mm_and_si128(_mm_srli_epi16(pairs, 4), mask);
    return _mm_sub_epi8(_mm_unpacklo_epi8(low, high), _mm_set1_epi8(8));
  }
  static void load(const int4_pair* row, std::size_t i, vector (&out)[2]) {
    const __m128i codes = sixteen(row + i / 2);
    if constexpr (vector::size == 8) {
      out[0] = vector(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
      out[1] = vector(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8))));
    } else {
#if defined(__AVX512F__)
      out[0] = vector(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)));
      out[1] = vector(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen(row + i / 2 + 8))));
#endif
    }
  }
};
#endif

// scale · (code - zero): what code_number is to one code; `scale` holds the unit. Only integers have zero points.
template <class Arch, class Code>
[[gnu::always_inline]] inline void load_numbers(const Code* row, std::size_t i, const batch<float, Arch>& scale,
                                                const batch<float, Arch>& zero, batch<float, Arch> (&out)[2]) {
  code_vectors<Arch, Code>::load(row, i, out);
  for (auto& numbers : out) {
    if constexpr (has_zero<Code>) {
      numbers = (numbers - zero) * scale;
    } else {
      numbers = numbers * scale;
    }
  }
}

// Elements [begin, begin + count) of a row to y, as dequantize_row; `begin` is even.
template <class Arch>
void decode(const scaled_matrix& w, std::size_t row, std::size_t begin, std::size_t count, float* y) noexcept {
  using vector = batch<float, Arch>;
  for_each_part(w, row, begin, begin + count,
                [&]<class Code>(const Code* codes, std::size_t k, std::size_t end, float scale, float zero) {
                  const vector scales(scale * code_vectors<Arch, Code>::unit), zeros(zero);
                  for (; k + 2 * vector::size <= end; k += 2 * vector::size) {
                    vector numbers[2];
                    load_numbers<Arch>(codes, k, scales, zeros, numbers);
                    numbers[0].store_unaligned(y + (k - begin));
                    numbers[1].store_unaligned(y + (k - begin) + vector::size);
                  }
                  for (; k < end; ++k) y[k - begin] = code_number(codes, k, scale, zero);
                });
}

// Whether no two vectors along k hold numbers of two tiles.
template <class Arch>
bool whole_vectors(const scaled_matrix& w) {
  return w.tile_columns % (2 * batch<float, Arch>::size) == 0 || w.tile_columns >= in_features(w);
}

inline constexpr std::size_t few_scaled_tokens = 4;

// A tile of R rows by C <= few_scaled_tokens tokens, in the order of dot_tile.
template <class Arch, class Code, std::size_t C>
struct scaled_kernel {
  using vector = batch<float, Arch>;
  static constexpr std::size_t R = many_registers<Arch> || C <= 2 ? 4 : 2;

  // out[r + c · stride] for rows first + r, r < count <= R, and tokens x[c], c < tokens <= C.
  static void tile(const scaled_matrix& w, const view<const Code, 2>& codes, std::size_t first, std::size_t count,
                   const float* const* x, std::size_t tokens, float* out, std::size_t stride) noexcept {
    const std::size_t in = codes.extent(1) * codes_each<Code>, whole = in / (2 * vector::size) * (2 * vector::size);
    vector acc[R][C];
    const Code* row[R];
    std::size_t tile_row[R];
    unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
      const std::size_t n = first + std::min(r, count - 1);  // a row that is not there does as one that is
      row[r] = codes.row(n);
      tile_row[r] = (w.first_row + n) / w.tile_rows;
      unroll<C>([&](std::size_t c) __attribute__((always_inline)) { acc[r][c] = vector(0.0f); });
    });
    const float* token[C];
    for (std::size_t c = 0; c < C; ++c) token[c] = x[std::min(c, tokens - 1)];
    // The next tile's rows are asked of memory line after line where they follow without a gap, as dot_tile does.
    const bool gapless = codes.stride(0) == codes.extent(1);
    const Code* const next = row[0] + R * codes.stride(0);
    const std::size_t pace = gapless ? R : 1, apart = gapless ? 64 : codes.stride(0);
    for (std::size_t begin = 0, tile = 0; begin < whole; begin += w.tile_columns, ++tile) {
      vector scale[R], zero[R];
      unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
        scale[r] = vector(w.scale(tile_row[r], tile) * code_vectors<Arch, Code>::unit);
        zero[r] = vector(w.zero.empty() ? 0.0f : static_cast<float>(w.zero(tile_row[r], tile)));
      });
      const std::size_t end = std::min(whole - begin, w.tile_columns) + begin;
      for (std::size_t k = begin; k < end; k += 2 * vector::size) {
        unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
          vector weights[2];
          load_numbers<Arch>(row[r], k, scale[r], zero[r], weights);
          __builtin_prefetch(next + k / codes_each<Code> * pace + r * apart, 0, 3);
          unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
            for (std::size_t v = 0; v < 2; ++v) {
              const vector values = vector::load_unaligned(token[c] + k + v * vector::size);
              acc[r][c] = fused_multiply_add(weights[v], values, acc[r][c]);
            }
          });
        });
      }
    }
    unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
      float last[2 * vector::size] = {};
      if (r < count && whole != in) decode<Arch>(w, first + r, whole, in - whole, last);
      unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
        if (r >= count || c >= tokens) return;
        for (std::size_t i = whole; i < in; i += vector::size) {
          const std::size_t some = std::min(vector::size, in - i);
          acc[r][c] = fused_multiply_add(vector::load_unaligned(last + (i - whole)),
                                         load_tail<Arch>(token[c] + i, some), acc[r][c]);
        }
        out[r + c * stride] = sum<Arch>(acc[r][c]);
      });
    });
  }

  static void product(const scaled_matrix& w, const view<const Code, 2>& codes, std::size_t first, std::size_t rows,
                      const float* const* x, std::size_t tokens, float* out, std::size_t stride) noexcept {
    for (std::size_t n = 0; n < rows; n += R) {
      tile(w, codes, first + n, std::min(R, rows - n), x, tokens, out + n, stride);
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE
