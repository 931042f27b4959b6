// Products of block formats by matrix tiles (core/amx.hpp), with the bits of block_kernel: 16 tokens by the 32 rows of a
// panel, a group of k at a time, whose sums are exact in int32 in either kernel.
//
// A piece of a panel is decoded once, codes to signed bytes in the order in which tiles read them (a packed strip of 16 rows
// is that order already) and scales to float32; tiles multiply four groups, then vectors scale and add up their sums. What a
// piece takes fits a first-level cache that is shared with another thread. Sapphire Rapids, four groups, ns: tiles 88 (their
// products alone 47), vectors 50, one after the other 148; half of each in turns came to 110 with everything in that cache,
// but in a whole product it was slower, for it needs twice the room.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>

#include "../../core/amx.hpp"
#include "../../quant/activation_block.hpp"
#include "../../quant/packed.hpp"
#include "block_kernel.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

template <class Tiles, class Arch, integer_format F>
class block_tile_kernel {
  using vectors = block_kernel<Arch, F>;
  using layout = packed_layout<F>;
  using floats = typename vectors::floats;
  using ints = typename vectors::ints;
  using line = int8_dot<Arch, 16>;  // sixteen rows' four codes

  static constexpr std::size_t size = F::group_size, lanes = 16, strips = packed_rows / lanes,
                               in_panel = packed_rows / floats::size;  // vectors

 public:
  static constexpr std::size_t most_tokens = 64;

  // As block_kernel::panel, all blocks of `panels` consecutive panels of w from panel `first` on.
  static void product(const packed_matrix<F>& w, std::size_t first, std::size_t panels,
                      const activation_block* const* x, std::size_t count, float* out, std::size_t stride) noexcept {
    for (std::size_t t = 0; t < count; ++t) std::fill_n(out + t * stride, panels * packed_rows, 0.0f);
    block_tile_kernel kernel;
    const std::size_t blocks = w.in_features() / F::block_size;
    const int offset = layout::nibbles ? 0 : code_offset<F>(w.order().largest_code);
    for (std::size_t begin = 0; begin < blocks; begin += piece) {
      const std::size_t part = std::min(piece, blocks - begin), groups = part * layout::groups;
      kernel.token_.copy(x, count, begin * F::block_size / activation_block::size, part * F::block_size);
      for (std::size_t i = 0; i < panels; ++i) {
        const std::uint8_t* const from = w.panel(first + i) + begin * layout::block_bytes;
        kernel.panel_.decode(from, part, offset);
        kernel.following_ =
            fetch(from + part * layout::block_bytes, part * layout::block_bytes, count * groups / at_once);
        for (std::size_t t = 0; t < count; t += tile_height) {
          const std::size_t some = std::min(tile_height, count - t);
          float* const to = out + t * stride + i * packed_rows;
          std::size_t g = 0;
          for (; g + at_once <= groups; g += at_once) {
            for (std::size_t each = 0; each < at_once; each += 2) {
              kernel.template multiply<0>(g + each, t, each);
              kernel.template multiply<2>(g + each + 1, t, each + 1);
            }
            kernel.template add<at_once>(g, t, some, to, stride);
          }
          for (; g < groups; ++g) {
            kernel.template multiply<0>(g, t, 0);
            kernel.template add<1>(g, t, some, to, stride);
          }
        }
      }
    }
  }

 private:
  // Blocks that are decoded at a time: about 128 elements, whole blocks of activations.
  static constexpr std::size_t period = std::lcm(F::block_size, activation_block::size),
                               depth = std::max(period, 128 / period * period), piece = depth / F::block_size,
                               most_groups = depth / size, at_once = 4;

  // A piece of the tokens side by side, a line further apart than a power of two.
  struct activations {
    alignas(64) std::int8_t q[most_tokens][depth + tile_bytes];
    float d[most_tokens][most_groups], minus_sum[layout::has_min ? most_tokens : 1][most_groups];

    void copy(const activation_block* const* x, std::size_t count, std::size_t first, std::size_t elements) {
      for (std::size_t c = 0; c < count; ++c) {
        const activation_block* from = x[c] + first;
        for (std::size_t i = 0; i < activation_block::count(elements); ++i) {
          std::memcpy(q[c] + i * activation_block::size, from[i].q, activation_block::size);
          constexpr std::size_t groups = activation_block::size / size;
          for (std::size_t half = 0; half < groups; ++half) {
            d[c][i * groups + half] = from[i].d;
            if constexpr (layout::has_min) {
              minus_sum[c][i * groups + half] = -from[i].template scaled_sum<size>(half);
            }
          }
        }
      }
      // Tiles read 16 tokens.
      for (; count % tile_height != 0; ++count) std::memset(q[count], 0, depth);
    }
  };

  struct weights {
    alignas(64) std::int8_t codes[most_groups][strips][size / 4][tile_bytes];
    alignas(64) float scale[most_groups][packed_rows];
    alignas(64) float min[layout::has_min ? most_groups : 1][packed_rows];

    // `blocks` blocks of a panel from p on.
    void decode(const std::uint8_t* p, std::size_t blocks, int offset) {
      for (std::size_t b = 0, g = 0; b < blocks; ++b) {
        [[maybe_unused]] floats super_scale[in_panel], super_min[in_panel];
        for (std::size_t v = 0; v < in_panel && layout::two_level; ++v) {
          super_scale[v] = vectors::super_scales(p, v * floats::size);
          if constexpr (layout::has_min) super_min[v] = vectors::super_mins(p, v * floats::size);
        }
        p += layout::super_bytes;
        for (std::size_t in_block = 0; in_block < layout::groups; ++in_block, ++g, p += layout::group_bytes) {
          for (std::size_t strip = 0; strip < strips; ++strip) {
            decode_codes(p + strip * lanes * layout::row_codes, offset, codes[g][strip]);
          }
          for (std::size_t v = 0; v < in_panel; ++v) {
            const std::size_t row = v * floats::size;
            vectors::scales(p, row, super_scale[v]).store_aligned(scale[g] + row);
            if constexpr (layout::has_min) vectors::mins(p, row, super_min[v]).store_aligned(min[g] + row);
          }
        }
      }
    }
    static void decode_codes(const std::uint8_t* p, [[maybe_unused]] int offset,
                             std::int8_t (&to)[size / 4][tile_bytes]) {
      if constexpr (layout::nibbles) {
        unroll<size / 8>([&](std::size_t i) __attribute__((always_inline)) {
          const auto both = line::load(p + i * tile_bytes);
          const auto low = value(line::low_nibbles(both)), high = value(line::high_nibbles(both));
          std::memcpy(to[2 * i], &low, tile_bytes);
          std::memcpy(to[2 * i + 1], &high, tile_bytes);
        });
      } else {
        using bytes = batch<std::uint8_t, Arch>;
        const bytes zero(static_cast<std::uint8_t>(offset));
        for (std::size_t i = 0; i < size / 4 * tile_bytes; i += bytes::size) {
          (bytes::load_unaligned(p + i) - zero).store_aligned(reinterpret_cast<std::uint8_t*>(to[0]) + i);
        }
      }
    }
    static auto value(typename line::operand code) {
      if constexpr (stand_for_themselves<F>(F::code_values)) {
        return code;
      } else {
        return line::lookup(F::code_values, code);
      }
    }
  };

  // Asks memory for `bytes` bytes in about `steps` steps: all at once, decoding would wait for the first of them.
  class fetch {
   public:
    fetch() = default;
    fetch(const std::uint8_t* p, std::size_t bytes, std::size_t steps)
        : next_(p), end_(p + bytes), lines_(bytes / 64 / (steps + 1) + 1) {}
    void step() {
      for (std::size_t i = 0; i < lines_ && next_ < end_; ++i, next_ += 64) __builtin_prefetch(next_, 0, 2);
    }

   private:
    const std::uint8_t *next_ = nullptr, *end_ = nullptr;
    std::size_t lines_ = 0;
  };

  // Tiles C and C + 1: group `g` of the 16 tokens from `t` on, to sum_[to].
  template <int C>
  void multiply(std::size_t g, std::size_t t, std::size_t to) {
    constexpr int A = C == 0 ? 4 : 5;
    tiles_.template zero<C>();
    tiles_.template zero<C + 1>();
    tiles_.template load<A>(token_.q[t] + g * size, sizeof token_.q[t]);
    tiles_.template load<6>(panel_.codes[g][0], tile_bytes);
    tiles_.template load<7>(panel_.codes[g][1], tile_bytes);
    tiles_.template dot_int8<C, A, 6>();
    tiles_.template dot_int8<C + 1, A, 7>();
    tiles_.template store<C>(sum_[to][0], tile_bytes);
    tiles_.template store<C + 1>(sum_[to][1], tile_bytes);
  }

  // Scales and adds the sums of the groups from `g` on and `count` tokens from `t` on.
  template <std::size_t Groups>
  void add(std::size_t g, std::size_t t, std::size_t count, float* out, std::size_t stride) {
    floats scale[Groups][in_panel];
    [[maybe_unused]] floats min[Groups][in_panel];
    unroll<Groups>([&](std::size_t i) __attribute__((always_inline)) {
      unroll<in_panel>([&](std::size_t v) __attribute__((always_inline)) {
        scale[i][v] = floats::load_aligned(panel_.scale[g + i] + v * floats::size);
        if constexpr (layout::has_min) min[i][v] = floats::load_aligned(panel_.min[g + i] + v * floats::size);
      });
    });
    for (std::size_t c = 0; c < count; ++c) {
      following_.step();
      float* const to = out + c * stride;
      floats total[in_panel];
      unroll<in_panel>([&](std::size_t v) __attribute__((always_inline)) {
        total[v] = floats::load_unaligned(to + v * floats::size);
      });
      unroll<Groups>([&](std::size_t i) __attribute__((always_inline)) {
        const floats d(token_.d[t + c][g + i]);
        unroll<in_panel>([&](std::size_t v) __attribute__((always_inline)) {
          constexpr std::size_t in_strip = lanes / floats::size;
          ints exact;
          std::memcpy(&exact, sum_[i][v / in_strip][c] + v % in_strip * floats::size, sizeof exact);
          total[v] = fused_multiply_add(vectors::dot::to_float(exact), scale[i][v] * d, total[v]);
        });
        if constexpr (layout::has_min) {
          const floats minus(token_.minus_sum[t + c][g + i]);
          unroll<in_panel>([&](std::size_t v) __attribute__((always_inline)) {
            total[v] = fused_multiply_add(min[i][v], minus, total[v]);
          });
        }
      });
      unroll<in_panel>([&](std::size_t v)
                           __attribute__((always_inline)) { total[v].store_unaligned(to + v * floats::size); });
    }
  }

  static constexpr tile_shape sums{tile_height}, tokens{tile_height, size}, codes{size / 4};
  Tiles tiles_{tile_shapes{sums, sums, sums, sums, tokens, tokens, codes, codes}};
  activations token_;
  weights panel_;
  alignas(64) std::int32_t sum_[at_once][strips][tile_height][lanes];
  fetch following_;
};

}  // namespace detail

MOTE_END_NAMESPACE
