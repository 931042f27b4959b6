// Products of packed int8 matrices by ARM's matrix products (i8mm): smmla multiplies two rows by two tokens over eight k.
// The sums are exact, so they are those of element_kernel.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__ARM_FEATURE_MATMUL_INT8)
#include <arm_neon.h>
#endif

#include "../../quant/packed.hpp"
#include "micro_kernel.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

#if defined(__ARM_FEATURE_MATMUL_INT8)

inline constexpr bool has_int8_matrix_products = true;

// Tiles of 8 rows, two strips of four, by up to 6 tokens; an odd token is multiplied twice.
struct pair_kernel {
  using layout = packed_layout<std::int8_t>;
  static constexpr std::size_t strips = 2, tokens = 6;

  // Two strips' quads [q, q + 1] as pairs of rows of eight k each.
  static void load_rows(const std::uint8_t* w, bool two, int8x16_t (&rows)[2 * strips]) {
    for (std::size_t s = 0; s < strips; ++s) {
      const int32x4_t first = vreinterpretq_s32_u8(vld1q_u8(w + s * 16));
      const int32x4_t second = two ? vreinterpretq_s32_u8(vld1q_u8(w + s * 16 + layout::quad_bytes)) : vdupq_n_s32(0);
      rows[2 * s] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
      rows[2 * s + 1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
    }
  }
  static int8x8_t load_codes(const std::uint8_t* x, bool two) {
    std::uint64_t codes = 0;
    std::memcpy(&codes, x, two ? 8 : 4);
    return vcreate_s8(codes);
  }

  // Pairs of tokens x[2 p], x[2 p + 1]; sums go on from out[row + t · stride] if `resume`.
  template <std::size_t Pairs>
  static void tile(const std::uint8_t* w, const std::uint8_t* const* x, std::size_t quads, bool resume, float* out,
                   std::size_t count, std::size_t stride) noexcept {
    int32x4_t acc[2 * strips][Pairs];
    unroll<Pairs>([&](std::size_t p) __attribute__((always_inline)) {
      const float* even = out + std::min(2 * p, count - 1) * stride;
      const float* odd = out + std::min(2 * p + 1, count - 1) * stride;
      unroll<strips>([&](std::size_t s) __attribute__((always_inline)) {
        int32x4_t first = vdupq_n_s32(0), second = first;
        if (resume) {
          first = vreinterpretq_s32_f32(vld1q_f32(even + s * 4));
          second = vreinterpretq_s32_f32(vld1q_f32(odd + s * 4));
        }
        acc[2 * s][p] = vzip1q_s32(first, second);
        acc[2 * s + 1][p] = vzip2q_s32(first, second);
      });
    });
    const auto step = [&](std::size_t q, bool two) __attribute__((always_inline)) {
      int8x16_t rows[2 * strips];
      load_rows(w + q * layout::quad_bytes, two, rows);
      unroll<Pairs>([&](std::size_t p) __attribute__((always_inline)) {
        const int8x16_t both = vcombine_s8(load_codes(x[2 * p] + q * 4, two), load_codes(x[2 * p + 1] + q * 4, two));
        unroll<2 * strips>([&](std::size_t r)
                               __attribute__((always_inline)) { acc[r][p] = vmmlaq_s32(acc[r][p], rows[r], both); });
      });
    };
    for (std::size_t q = 0; q + 2 <= quads; q += 2) step(q, true);
    if (quads % 2 != 0) step(quads - 1, false);
    unroll<Pairs>([&](std::size_t p) __attribute__((always_inline)) {
      unroll<strips>([&](std::size_t s) __attribute__((always_inline)) {
        const int32x4_t a = acc[2 * s][p], b = acc[2 * s + 1][p];
        vst1q_f32(out + 2 * p * stride + s * 4, vreinterpretq_f32_s32(vuzp1q_s32(a, b)));
        if (2 * p + 1 < count) {
          vst1q_f32(out + (2 * p + 1) * stride + s * 4, vreinterpretq_f32_s32(vuzp2q_s32(a, b)));
        }
      });
    });
  }

  // As element_kernel::product, without surplus.
  static void product(const packed_matrix<std::int8_t>& w, std::size_t first, std::size_t panels,
                      const std::uint8_t* const* x, std::size_t count, float* out, std::size_t stride) noexcept {
    constexpr std::size_t depth = 1024;  // quads at a time: a panel's lie in the second-level cache
    constexpr auto tiles = std::array{&pair_kernel::tile<1>, &pair_kernel::tile<2>, &pair_kernel::tile<3>};
    const std::size_t quads = layout::quads(w.in_features());
    for (std::size_t begin = 0; begin == 0 || begin < quads; begin += depth) {
      const std::size_t part = std::min(depth, quads - begin);
      for (std::size_t t = 0; t < count; t += tokens) {
        const std::size_t some = std::min(tokens, count - t);
        const std::uint8_t* token[tokens] = {};
        for (std::size_t c = 0; c < tokens; ++c) token[c] = x[t + std::min(c, some - 1)] + begin * 4;
        for (std::size_t row = 0; row < panels * packed_rows; row += strips * 4) {
          const std::uint8_t* panel = w.panel(first + row / packed_rows) + begin * layout::quad_bytes;
          tiles[(some - 1) / 2](panel + row % packed_rows * 4, token, part, begin != 0, out + t * stride + row, some,
                                stride);
        }
      }
    }
  }
};

#else

inline constexpr bool has_int8_matrix_products = false;
struct pair_kernel;

#endif

}  // namespace detail

MOTE_END_NAMESPACE
