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
  // Quads at a time whose tokens are put side by side, rows a line further apart than a power of two: they stay in the
  // first-level cache while the panels of a unit pass by.
  static constexpr std::size_t depth = 128, x_stride = depth * 4 + tile_bytes;
  // Bytes from what is multiplied to what is asked of memory.
  static constexpr std::size_t look_ahead = 8192;

  template <int C, int A, int B>
  static void dot(Tiles& tiles) {
    if constexpr (std::is_same_v<T, std::int8_t>) {
      tiles.template dot_int8<C, A, B>();
    } else {
      tiles.template dot_bf16<C, A, B>();
    }
  }

  // `count` tokens, more than 16 of them if Two, the first to see the panel if First; sums go on from out[row + c · stride]
  // where there were quads before these.
  template <bool Two, bool First>
  static void tile(Tiles& tiles, const std::uint8_t* panel, const std::uint8_t* x, std::size_t quads, bool resume,
                   float* out, std::size_t stride) {
    float* const below = out + tile_height * stride;
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
      if constexpr (First) {
        for (std::size_t i = 0; i < tile_height * layout::quad_bytes; i += 64) {
          __builtin_prefetch(w + look_ahead + i, 0, 2);
        }
      }
      tiles.template load<4>(from, x_stride);
      tiles.template stream<6>(w, layout::quad_bytes);
      tiles.template stream<7>(w + tile_bytes, layout::quad_bytes);
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
    for (std::size_t t = 0; t < count; t += tokens) {
      const std::size_t some = std::min(tokens, count - t), upper = std::min(some, tile_height),
                        lower = some > tile_height ? some - tile_height : 1;
      const tile_shape above{upper}, below{lower}, weights{tile_height};
      Tiles tiles(tile_shapes{above, above, below, below, above, below, weights, weights});
      const auto run =
          some > tile_height
              ? (t == 0 ? &tile_kernel::template tile<true, true> : &tile_kernel::template tile<true, false>)
          : t == 0 ? &tile_kernel::template tile<false, true>
                   : &tile_kernel::template tile<false, false>;
      for (std::size_t begin = 0; begin == 0 || begin < quads; begin += depth) {
        const std::size_t part = std::min(depth, quads - begin);
        const std::size_t padded = (part + tile_height - 1) / tile_height * tile_height;
        for (std::size_t c = 0; c < some && part > 0; ++c) {
          std::memcpy(side_by_side + c * x_stride, x[t + c] + begin * 4, part * 4);
          std::memset(side_by_side + c * x_stride + part * 4, 0, (padded - part) * 4);
        }
        for (std::size_t i = 0; i < panels; ++i) {
          run(tiles, w.panel(first + i) + begin * layout::quad_bytes, side_by_side, part, begin != 0,
              out + t * stride + i * packed_rows, stride);
        }
      }
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE
