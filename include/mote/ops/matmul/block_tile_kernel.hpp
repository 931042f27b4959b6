// Products of block formats by matrix tiles (core/amx.hpp), with the bits of block_kernel: 16 tokens by the 32 rows of a
// panel, a group of k at a time, whose sums are exact in int32 in either kernel.
//
// A packed strip of 16 rows is the order in which tiles read signed bytes: wide codes are multiplied where they lie, those of at
// most four bits split into bytes, a piece of a panel at a time, and scales widened to float32. Tokens are laid out in tiles
// (activation_tile.hpp). While tiles multiply two or four groups, vectors scale and add up the sums of those before, some of the
// tokens after each group. Sapphire Rapids, four groups, ns: tiles 63, vectors 66, together so 129, one after the other 147;
// tiles' and vectors' instructions hardly overlap.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>

#include "../../core/amx.hpp"
#include "../../quant/activation_block.hpp"
#include "../../quant/packed.hpp"
#include "activation_tile.hpp"
#include "block_kernel.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// `Elements` of k at a time, or the fewest that are whole blocks.
template <class Tiles, class Arch, integer_format F, std::size_t Elements>
class block_tile_pieces {
  using vectors = block_kernel<Arch, F>;
  using layout = packed_layout<F>;
  using floats = typename vectors::floats;
  using ints = typename vectors::ints;
  using line = int8_dot<Arch, 16>;  // sixteen rows' four codes

  static constexpr std::size_t size = F::group_size, lanes = 16, strips = packed_rows / lanes,
                               in_panel = packed_rows / floats::size;     // vectors
  static constexpr std::size_t in_block = activation_block::size / size;  // groups
  // Bytes from what is multiplied to what is asked of memory, then of the second-level cache.
  static constexpr std::size_t look_ahead = 4096, near_ahead = 2048;

 public:
  static void product(const packed_matrix<F>& w, std::size_t first, std::size_t panels, const tiled_blocks* const* x,
                      std::size_t count, float* out, std::size_t stride) noexcept {
    for (std::size_t t = 0; t < count; ++t) std::fill_n(out + t * stride, panels * packed_rows, 0.0f);
    block_tile_pieces kernel;
    const std::size_t blocks = w.in_features() / F::block_size;
    assert(w.order() == (packing{lanes, 0}) || (layout::nibbles && w.order().lanes == lanes));
    // The tokens of one tile wait for memory, which gives more to two streams than to one: two panels, piece by piece
    // (16 tokens of Q8_0: 1.08 times as fast), but for long pieces of nibbles (of Q4_K: 0.93 times).
    const std::size_t abreast = count <= tile_height && (!layout::nibbles || depth <= 128) ? 2 : 1;
    for (std::size_t i = 0; i < panels; i += abreast) {
      const std::size_t last = std::min(i + abreast, panels);
      for (std::size_t begin = 0; begin < blocks; begin += piece) {
        const std::size_t part = std::min(piece, blocks - begin);
        for (std::size_t panel = i; panel < last; ++panel) {
          kernel.multiply_piece(w.panel(first + panel) + begin * layout::block_bytes, part, x,
                                begin * F::block_size / activation_block::size, count, out + panel * packed_rows,
                                stride);
        }
      }
    }
    kernel.finish();
  }

 private:
  // Blocks that are decoded at a time, whole blocks of activations, and groups that are multiplied before they are added up.
  static constexpr std::size_t period = std::lcm(F::block_size, activation_block::size),
                               depth = std::max(period, Elements / period * period), piece = depth / F::block_size,
                               most_groups = depth / size, at_once = Elements / 32;

  struct weight_scales {
    alignas(64) float scale[most_groups][packed_rows];
    alignas(64) float min[layout::has_min ? most_groups : 1][packed_rows];
  };

  // `blocks` blocks of a panel from p on by the tokens' blocks of activations from `first` on.
  void multiply_piece(const std::uint8_t* p, std::size_t blocks, const tiled_blocks* const* x, std::size_t first,
                      std::size_t count, float* out, std::size_t stride) {
    const weight_scales& scales = decode(p, blocks);
    const std::size_t bytes = blocks * layout::block_bytes, groups = blocks * layout::groups;
    following_ = fetch(p, bytes, (count + tile_height - 1) / tile_height * groups);
    for (std::size_t t = 0; t < count; t += tile_height) {
      const auto batch = [&](std::size_t group) {
        return group_batch{.codes = codes(p, group),
                           .scale = scales.scale[group],
                           .min = scales.min[layout::has_min ? group : 0],
                           .x = x[t / tile_height] + first + group / in_block,
                           .half = group % in_block,
                           .out = out + t * stride,
                           .stride = stride,
                           .count = std::min(tile_height, count - t)};
      };
      const std::size_t whole = groups / at_once * at_once;
      for (std::size_t group = 0; group < whole; group += at_once) advance(batch(group));
      for (std::size_t group = whole; group < groups; ++group) alone(batch(group));
    }
  }

