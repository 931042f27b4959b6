// Products of scaled matrices (quant/scaled_matrix.hpp). Codes become float32 numbers in the registers, and those are
// multiplied as float32 matrices are: the bits are those of the dequantized matrix.
//
// One or two tokens are multiplied on the way (`scaled_tile`); for more, a piece of some rows is first decoded into the
// cache, once for all of them (`decode`).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <variant>

#include "../../core/simd.hpp"
#include "../../core/widen.hpp"
#include "../../quant/format.hpp"
#include "../../quant/scaled_matrix.hpp"
#include "micro_kernel.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Codes from the even element i on as float32.
template <class Arch, class Code>
batch<float, Arch> load_codes(const Code* row, std::size_t i) {
  return widen<Arch>(row + i);
}
template <class Arch>
batch<float, Arch> load_codes(const int4_pair* row, std::size_t i) {
  using vector = batch<float, Arch>;
#if defined(__AVX2__)
  const int4_pair* from = row + i / 2;
  if constexpr (vector::size == 8) {
    std::int32_t eight = 0;
    std::memcpy(&eight, from, 4);
    const __m256i all = _mm256_srlv_epi32(_mm256_set1_epi32(eight), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    const __m256i codes = _mm256_sub_epi32(_mm256_and_si256(all, _mm256_set1_epi32(15)), _mm256_set1_epi32(8));
    return vector(_mm256_cvtepi32_ps(codes));
  }
#endif
#if defined(__AVX512F__)
  if constexpr (vector::size == 16) {
    const __m128i pairs = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    const __m128i low = _mm_and_si128(pairs, _mm_set1_epi8(15)),
                  high = _mm_and_si128(_mm_srli_epi16(pairs, 4), _mm_set1_epi8(15));
    const __m128i codes = _mm_sub_epi8(_mm_unpacklo_epi8(low, high), _mm_set1_epi8(8));
    return vector(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)));
  }
#endif
  float lanes[vector::size];
  for (std::size_t l = 0; l < vector::size; ++l) lanes[l] = code_value(row, i + l);
  return vector::load_unaligned(lanes);
}

// scale · (code - zero): what code_number is to one code. Only integers have zero points.
template <class Arch, class Code>
[[gnu::always_inline]] inline batch<float, Arch> load_numbers(const Code* row, std::size_t i,
                                                              const batch<float, Arch>& scale,
                                                              const batch<float, Arch>& zero) {
  if constexpr (has_zero<Code>) {
    return (load_codes<Arch>(row, i) - zero) * scale;
  } else {
    return load_codes<Arch>(row, i) * scale;
  }
}

// Elements [begin, begin + count) of a row to y, as dequantize_row; `begin` is even.
template <class Arch>
void decode(const scaled_matrix& w, std::size_t row, std::size_t begin, std::size_t count, float* y) noexcept {
  using vector = batch<float, Arch>;
  for_each_part(w, row, begin, begin + count,
                [&]<class Code>(const Code* codes, std::size_t k, std::size_t end, float scale, float zero) {
                  for (; k + vector::size <= end; k += vector::size) {
                    load_numbers<Arch>(codes, k, vector(scale), vector(zero)).store_unaligned(y + (k - begin));
                  }
                  for (; k < end; ++k) y[k - begin] = code_number(codes, k, scale, zero);
                });
}

// Whether no vector along k holds numbers of two tiles.
template <class Arch>
bool whole_vectors(const scaled_matrix& w) {
  return w.tile_columns % batch<float, Arch>::size == 0 || w.tile_columns >= in_features(w);
}

// out[r + c · stride] for rows first + r, r < count <= tile_rows, and tokens x[c], c < C, in the order of dot_tile.
template <class Arch, std::size_t C, class Code>
void scaled_tile(const scaled_matrix& w, const view<const Code, 2>& codes, std::size_t first, std::size_t count,
                 const float* const* x, float* out, std::size_t stride) noexcept {
  using vector = batch<float, Arch>;
  constexpr std::size_t R = tile_rows<Arch>, ahead = 2048;  // bytes from what is multiplied to what is asked of memory
  const std::size_t in = codes.extent(1) * codes_each<Code>, whole = in / vector::size * vector::size;
  vector acc[R][C];
  const Code* row[R];
  std::size_t tile_row[R];
  unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
    const std::size_t n = first + std::min(r, count - 1);  // a row that is not there does as one that is
    row[r] = codes.row(n);
    tile_row[r] = (w.first_row + n) / w.tile_rows;
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) { acc[r][c] = vector(0.0f); });
  });
  for (std::size_t begin = 0, tile = 0; begin < whole; begin += w.tile_columns, ++tile) {
    vector scale[R], zero[R];
    unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
      scale[r] = vector(w.scale(tile_row[r], tile));
      zero[r] = vector(w.zero.empty() ? 0.0f : static_cast<float>(w.zero(tile_row[r], tile)));
    });
    const std::size_t end = std::min(whole - begin, w.tile_columns) + begin;
    for (std::size_t k = begin; k < end; k += vector::size) {
      vector weights[R];
      unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
        weights[r] = load_numbers<Arch>(row[r], k, scale[r], zero[r]);
        __builtin_prefetch(row[r] + k / codes_each<Code> + ahead, 0, 3);
      });
      unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
        const vector values = vector::load_unaligned(x[c] + k);
        unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
          acc[r][c] = fused_multiply_add(weights[r], values, acc[r][c]);
        });
      });
    }
  }
  unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
    float last[vector::size] = {};
    if (r < count && whole != in) decode<Arch>(w, first + r, whole, in - whole, last);
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      if (r >= count) return;
      if (whole != in) {
        acc[r][c] =
            fused_multiply_add(vector::load_unaligned(last), load_tail<Arch>(x[c] + whole, in - whole), acc[r][c]);
      }
      out[r + c * stride] = sum<Arch>(acc[r][c]);
    });
  });
}

}  // namespace detail

MOTE_END_NAMESPACE
