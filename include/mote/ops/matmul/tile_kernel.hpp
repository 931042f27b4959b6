// Products of packed elements by matrix tiles (core/amx.hpp): 32 tokens by the 32 rows of a panel in four tiles of sums,
// 64 bytes of k at a time. A quad of a panel's strip of 16 rows is a row of a tile, as packed.
//
// int8 sums are exact, so they are those of element_kernel; bf16 sums differ from its in their last bits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../core/amx.hpp"
#include "../../quant/packed.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

template <class Tiles, packable_element T>
struct tile_kernel {
  using layout = packed_layout<T>;

  static constexpr std::size_t tokens = 2 * tile_height;
  // Quads at a time whose tokens are put side by side, rows a line further apart than a power of two.
  static constexpr std::size_t depth = 512, x_stride = depth * 4 + tile_bytes;

  template <int C, int A, int B>
  static void dot(Tiles& tiles) {
    if constexpr (std::is_same_v<T, std::int8_t>) {
      tiles.template dot_int8<C, A, B>();
    } else {
      tiles.template dot_bf16<C, A, B>();
    }
  }

  // `count` tokens, more than 16 of them if Two; sums go on from out[row + c · stride] where there were quads before these.
  template <bool Two>
  static void tile(const std::uint8_t* panel, const std::uint8_t* x, std::size_t quads, std::size_t count, bool resume,
                   float* out, std::size_t stride) {
    const std::size_t upper = Two ? tile_height : count, lower = Two ? count - tile_height : 1;
    float* const below = out + tile_height * stride;
    Tiles tiles({upper, upper, lower, lower, upper, lower, tile_height, tile_height});
    if (resume) {
      tiles.template load<0>(out, stride * 4);
      tiles.template load<1>(out + 16, stride * 4);
      if constexpr (Two) {
        tiles.template load<2>(below, stride * 4);
        tiles.template load<3>(below + 16, stride * 4);
      }
    } else {
      tiles.template zero<0>();
      tiles.template zero<1>();
      tiles.template zero<2>();
      tiles.template zero<3>();
    }
    const auto step = [&](const std::uint8_t* w, const std::uint8_t* from) {
      tiles.template load<4>(from, x_stride);
      tiles.template load<6>(w, layout::quad_bytes);
      tiles.template load<7>(w + tile_bytes, layout::quad_bytes);
      dot<0, 4, 6>(tiles);
      dot<1, 4, 7>(tiles);
      if constexpr (Two) {
        tiles.template load<5>(from + tile_height * x_stride, x_stride);
        dot<2, 5, 6>(tiles);
        dot<3, 5, 7>(tiles);
      }
    };
    const std::size_t whole = quads / tile_height * tile_height;
    for (std::size_t q = 0; q < whole; q += tile_height) step(panel + q * layout::quad_bytes, x + q * 4);
    if (whole < quads) {
      std::uint8_t last[tile_height * layout::quad_bytes] = {};
      std::memcpy(last, panel + whole * layout::quad_bytes, (quads - whole) * layout::quad_bytes);
      step(last, x + whole * 4);
    }
    tiles.template store<0>(out, stride * 4);
    tiles.template store<1>(out + 16, stride * 4);
    if constexpr (Two) {
      tiles.template store<2>(below, stride * 4);
      tiles.template store<3>(below + 16, stride * 4);
    }
  }

  // As element_kernel::product, without surplus.
  static void product(const packed_matrix<T>& w, std::size_t first, std::size_t panels, const std::uint8_t* const* x,
                      std::size_t count, float* out, std::size_t stride) {
    alignas(64) std::uint8_t side_by_side[tokens * x_stride];
    const std::size_t quads = layout::quads(w.in_features());
    for (std::size_t begin = 0; begin == 0 || begin < quads; begin += depth) {
      const std::size_t part = std::min(depth, quads - begin);
      const std::size_t padded = (part + tile_height - 1) / tile_height * tile_height;
      for (std::size_t t = 0; t < count; t += tokens) {
        const std::size_t some = std::min(tokens, count - t);
        for (std::size_t c = 0; c < some && part > 0; ++c) {
          std::memcpy(side_by_side + c * x_stride, x[t + c] + begin * 4, part * 4);
          std::memset(side_by_side + c * x_stride + part * 4, 0, (padded - part) * 4);
        }
        for (std::size_t i = 0; i < panels; ++i) {
          const std::uint8_t* panel = w.panel(first + i) + begin * layout::quad_bytes;
          float* const to = out + t * stride + i * packed_rows;
          const auto run = some > tile_height ? &tile_kernel::template tile<true> : &tile_kernel::template tile<false>;
          run(panel, side_by_side, part, some, begin != 0, to, stride);
        }
      }
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE
