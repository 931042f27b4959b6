// Products of packed elements (quant/packed.hpp), int8 codes or bf16: a tile of R vectors of output rows by C tokens.
//
//   std::int8_t   exact int32 sums of codes; activations are int8 codes too. x86 multiplies unsigned by signed: weights are
//                 read as q + 128, and 128 · Σ x is taken off before
//   bf16          activations are rounded to bf16, sums in float32; with AVX-512 BF16 as vdpbf16ps adds them, elsewhere
//                 one multiply-add after the other, for which activations are float32 again
//
// A token's result has the same bits alone and in a batch.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../../core/int8_dot.hpp"
#include "../../core/vector_math.hpp"
#include "../../quant/packed.hpp"
#include "micro_kernel.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// What a quad of weights and one of activations add to a vector of sums, a row in each lane, in one or two parts.
template <class Arch, class T>
struct element_dot;

template <class Arch>
struct element_dot<Arch, std::int8_t> {
  using dot = int8_dot<Arch>;
  using sums = typename dot::ints;
  using operand = typename dot::operand;
  static constexpr std::size_t lanes = dot::lanes, parts = 1;
  static constexpr bool unsigned_weights = dot::unsigned_limit == 255;
  static constexpr std::size_t x_bytes = 4;  // a quad of activations

  // 128 · Σ x is beyond int32 for rows of more than 131072; sums wrap, and so come out right.
  static sums start(std::int32_t code_sum) {
    const auto surplus = unsigned_weights ? 128 * static_cast<std::uint32_t>(code_sum) : 0u;
    return dot::splat(static_cast<std::int32_t>(-surplus));
  }
  template <std::size_t>
  static operand load(const std::uint8_t* w) {
    if constexpr (unsigned_weights) {
      return dot::flip_signs(dot::load(w));
    } else {
      return dot::load(w);
    }
  }
  template <std::size_t>
  static operand splat(const std::uint8_t* x) {
    return dot::splat_codes(reinterpret_cast<const std::int8_t*>(x));
  }
  static sums add(sums acc, const operand& w, const operand& x) {
    if constexpr (unsigned_weights) {
      return dot::dot_unsigned(acc, w, x);
    } else {
      return dot::dot_signed(acc, w, x);
    }
  }
};

template <class Arch>
struct element_dot<Arch, bf16> {
  using sums = batch<float, Arch>;
  static constexpr std::size_t lanes = sums::size;
#if defined(__AVX512BF16__)
  static constexpr bool dot_products = lanes == 16;
#else
  static constexpr bool dot_products = false;
#endif
  // Pairs as they are; or the even element of each, then the odd one, widened.
  using pairs = batch<std::uint32_t, Arch>;
  using operand = std::conditional_t<dot_products, pairs, sums>;
  static constexpr std::size_t parts = dot_products ? 1 : 2, x_bytes = dot_products ? 4 : 8;

  static sums start(std::int32_t) { return sums(0.0f); }
  template <std::size_t Part>
  static operand load(const std::uint8_t* w) {
    const auto both = pairs::load_unaligned(reinterpret_cast<const std::uint32_t*>(w));
    if constexpr (dot_products) {
      return both;
    } else {
      return Part == 0 ? first_bf16(both) : second_bf16(both);
    }
  }
  template <std::size_t Part>
  static operand splat(const std::uint8_t* x) {
    std::conditional_t<dot_products, std::uint32_t, float> value;
    std::memcpy(&value, x + Part * sizeof value, sizeof value);
    return operand(value);
  }
  static sums add(const sums& acc, const operand& w, const operand& x) {
    if constexpr (dot_products) {
#if defined(__AVX512BF16__)
      return sums(_mm512_dpbf16_ps(acc, bf16_lanes(w), bf16_lanes(x)));
#endif
    } else {
      return fused_multiply_add(w, x, acc);
    }
  }
#if defined(__AVX512BF16__)
  static __m512bh bf16_lanes(const batch<std::uint32_t, Arch>& x) {
    const __m512i bits = x;
    return reinterpret_cast<__m512bh>(bits);
  }
#endif
};

template <class Arch, class T>
struct element_kernel {
  using dot = element_dot<Arch, T>;
  using layout = packed_layout<T>;
  using sums = typename dot::sums;
  using operand = typename dot::operand;

  // Vectors of rows. One or two tokens take four, so that with AVX2 a panel is read from front to back.
  static constexpr std::size_t lanes = dot::lanes, strips = many_registers<Arch> ? 4 : 2, few_tokens = 2,
                               few_strips = 4;
  // Widened bf16 adds to each sum twice a quad: ten sums hide the latency of that, eight do not.
  static constexpr std::size_t tokens = many_registers<Arch> ? 6 : std::is_same_v<T, bf16> ? 5 : 4;
  // Rows that a tile covers, and that are shared out together: of two panels with AVX-512.
  static constexpr std::size_t rows = std::max(strips * lanes, packed_rows);
  // Bytes from what is multiplied to what is asked of memory; with AVX-512 there are two panels. Zen 4 with AVX-512, three and
  // four tokens, int8 and bf16: at 1 KiB 1.25 and 1.35 times as fast as at 4, six tokens 0.9 times; without 1.2 and 0.95 times.
  static constexpr std::size_t look_ahead(std::size_t token_count) {
    constexpr std::size_t near_tokens = lanes == 16 && !has_tiles_beside<Arch> ? 4 : few_tokens;
    return token_count > near_tokens ? 4096 : strips * lanes > packed_rows ? 1024 : 1536;
  }
  // Zen 4 with AVX-512 gives the second-level cache more than the first, at any distance: one token, int8, 35 and 32 GB/s,
  // four tokens 31 and 27. With AVX2 it gives more to the first, two tokens 26 and 25.
  static constexpr int locality = lanes == 16 && !has_tiles_beside<Arch> ? 2 : 3;