  // `blocks` blocks of a panel from p on; the scales of the piece before stay, for its last sums.
  const weight_scales& decode(const std::uint8_t* p, std::size_t blocks) {
    weight_scales& to = scales_[piece_side_ ^= 1];
    for (std::size_t b = 0, g = 0; b < blocks; ++b) {
      [[maybe_unused]] floats super_scale[in_panel], super_min[in_panel];
      for (std::size_t v = 0; v < in_panel && layout::two_level; ++v) {
        super_scale[v] = vectors::super_scales(p, v * floats::size);
        if constexpr (layout::has_min) super_min[v] = vectors::super_mins(p, v * floats::size);
      }
      p += layout::super_bytes;
      for (std::size_t last = g + layout::groups; g < last; ++g, p += layout::group_bytes) {
        if constexpr (layout::nibbles) {
          for (std::size_t strip = 0; strip < strips; ++strip) {
            split_nibbles(p + strip * lanes * layout::row_codes, codes_[g][strip]);
          }
        }
        for (std::size_t v = 0; v < in_panel; ++v) {
          const std::size_t row = v * floats::size;
          vectors::scales(p, row, super_scale[v]).store_aligned(to.scale[g] + row);
          if constexpr (layout::has_min) vectors::mins(p, row, super_min[v]).store_aligned(to.min[g] + row);
        }
      }
    }
    return to;
  }
  static void split_nibbles(const std::uint8_t* p, std::int8_t (&to)[size / 4][tile_bytes]) {
    unroll<size / 8>([&](std::size_t i) __attribute__((always_inline)) {
      const auto both = line::load(p + i * tile_bytes);
      const auto low = value(line::low_nibbles(both)), high = value(line::high_nibbles(both));
      std::memcpy(to[2 * i], &low, tile_bytes);
      std::memcpy(to[2 * i + 1], &high, tile_bytes);
    });
  }
  static auto value(typename line::operand code) {
    if constexpr (stand_for_themselves<F>(F::code_values)) {
      return code;
    } else {
      return line::lookup(F::code_values, code);
    }
  }

  // Asks for what lies behind the `bytes` bytes at p in about `steps` steps: all at once, decoding would wait for the first.
  // Nibbles, which are read at once, are asked for once, a piece ahead (16 tokens: Q4_0 1.03, MXFP4 1.06 times as fast), wide
  // codes twice (Q8_0: 1.06 times).
  class fetch {
   public:
    fetch() = default;
    fetch(const std::uint8_t* p, std::size_t bytes, std::size_t steps)
        : next_(p), end_(p + bytes), lines_((bytes / 64 + steps) / steps) {}
    void step() {
      for (std::size_t i = 0; i < lines_ && next_ < end_; ++i, next_ += 64) {
        if constexpr (layout::nibbles) {
          __builtin_prefetch(next_ + piece * layout::block_bytes, 0, 3);
        } else {
          __builtin_prefetch(next_ + look_ahead, 0, 2);
          __builtin_prefetch(next_ + near_ahead, 0, 3);
        }
      }
    }

   private:
    const std::uint8_t *next_ = nullptr, *end_ = nullptr;
    std::size_t lines_ = 0;
  };

  using group_codes = std::int8_t[strips][size / 4][tile_bytes];
  using sums = std::int32_t[strips][tile_height][lanes];

  // Signed codes of a group of the piece at p, by strips; those of the next group lie `group_step` behind them.
  const std::int8_t* codes([[maybe_unused]] const std::uint8_t* p, std::size_t group) const {
    if constexpr (layout::nibbles) {
      return codes_[group][0][0];
    } else {
      const std::size_t supers = (group / layout::groups + 1) * layout::super_bytes;
      return reinterpret_cast<const std::int8_t*>(p + supers + group * layout::group_bytes);
    }
  }
  static constexpr std::size_t strip_step = sizeof(group_codes) / strips,
                               group_step = layout::nibbles ? sizeof(group_codes) : layout::group_bytes;

  // Groups that are multiplied, then added up, at once, for the tokens of a tile: from the first one's codes, scales and
  // activations on.
  struct group_batch {
    const std::int8_t* codes = nullptr;
    const float *scale = nullptr, *min = nullptr;
    const tiled_blocks* x = nullptr;
    std::size_t half = 0;  // of a block of activations; 0 where there are several groups
    float* out = nullptr;
    std::size_t stride = 0, count = 0;
    const sums* sum = nullptr;
  };

  // Multiplies the next groups and adds up those before.
  void advance(const group_batch& next) {
    constexpr std::size_t some = tile_height / at_once;
    sums* const to = sum_[batch_side_ ^= 1];
    for (std::size_t each = 0; each < at_once; each += 2) {
      multiply<0>(next, each);
      add<at_once>(each * some, (each + 1) * some);
      store<0>(to[each]);
      multiply<2>(next, each + 1);
      add<at_once>((each + 1) * some, (each + 2) * some);
      store<2>(to[each + 1]);
    }
    pending_ = next;
    pending_.sum = to;
  }
  void finish() {
    add<at_once>(0, pending_.count);
    pending_ = {};
  }
  // One group, at the end of a piece.
  void alone(const group_batch& next) {
    finish();
    multiply<0>(next, 0);
    store<0>(sum_[0][0]);
    pending_ = next;
    pending_.sum = sum_[0];
    add<1>(0, pending_.count);
    pending_ = {};
  }

  // Tiles C and C + 1: a group of the tokens.
  template <int C>
  void multiply(const group_batch& next, std::size_t each) {
    constexpr int A = C == 0 ? 4 : 5;
    const std::size_t half = next.half + each % in_block;
    following_.step();
    tiles_.template zero<C>();
    tiles_.template zero<C + 1>();
    tiles_.template load<A>(next.x[each / in_block].q[0] + half * size, activation_block::size);
    tiles_.template load<6>(next.codes + each * group_step, tile_bytes);
    tiles_.template load<7>(next.codes + each * group_step + strip_step, tile_bytes);
    tiles_.template dot_int8<C, A, 6>();
    tiles_.template dot_int8<C + 1, A, 7>();
  }
  template <int C>
  void store(sums& to) {
    tiles_.template store<C>(to[0], tile_bytes);
    tiles_.template store<C + 1>(to[1], tile_bytes);
  }

  // Scales and adds the pending sums of the tokens [begin, end).
  template <std::size_t Groups>
  void add(std::size_t begin, std::size_t end) {
    const group_batch batch = pending_;
    end = std::min(end, batch.count);
    if (begin >= end) return;
    floats scale[Groups][in_panel];
    [[maybe_unused]] floats min[Groups][in_panel];
    unroll<Groups>([&](std::size_t i) __attribute__((always_inline)) {
      unroll<in_panel>([&](std::size_t v) __attribute__((always_inline)) {
        scale[i][v] = floats::load_aligned(batch.scale + i * packed_rows + v * floats::size);
        if constexpr (layout::has_min) {
          min[i][v] = floats::load_aligned(batch.min + i * packed_rows + v * floats::size);
        }
      });
    });
    for (std::size_t c = begin; c < end; ++c) {
      float* const to = batch.out + c * batch.stride;
      floats total[in_panel];
      unroll<in_panel>([&](std::size_t v) __attribute__((always_inline)) {
        total[v] = floats::load_unaligned(to + v * floats::size);
      });
      unroll<Groups>([&](std::size_t i) __attribute__((always_inline)) {
        const tiled_blocks& x = batch.x[i / in_block];
        const floats d(x.d[c]);
        unroll<in_panel>([&](std::size_t v) __attribute__((always_inline)) {
          constexpr std::size_t in_strip = lanes / floats::size;
          ints exact;
          std::memcpy(&exact, batch.sum[i][v / in_strip][c] + v % in_strip * floats::size, sizeof exact);
          total[v] = fused_multiply_add(vectors::dot::to_float(exact), scale[i][v] * d, total[v]);
        });
        if constexpr (layout::has_min) {
          const std::size_t half = Groups == 1 ? batch.half : i % in_block;
          const floats minus(x.template minus<size>(half)[c]);
          unroll<in_panel>([&](std::size_t v) __attribute__((always_inline)) {
            total[v] = fused_multiply_add(min[i][v], minus, total[v]);
          });
        }
      });
      unroll<in_panel>([&](std::size_t v)
                           __attribute__((always_inline)) { total[v].store_unaligned(to + v * floats::size); });
    }
  }

  static constexpr tile_shape results{tile_height}, tokens{tile_height, size}, weights{size / 4};
  Tiles tiles_{tile_shapes{results, results, results, results, tokens, tokens, weights, weights}};
  alignas(64) group_codes codes_[layout::nibbles ? most_groups : 1];
  weight_scales scales_[2];
  alignas(64) sums sum_[2][at_once];
  std::size_t piece_side_ = 0, batch_side_ = 0;
  group_batch pending_;
  fetch following_;
};

template <class Tiles, class Arch, integer_format F>
struct block_tile_kernel {
  // As block_kernel::panel, all blocks of `panels` consecutive panels of w from panel `first` on, packed with signed codes; x[i]
  // holds the tokens from 16 i on. The tokens of one tile wait for memory, and the first cache has room for what is asked of it
  // where pieces are short (16 tokens of Q4_0 and MXFP4: 1.05 times as fast; 64 of Q4_0: 0.97 times).
  static void product(const packed_matrix<F>& w, std::size_t first, std::size_t panels, const tiled_blocks* const* x,
                      std::size_t count, float* out, std::size_t stride) noexcept {
    if (count <= tile_height) {
      block_tile_pieces<Tiles, Arch, F, 64>::product(w, first, panels, x, count, out, stride);
    } else {
      block_tile_pieces<Tiles, Arch, F, 128>::product(w, first, panels, x, count, out, stride);
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE
