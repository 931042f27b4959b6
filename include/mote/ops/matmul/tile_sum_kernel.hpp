// Products of packed bf16 by vectors with the bits that matrix tiles give (core/amx.hpp): for a few tokens, where memory is
// what is waited for, vectors ask more of it than tiles do (Sapphire Rapids, one and four tokens: 1.3 times as fast).
//
// Of each 32 elements of k, a tile sums the products of the even ones and of the odd ones, and adds both sums to what it
// has:
//
//   even = Σ w_2i x_2i,    odd = Σ w_2i+1 x_2i+1,    total += even + odd
//
// in float32, in this order, each product exact; what is subnormal is zero to it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "../../core/amx.hpp"
#include "../../core/types.hpp"
#include "../../core/vector_math.hpp"
#include "../../quant/packed.hpp"
#include "micro_kernel.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

template <class Arch>
struct tile_sum_kernel {
  using floats = batch<float, Arch>;
  using pairs = batch<std::uint32_t, Arch>;
  using layout = packed_layout<bf16>;

  static constexpr std::size_t tokens = 4, lanes = floats::size, strips = 2;
  static constexpr std::size_t look_ahead = 1024;  // bytes from what is multiplied to what is asked of memory

  // As element_kernel::product, without surplus, for at most `tokens` tokens. Two panels side by side: memory gives more to
  // two streams than to one.
  static void product(const packed_matrix<bf16>& w, std::size_t first, std::size_t panels, const std::uint8_t* const* x,
                      std::size_t count, float* out, std::size_t stride) noexcept {
    const std::size_t quads = layout::quads(w.in_features());
    for (std::size_t i = 0; i < panels; i += 2) {
      const std::size_t abreast = std::min<std::size_t>(2, panels - i);
      for (std::size_t c = 0; c < count; ++c)
        std::fill_n(out + c * stride + i * packed_rows, abreast * packed_rows, 0.0f);
      for (std::size_t begin = 0; begin < quads; begin += tile_height) {
        const std::size_t some = std::min(tile_height, quads - begin);
        for (std::size_t p = i; p < i + abreast; ++p) {
          const std::uint8_t* const from = w.panel(first + p) + begin * layout::quad_bytes;
          for (std::size_t n = 0; n < packed_rows; n += strips * lanes) {
            step_of(count)(from + n * 4, some, x, begin * 4, out + p * packed_rows + n, stride);
          }
        }
      }
    }
  }

 private:
  // The `quads` pairs of k that a tile takes at once, of `strips` vectors of rows and C tokens: adds to out[row + c · stride].
  template <std::size_t C>
  static void step(const std::uint8_t* w, std::size_t quads, const std::uint8_t* const* x, std::size_t from, float* out,
                   std::size_t stride) noexcept {
    floats sum[2][strips][C];
    const std::uint8_t* token[C];
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      token[c] = x[c] + from;
      unroll<strips>([&](std::size_t r) __attribute__((always_inline)) { sum[0][r][c] = sum[1][r][c] = floats(0.0f); });
    });
    for (std::size_t q = 0; q < quads; ++q, w += layout::quad_bytes) {
      pairs both[strips];
      unroll<strips>([&](std::size_t r) __attribute__((always_inline)) {
        both[r] = pairs::load_unaligned(reinterpret_cast<const std::uint32_t*>(w) + r * lanes);
        if (r * lanes * 4 % 64 == 0) __builtin_prefetch(w + look_ahead + r * lanes * 4, 0, 3);
      });
      unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
        std::uint32_t pair;
        std::memcpy(&pair, token[c] + q * 4, sizeof pair);
        const floats x_even = first_bf16(pairs(pair)), x_odd = second_bf16(pairs(pair));
        unroll<strips>([&](std::size_t r) __attribute__((always_inline)) {
          sum[0][r][c] = fused_multiply_add(first_bf16(both[r]), x_even, sum[0][r][c]);
          sum[1][r][c] = fused_multiply_add(second_bf16(both[r]), x_odd, sum[1][r][c]);
        });
      });
    }
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      unroll<strips>([&](std::size_t r) __attribute__((always_inline)) {
        float* const to = out + c * stride + r * lanes;
        (floats::load_unaligned(to) + (sum[0][r][c] + sum[1][r][c])).store_unaligned(to);
      });
    });
  }
  static auto step_of(std::size_t count) {
    constexpr auto steps = []<std::size_t... I>(std::index_sequence<I...>) {
      return std::array{&tile_sum_kernel::template step<I + 1>...};
    }
    (std::make_index_sequence<tokens>{});
    return steps[count - 1];
  }
};

}  // namespace detail

MOTE_END_NAMESPACE