  // strip[R]: the first quad of each vector of rows; x[C]: the first quad of each token; sums go on from out[c · stride +
  // r · lanes], where there were quads before these (`resume`), and are left there as they are.
  template <std::size_t R, std::size_t C>
  static void tile(const std::uint8_t* const* strip, const std::uint8_t* const* x, std::size_t quads,
                   const std::int32_t* code_sum, bool resume, float* out, std::size_t stride) noexcept {
    sums acc[R][C];
    const std::uint8_t *w[R], *token[C];
    unroll<R>([&](std::size_t r) __attribute__((always_inline)) { w[r] = strip[r]; });
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      token[c] = x[c];
      unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
        acc[r][c] = dot::start(code_sum[c]);
        if (resume) std::memcpy(&acc[r][c], out + c * stride + r * lanes, sizeof(sums));
      });
    });
    for (std::size_t q = 0; q < quads; ++q) {
      const auto multiply = [&]<std::size_t Part>() __attribute__((always_inline)) {
        operand weights[R];
        unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
          const std::uint8_t* from = w[r] + q * layout::quad_bytes;
          weights[r] = dot::template load<Part>(from);
          if (Part == 0 && r * lanes * 4 % 64 == 0) __builtin_prefetch(from + look_ahead(C), 0, locality);
        });
        unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
          const operand quad = dot::template splat<Part>(token[c] + q * dot::x_bytes);
          unroll<R>([&](std::size_t r)
                        __attribute__((always_inline)) { acc[r][c] = dot::add(acc[r][c], weights[r], quad); });
        });
      };
      multiply.template operator()<0>();
      if constexpr (dot::parts == 2) multiply.template operator()<1>();
    }
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
        std::memcpy(out + c * stride + r * lanes, &acc[r][c], sizeof(sums));
      });
    });
  }

  template <std::size_t R, std::size_t Most = tokens>
  static auto function(std::size_t count) {
    constexpr auto tiles = []<std::size_t... I>(std::index_sequence<I...>) {
      return std::array{&element_kernel::template tile<R, I + 1>...};
    }
    (std::make_index_sequence<Most>{});
    return tiles[count - 1];
  }

  // `panels` consecutive panels of w from panel `first` on against `count` tokens x[c] of in_features(w), padded to
  // whole quads: the sums, to out[row + c · stride].
  static void product(const packed_matrix<T>& w, std::size_t first, std::size_t panels, const std::uint8_t* const* x,
                      const std::int32_t* code_sum, std::size_t count, float* out, std::size_t stride) noexcept {
    constexpr std::size_t in_panel = packed_rows / lanes;
    // Quads at a time: what a tile's rows have of them stays in a cache while tokens pass by. Where a tile has not all the
    // rows of a panel, those of few passes must not lag far behind each other, or memory is read in pieces: Zen 3, four
    // tokens, went from 12 to 17 GB/s, Zen 4 with AVX2, six tokens, bf16, from 750 to 470 us.
    constexpr bool whole_panels = strips * lanes >= packed_rows;
    constexpr std::size_t few_passes_tokens = 24;  // with more it makes no difference
    const std::size_t quads = layout::quads(w.in_features());
    std::size_t step = std::max(quads, std::size_t{1});
    if constexpr (whole_panels) {
      if (count > tokens) step = 1024;
    } else {
      if (count > few_tokens) step = count > few_passes_tokens ? 128 : 16;
    }
    const std::size_t apart = quads == 0 ? 0 : lanes * 4;  // an empty matrix has no memory to step in
    for (std::size_t begin = 0; begin == 0 || begin < quads; begin += step) {
      const std::size_t part = std::min(step, quads - begin);
      for (std::size_t s = 0; s < panels * in_panel;) {
        const std::size_t available = panels * in_panel - s, wanted = count <= few_tokens ? few_strips : strips;
        const std::size_t taken = available >= wanted ? wanted : std::min(strips, in_panel);
        const std::uint8_t* strip[std::max(strips, few_strips)] = {};
        for (std::size_t r = 0; r < taken; ++r) {
          strip[r] = w.panel(first + (s + r) / in_panel) + begin * layout::quad_bytes + (s + r) % in_panel * apart;
        }
        // Evenly: a tile of one token takes as long as one of three.
        for (std::size_t t = 0, some = 0, left = (count + tokens - 1) / tokens; left != 0; t += some, --left) {
          some = (count - t + left - 1) / left;
          const std::uint8_t* token[tokens] = {};
          for (std::size_t c = 0; c < some; ++c) token[c] = x[t + c] + begin * dot::x_bytes;
          const auto run = taken == strips                              ? function<strips>(some)
                           : taken == few_strips && count <= few_tokens ? function<few_strips, few_tokens>(some)
                                                                        : function<std::min(strips, in_panel)>(some);
          run(strip, token, part, code_sum + t, begin != 0, out + t * stride + s * lanes, stride);
        }
        s += taken;
      }
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE
