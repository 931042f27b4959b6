// Products of packed elements by matrix tiles (core/amx.hpp): 32 tokens by the 32 rows of a panel in four tiles of sums,
// 64 bytes of k at a time. A quad of a panel's strip of 16 rows is a row of a tile, as packed; tokens are laid out in tiles
// (activation_tile.hpp).
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

  // Tokens of one tile, or of two if Two, the first to see the panel if First.
  template <bool Two, bool First>
  static void tile(Tiles& tiles, const std::uint8_t* panel, std::size_t quads, const std::uint8_t* above,
                   const std::uint8_t* below, float* out, std::size_t stride) {
    tiles.template zero<0>();
    tiles.template zero<1>();
    tiles.template zero<2>();
    tiles.template zero<3>();
    const auto step = [&](const std::uint8_t* w, std::size_t quad) {
      if constexpr (First) {
        for (std::size_t i = 0; i < tile_height * layout::quad_bytes; i += 64) {
          __builtin_prefetch(w + look_ahead + i, 0, 2);
        }
      }
      tiles.template load<4>(above + quad * tile_bytes, tile_bytes);
      tiles.template stream<6>(w, layout::quad_bytes);
      tiles.template stream<7>(w + tile_bytes, layout::quad_bytes);
      dot<0, 4, 6>(tiles);
      dot<1, 4, 7>(tiles);
      if constexpr (Two) {
        tiles.template load<5>(below + quad * tile_bytes, tile_bytes);
        dot<2, 5, 6>(tiles);
        dot<3, 5, 7>(tiles);
      }
    };
    const std::size_t whole = quads / tile_height * tile_height;
    for (std::size_t q = 0; q < whole; q += tile_height) step(panel + q * layout::quad_bytes, q);
    if (whole < quads) {
      std::uint8_t last[tile_height * layout::quad_bytes] = {};
      std::memcpy(last, panel + whole * layout::quad_bytes, (quads - whole) * layout::quad_bytes);
      step(last, whole);
    }
    tiles.template store<0>(out, stride * 4);
    tiles.template store<1>(out + 16, stride * 4);
    if constexpr (Two) {
      float* const lower = out + tile_height * stride;
      tiles.template store<2>(lower, stride * 4);
      tiles.template store<3>(lower + 16, stride * 4);
    }
  }

  // As element_kernel::product, without surplus; x[i] holds the tokens from 16 i on.
  static void product(const packed_matrix<T>& w, std::size_t first, std::size_t panels, const std::uint8_t* const* x,
                      std::size_t count, float* out, std::size_t stride) {
    const std::size_t whole = count / tokens * tokens;
    if (whole > 0) multiply_tokens<true>(w, first, panels, x, 0, whole, tokens, out, stride);
    if (count - whole > tile_height) {
      multiply_tokens<true>(w, first, panels, x, whole, count, count - whole, out, stride);
    } else if (count > whole) {
      multiply_tokens<false>(w, first, panels, x, whole, count, count - whole, out, stride);
    }
  }

 private:
  // The tokens [begin, end), `each` at once; a panel is read for all of them before the next.
  template <bool Two>
  static void multiply_tokens(const packed_matrix<T>& w, std::size_t first, std::size_t panels,
                              const std::uint8_t* const* x, std::size_t begin, std::size_t end, std::size_t each,
                              float* out, std::size_t stride) {
    const tile_shape above{std::min(each, tile_height)}, below{Two ? each - tile_height : 1}, weights{tile_height};
    Tiles tiles(tile_shapes{above, above, below, below, above, below, weights, weights});
    const std::size_t quads = layout::quads(w.in_features());
    for (std::size_t i = 0; i < panels; ++i) {
      for (std::size_t t = begin; t < end; t += tokens) {
        const std::uint8_t* const* const token = x + t / tile_height;
        const auto run = t == 0 ? &tile_kernel::template tile<Two, true> : &tile_kernel::template tile<Two, false>;
        run(tiles, w.panel(first + i), quads, token[0], Two ? token[1] : nullptr, out + t * stride + i * packed_rows,
            stride);
      }
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE
