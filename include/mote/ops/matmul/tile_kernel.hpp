// Products of packed elements by matrix tiles (core/amx.hpp): 32 tokens by the 32 rows of a panel, or 16 tokens by two
// panels, in four tiles of sums, 64 bytes of k at a time. A quad of a panel's strip of 16 rows is a row of a tile, as packed;
// tokens are laid out in tiles (activation_tile.hpp).
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
  // Bytes from what is multiplied to what is asked of memory, then of the second-level cache: tiles themselves wait for one
  // line at a time. Sapphire Rapids, bf16: with both 18 GB/s up to 16 tokens, with one 15.
  static constexpr std::size_t look_ahead = 8192, near_ahead = 4096;

  template <int C, int A, int B>
  static void dot(Tiles& tiles) {
    if constexpr (std::is_same_v<T, std::int8_t>) {
      tiles.template dot_int8<C, A, B>();
    } else {
      tiles.template dot_bf16<C, A, B>();
    }
  }

  // Tokens of one tile or two by one panel or, for tokens of one tile, two, over `quads` quads of k, whose sums are added to
  // those in `out` if `resume`. ahead(w) asks for what is multiplied after the 64 bytes of k at w[p] of each panel.
  template <std::size_t TokenTiles, std::size_t Panels, class Ahead>
  static void tile(Tiles& tiles, const std::uint8_t* const* panel, std::size_t quads, const std::uint8_t* const* x,
                   bool resume, float* out, std::size_t stride, Ahead&& ahead) {
    static_assert(TokenTiles * Panels <= 2);
    float* const other = out + (TokenTiles == 2 ? tile_height * stride : packed_rows);
    if (resume) {
      tiles.template load<0>(out, stride * 4);
      tiles.template load<1>(out + 16, stride * 4);
      if constexpr (TokenTiles * Panels == 2) {
        tiles.template load<2>(other, stride * 4);
        tiles.template load<3>(other + 16, stride * 4);
      }
    } else {
      tiles.template zero<0>();
      tiles.template zero<1>();
      tiles.template zero<2>();
      tiles.template zero<3>();
    }
    const auto step = [&](const std::uint8_t* const* w, std::size_t quad) {
      ahead(w);
      tiles.template load<4>(x[0] + quad * tile_bytes, tile_bytes);
      tiles.template stream<6>(w[0], layout::quad_bytes);
      tiles.template stream<7>(w[0] + tile_bytes, layout::quad_bytes);
      dot<0, 4, 6>(tiles);
      dot<1, 4, 7>(tiles);
      if constexpr (TokenTiles == 2) {
        tiles.template load<5>(x[1] + quad * tile_bytes, tile_bytes);
        dot<2, 5, 6>(tiles);
        dot<3, 5, 7>(tiles);
      } else if constexpr (Panels == 2) {
        tiles.template stream<5>(w[1], layout::quad_bytes);
        tiles.template stream<6>(w[1] + tile_bytes, layout::quad_bytes);
        dot<2, 4, 5>(tiles);
        dot<3, 4, 6>(tiles);
      }
    };
    const std::size_t whole = quads / tile_height * tile_height;
    const std::uint8_t* next[Panels];
    std::copy_n(panel, Panels, next);
    for (std::size_t q = 0; q < whole; q += tile_height) {
      step(next, q);
      for (const std::uint8_t*& p : next) p += tile_height * layout::quad_bytes;
    }
    if (whole < quads) {
      std::uint8_t last[Panels][tile_height * layout::quad_bytes] = {};
      for (std::size_t p = 0; p < Panels; ++p) {
        std::memcpy(last[p], next[p], (quads - whole) * layout::quad_bytes);
        next[p] = last[p];
      }
      step(next, whole);
    }
    tiles.template store<0>(out, stride * 4);
    tiles.template store<1>(out + 16, stride * 4);
    if constexpr (TokenTiles * Panels == 2) {
      tiles.template store<2>(other, stride * 4);
      tiles.template store<3>(other + 16, stride * 4);
    }
  }

  // As element_kernel::product, without surplus; x[i] holds the tokens from 16 i on.
  static void product(const packed_matrix<T>& w, std::size_t first, std::size_t panels, const std::uint8_t* const* x,
                      std::size_t count, float* out, std::size_t stride) {
    const std::size_t whole = count / tokens * tokens;
    if (whole > few && layout::quads(w.in_features()) > depth) {
      multiply_many(w, first, panels, x, whole, out, stride);
    } else if (whole > 0) {
      multiply_tokens(w, first, panels, x, 0, whole, tokens, out, stride);
    }
    if (count - whole > tile_height) {
      multiply_tokens(w, first, panels, x, whole, count, count - whole, out, stride);
    } else if (count > whole) {
      multiply_one(w, first, panels, x, whole, count - whole, out, stride);
    }
  }

 private:
  // Tokens, in pairs of whole tiles, up to which a panel is read from front to back, as memory is fastest.
  static constexpr std::size_t few = 64;
  // Quads of k that more tokens take at a time: 32 tokens' 16 KiB of it stay in the first cache while the panels pass.
  static constexpr std::size_t depth = 8 * tile_height;

  struct nothing {
    void operator()(const std::uint8_t* const*) const {}
  };
  template <std::size_t Panels>
  struct same_panels {
    void operator()(const std::uint8_t* const* w) const {
      for (std::size_t p = 0; p < Panels; ++p) {
        for (std::size_t i = 0; i < tile_height * layout::quad_bytes; i += 64) {
          __builtin_prefetch(w[p] + look_ahead + i, 0, 2);
          __builtin_prefetch(w[p] + near_ahead + i, 0, 3);
        }
      }
    }
  };

  // Asks the second-level cache for `bytes` bytes from p on, in equal steps of whole lines.
  class even_fetch {
   public:
    even_fetch(const std::uint8_t* p, std::size_t bytes, std::size_t steps)
        : next_(p), lines_((bytes / 64 + steps - 1) / steps) {}
    void step() {
      for (std::size_t i = 0; i < lines_; ++i, next_ += 64) __builtin_prefetch(next_, 0, 2);
    }

   private:
    const std::uint8_t* next_;
    std::size_t lines_;
  };

  // The tokens [0, end), two tiles at once, a piece of k at a time: sums wait in `out` for the next piece. Meanwhile each
  // panel's next piece and the next tokens are asked for, evenly.
  static void multiply_many(const packed_matrix<T>& w, std::size_t first, std::size_t panels,
                            const std::uint8_t* const* x, std::size_t end, float* out, std::size_t stride) {
    const tile_shape full{tile_height};
    Tiles tiles(tile_shapes{full, full, full, full, full, full, full, full});
    const std::size_t quads = layout::quads(w.in_features()), pairs = end / tokens;
    for (std::size_t begin = 0; begin < quads; begin += depth) {
      const std::size_t some = std::min(depth, quads - begin), steps = (some + tile_height - 1) / tile_height;
      const std::size_t following = begin + some < quads ? begin + some : 0;  // other panels begin again
      const std::size_t panel_share = following > 0 ? some * layout::quad_bytes / pairs : 0;
      const std::size_t token_share = some * tile_bytes / panels;
      for (std::size_t pair = 0; pair < pairs; ++pair) {
        const std::uint8_t* const now[] = {x[2 * pair] + begin * tile_bytes, x[2 * pair + 1] + begin * tile_bytes};
        const std::size_t next = pair + 1 < pairs ? 2 * pair + 2 : 0;
        const std::size_t next_begin = (next > 0 ? begin : following) * tile_bytes;
        for (std::size_t i = 0; i < panels; ++i) {
          const std::uint8_t* const panel = w.panel(first + i) + begin * layout::quad_bytes;
          even_fetch weights(panel + some * layout::quad_bytes + pair * panel_share, panel_share, steps);
          even_fetch above(x[next] + next_begin + i * token_share, token_share, steps);
          even_fetch below(x[next + 1] + next_begin + i * token_share, token_share, steps);
          tile<2, 1>(tiles, &panel, some, now, begin > 0, out + pair * tokens * stride + i * packed_rows, stride,
                     [&](const std::uint8_t* const*) {
                       weights.step();
                       above.step();
                       below.step();
                     });
        }
      }
    }
  }

  // The tokens [begin, end), `each` at once, in two tiles; a panel is read for all of them before the next.
  static void multiply_tokens(const packed_matrix<T>& w, std::size_t first, std::size_t panels,
                              const std::uint8_t* const* x, std::size_t begin, std::size_t end, std::size_t each,
                              float* out, std::size_t stride) {
    const tile_shape above{tile_height}, below{each - tile_height}, weights{tile_height};
    Tiles tiles(tile_shapes{above, above, below, below, above, below, weights, weights});
    const std::size_t quads = layout::quads(w.in_features());
    for (std::size_t i = 0; i < panels; ++i) {
      const std::uint8_t* const panel = w.panel(first + i);
      for (std::size_t t = begin; t < end; t += tokens) {
        float* const to = out + t * stride + i * packed_rows;
        if (t == 0) {
          tile<2, 1>(tiles, &panel, quads, x, false, to, stride, same_panels<1>{});
        } else {
          tile<2, 1>(tiles, &panel, quads, x + t / tile_height, false, to, stride, nothing{});
        }
      }
    }
  }

  // The tokens [begin, begin + count) of one tile. Two panels side by side: memory gives more to two streams than to one.
  static void multiply_one(const packed_matrix<T>& w, std::size_t first, std::size_t panels,
                           const std::uint8_t* const* x, std::size_t begin, std::size_t count, float* out,
                           std::size_t stride) {
    const tile_shape rows{count}, weights{tile_height};
    Tiles tiles(tile_shapes{rows, rows, rows, rows, rows, weights, weights, weights});
    const std::size_t quads = layout::quads(w.in_features());
    x += begin / tile_height;
    out += begin * stride;
    const auto multiply = [&](auto&& two_ahead, auto&& one_ahead) {
      for (std::size_t i = 0; i < panels; i += 2) {
        const std::uint8_t* const panel[] = {w.panel(first + i), i + 1 < panels ? w.panel(first + i + 1) : nullptr};
        if (i + 1 < panels) {
          tile<1, 2>(tiles, panel, quads, x, false, out + i * packed_rows, stride, two_ahead);
        } else {
          tile<1, 1>(tiles, panel, quads, x, false, out + i * packed_rows, stride, one_ahead);
        }
      }
    };
    if (begin == 0) {
      multiply(same_panels<2>{}, same_panels<1>{});
    } else {
      multiply(nothing{}, nothing{});  // tokens before these have read the panels
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE
