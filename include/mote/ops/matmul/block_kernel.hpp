// Products of block formats: a tile of R strips of a packed panel (quant/packed.hpp), or of two side by side, by C tokens,
// output rows in the lanes, so that nothing is summed across lanes.
//
// Activations are quantized to int8 in blocks of 32, once for all matrices that read them. For each group of weights
//
//   total += scale · d_x · Σ q q_x - min · d_x · Σ q_x,     the sums exact in int32
//
// in the order of k whatever the tile's shape: a token's result has the same bits alone and in a batch.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "../../core/int8_dot.hpp"
#include "../../core/vector_math.hpp"
#include "../../core/widen.hpp"
#include "../../quant/activation_block.hpp"
#include "../../quant/packed.hpp"
#include "micro_kernel.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

constexpr int log2_of(int power) {
  int exponent = 0;
  while (1 << exponent < power) ++exponent;
  return exponent;
}

// Whether a table of codes of F's width holds the codes.
template <integer_format F>
constexpr bool stand_for_themselves(const std::array<std::int8_t, 16>& values) {
  for (std::size_t i = 0; i < (std::size_t{1} << F::code_bits); ++i) {
    if (values[i] != static_cast<int>(i)) return false;
  }
  return true;
}

template <class Arch, integer_format F>
struct block_kernel {
  using dot = int8_dot<Arch>;
  using layout = packed_layout<F>;
  using ints = typename dot::ints;
  using floats = typename dot::floats;
  using operand = typename dot::operand;

  // Many passes over the same blocks share what they ask for, the blocks that follow: else the first would wait for memory
  // and the others leave it idle. A pass asks for every `passes`th line.
  struct shared_fetch {
    std::size_t pass = 0, passes;
    bool asks = false;  // whether a pass that shares nothing asks for any
  };
  static constexpr std::size_t most_passes_alone = 2, group_lines = (layout::group_bytes + 63) / 64;
  // Codes are multiplied as q + offset: those of at most four bits are made so as they are split, wider ones are stored so, or
  // signed and flipped where only unsigned weights are multiplied.
  static constexpr int stored_offset =
      code_offset<F>(layout::nibbles && dot::unsigned_limit > 0 ? dot::unsigned_limit : packing_of<Arch>.largest_code);
  static constexpr bool flipped =
      !layout::nibbles && has_negative_codes<F>(stored_offset) && dot::unsigned_limit == 255;
  static constexpr int offset = flipped ? 128 : stored_offset;
  static constexpr bool unsigned_codes = !has_negative_codes<F>(offset) && dot::unsigned_limit > 0;

  // What stored codes of at most four bits stand for, or nothing where they stand for themselves.
  static constexpr std::array<std::int8_t, 16> table = [] {
    std::array<std::int8_t, 16> values{};
    if constexpr (layout::nibbles) {
      for (std::size_t i = 0; i < 16; ++i) values[i] = static_cast<std::int8_t>(F::code_values[i] + offset);
    }
    return values;
  }();
  static constexpr bool looked_up = layout::nibbles && !stand_for_themselves<F>(table);

  // Quads of k whose products sum within 16 bits, where there are such sums; else 1. Activations' codes are -128 at the least.
  static constexpr std::size_t narrow_quads = [] {
    if constexpr (unsigned_codes && requires(operand w) { dot::narrow_dot(w, w); }) {
      int largest = (1 << F::code_bits) - 1;
      if constexpr (layout::nibbles) largest = *std::max_element(table.begin(), table.end());
      std::size_t quads = F::group_size / 4;
      while (quads > 1 && static_cast<int>(quads) * 2 * 128 * largest > 32767) quads /= 2;
      return quads;
    } else {
      return std::size_t{1};
    }
  }();

  static constexpr std::size_t tokens = many_registers<Arch> ? 6 : 4, few_tokens = 2;
  // Few tokens take all rows of a panel at once, so that they are read from front to back.
  static constexpr std::size_t strips(std::size_t token_count) {
    return token_count <= few_tokens ? std::min(std::size_t{4}, packed_rows / dot::lanes) : 2;
  }

  // So many tokens take two panels side by side on processors with AMX, where the sums find room in registers and memory gives
  // more to two streams than to one (Sapphire Rapids: 15 GB/s from one, 19 from two, as from four). Zen 4 gives less: 33 and 26.
  static constexpr std::size_t pair_tokens = has_tiles_beside<Arch> ? 4 : 0;

  // Whether so many tokens are multiplied faster than memory is read: wide codes, which need no splitting.
  static constexpr bool outruns_memory(std::size_t token_count) {
    return dot::lanes == 16 && !layout::nibbles && token_count <= 4;
  }
  // Bytes from what is multiplied to what is asked of memory. A busy processor drops some of what is asked of it, so that all is
  // asked for several times, and more often where products are faster. Zen 4, GB/s of 37: Q4_0, one and two tokens, once 26 and
  // 27, twice 30 and 32, thrice 35 and 36, with AVX2 once 26 and 21, thrice 34 and 30. Q8_0, one to four tokens: thrice 30, 29,
  // 28, 30; four times 32, 32, 34, 34; five times 35, 34, 33, 31; with AVX2, one token, thrice 31, four times 33. Distances of
  // whole pages are slower. Panels side by side, Sapphire Rapids, Q4_0: with 1 KiB 18 GB/s, with 2.5 KiB 20, with 4 KiB 18.
  template <std::size_t C, std::size_t P>
  static constexpr auto look_ahead() {
    if constexpr (P > 1) {
      return std::array<std::size_t, 1>{2560};
    } else if constexpr (outruns_memory(C) && C <= few_tokens) {
      return std::array<std::size_t, 5>{22016, 17664, 13312, 9216, 4352};
    } else if constexpr (outruns_memory(C) || (!layout::nibbles && C == 1)) {
      return std::array<std::size_t, 4>{17664, 13312, 9216, 4352};
    } else {
      return std::array<std::size_t, 3>{13312, 9216, 4352};
    }
  }

  static operand values(operand codes) {
    if constexpr (looked_up) {
      return dot::lookup(table, codes);
    } else {
      return codes;
    }
  }
  static ints multiply(ints acc, operand w, operand x) {
    if constexpr (unsigned_codes) {
      return dot::dot_unsigned(acc, w, x);
    } else {
      return dot::dot_signed(acc, w, x);
    }
  }

  // Of a block's rows from `row` on; then of a group's, which are those times the group's own in formats of two levels.
  [[gnu::always_inline]] static floats super_scales(const std::uint8_t* block, std::size_t row) {
    return widen<Arch>(reinterpret_cast<const f16*>(block) + row);
  }
  [[gnu::always_inline]] static floats super_mins(const std::uint8_t* block, std::size_t row) {
    return super_scales(block, packed_rows + row);
  }
  [[gnu::always_inline]] static floats scales(const std::uint8_t* group, std::size_t row,
                                              [[maybe_unused]] const floats& super) {
    using type = std::conditional_t<layout::two_level, std::int8_t, typename F::scale_type>;
    floats scale = widen<Arch>(reinterpret_cast<const type*>(group + layout::scales) + row);
    if constexpr (layout::two_level) scale = scale * super;
    if constexpr (requires { F::unit; }) scale = scale * floats(F::unit);
    return scale;
  }
  [[gnu::always_inline]] static floats mins(const std::uint8_t* group, std::size_t row,
                                            [[maybe_unused]] const floats& super) {
    if constexpr (layout::two_level) {
      return widen<Arch>(reinterpret_cast<const std::int8_t*>(group + layout::mins) + row) * super;
    } else {
      return floats::load_unaligned(reinterpret_cast<const float*>(group + layout::mins) + row);
    }
  }

  // `strip` [R] of each of P panels, their blocks [0, blocks), against tokens x[C]: adds to out[row + c · stride], which
  // starts as zeros unless there were blocks before these (`resume`).
  template <std::size_t C, std::size_t P = 1, bool Shared = false>
  static void tile(const std::uint8_t* const* panel, std::size_t strip, std::size_t blocks,
                   const activation_block* const* x, bool resume, [[maybe_unused]] shared_fetch fetch, float* out,
                   std::size_t stride) noexcept {
    constexpr std::size_t R = strips(C), lanes = dot::lanes, strip_bytes = lanes * layout::row_codes,
                          row_quads = layout::row_codes / 4;
    // Strips that are multiplied side by side; where memory is outrun, one after the other, so that a group is read in the
    // order of memory.
    constexpr std::size_t together = outruns_memory(C) && P == 1 ? 1 : R;
    static constexpr auto distances = look_ahead<C, P>();
    // Into the second-level cache only, but for panels side by side: activations keep the first busy.
    const auto ask_for = [](const std::uint8_t* line) __attribute__((always_inline)) {
      unroll<distances.size()>([&](std::size_t i) __attribute__((always_inline)) {
        __builtin_prefetch(line + distances[i], 0, P > 1 ? 3 : 2);
      });
    };
    floats total[P][R][C];
    const activation_block* token[C];
    float* const to = out + strip * lanes;
    const auto each_total = [&](auto&& f) __attribute__((always_inline)) {
      unroll<P * R>([&](std::size_t i) __attribute__((always_inline)) {
        unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
          f(total[i / R][i % R][c], to + c * stride + i / R * packed_rows + i % R * lanes);
        });
      });
    };
    each_total([&](floats & sum, const float* from)
                   __attribute__((always_inline)) { sum = resume ? floats::load_unaligned(from) : floats(0.0f); });
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) { token[c] = x[c]; });
    const std::uint8_t* next[P];
    unroll<P>([&](std::size_t i) __attribute__((always_inline)) { next[i] = panel[i]; });
    [[maybe_unused]] const std::size_t panel_bytes = blocks * layout::block_bytes + layout::tensor_scale_bytes;
    // Panels side by side are followed by the panels behind both.
    const auto skipped = [&]() __attribute__((always_inline)) {
      return P > 1 && next[0] + distances[0] >= panel[0] + panel_bytes ? (P - 1) * panel_bytes : 0;
    };
    std::size_t half = 0;
    for (std::size_t b = 0; b < blocks; ++b) {
      [[maybe_unused]] floats super_scale[P][R], super_min[P][R];
      unroll<P>([&](std::size_t i) __attribute__((always_inline)) {
        for (std::size_t l = 0; l < layout::super_bytes; l += 64) {
          if constexpr (Shared) {
            if (fetch.pass == 0) __builtin_prefetch(next[i] + blocks * layout::block_bytes + l, 0, 2);
          } else if (fetch.asks) {
            ask_for(next[i] + skipped() + l);
          }
        }
        if constexpr (layout::two_level) {
          unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
            super_scale[i][r] = super_scales(next[i], (strip + r) * lanes);
            if constexpr (layout::has_min) super_min[i][r] = super_mins(next[i], (strip + r) * lanes);
          });
        }
        next[i] += layout::super_bytes;
      });
      const std::uint8_t* ahead[P];  // what is asked of memory lies behind these
      const auto add_group = [&](std::size_t which) __attribute__((always_inline)) {
        const std::uint8_t* const p = next[which];
        if constexpr (Shared) {
          for (std::size_t i = fetch.pass; i < group_lines; i += fetch.passes) {
            __builtin_prefetch(p + blocks * layout::block_bytes + i * 64, 0, 2);
          }
        }
        ints acc[R][C];
        [[maybe_unused]] ints narrow[R][C];
        unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
          ints start = dot::splat(0);
          if constexpr (offset > 0) {
            start =
                dot::template shift_left<log2_of(offset)>(dot::splat(token[c]->template minus<F::group_size>(half)));
          }
          unroll<R>([&](std::size_t r) __attribute__((always_inline)) { acc[r][c] = start; });
        });
        const std::uint8_t* codes = p + strip * strip_bytes;
        const auto multiply_quad = [&](const operand(&w)[together], std::size_t first, std::size_t quad)
            __attribute__((always_inline)) {
          unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
            const operand four = dot::splat_codes(token[c]->q + half * 16 + quad * 4);
            unroll<together>([&](std::size_t i) __attribute__((always_inline)) {
              const std::size_t r = first + i;
              if constexpr (narrow_quads == 1) {
                acc[r][c] = multiply(acc[r][c], w[i], four);
              } else {
                const bool begins = quad % narrow_quads == 0, ends = (quad + 1) % narrow_quads == 0;
                narrow[r][c] = begins ? dot::narrow_dot(w[i], four) : dot::narrow_dot(narrow[r][c], w[i], four);
                if (ends) acc[r][c] = dot::widen(acc[r][c], narrow[r][c]);
              }
            });
          });
        };
        unroll<R / together * row_quads>([&](std::size_t turn) __attribute__((always_inline)) {
          const std::size_t first = turn / row_quads * together, i = turn % row_quads;
          if constexpr (!Shared) {
            // Evenly: 1.05 times as fast as at each group's begin.
            constexpr std::size_t turns = P * R / together * row_quads;
            const std::size_t now = which * row_quads + turn;
            for (std::size_t l = now * group_lines / turns; fetch.asks && l < (now + 1) * group_lines / turns; ++l) {
              for (std::size_t j = 0; j < P; ++j) ask_for(ahead[j] + l * 64);
            }
          }
          operand stored[together], w[together];
          unroll<together>([&](std::size_t r) __attribute__((always_inline)) {
            stored[r] = dot::load(codes + (first + r) * strip_bytes + i * lanes * 4);
            if constexpr (layout::nibbles) {
              w[r] = values(dot::low_nibbles(stored[r]));
            } else if constexpr (flipped) {
              w[r] = dot::flip_signs(stored[r]);
            } else {
              w[r] = stored[r];
            }
          });
          multiply_quad(w, first, layout::nibbles ? 2 * i : i);
          if constexpr (layout::nibbles) {
            unroll<together>([&](std::size_t r)
                                 __attribute__((always_inline)) { w[r] = values(dot::high_nibbles(stored[r])); });
            multiply_quad(w, first, 2 * i + 1);
          }
        });
        floats scale[R];
        [[maybe_unused]] floats min[R];
        unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
          scale[r] = scales(p, (strip + r) * lanes, super_scale[which][r]);
          if constexpr (layout::has_min) min[r] = mins(p, (strip + r) * lanes, super_min[which][r]);
        });
        unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
          const floats d(token[c]->d);
          unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
            total[which][r][c] = fused_multiply_add(dot::to_float(acc[r][c]), scale[r] * d, total[which][r][c]);
          });
          if constexpr (layout::has_min) {
            const floats minus(-token[c]->template scaled_sum<F::group_size>(half));
            unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
              total[which][r][c] = fused_multiply_add(min[r], minus, total[which][r][c]);
            });
          }
        });
      };
      for (std::size_t g = 0; g < layout::groups; ++g) {
        unroll<P>([&](std::size_t i) __attribute__((always_inline)) { ahead[i] = next[i] + skipped(); });
        unroll<P>([&](std::size_t i) __attribute__((always_inline)) {
          add_group(i);
          next[i] += layout::group_bytes;
        });
        if (F::group_size == activation_block::size || half == 1) {
          unroll<C>([&](std::size_t c) __attribute__((always_inline)) { ++token[c]; });
          half = 0;
        } else {
          half = 1;
        }
      }
    }
    each_total([](const floats& sum, float* at) __attribute__((always_inline)) { sum.store_unaligned(at); });
  }

  static auto function(std::size_t count) {
    constexpr auto tiles = []<std::size_t... I>(std::index_sequence<I...>) {
      return std::array{&block_kernel::template tile<I + 1>...};
    }
    (std::make_index_sequence<tokens>{});
    return tiles[count - 1];
  }

  // Two panels side by side, one behind the other in memory, against 1 to pair_tokens tokens: as tile(), with all rows of both.
  static void pair(const std::uint8_t* first, const std::uint8_t* second, std::size_t blocks, bool from_memory,
                   const activation_block* const* x, std::size_t count, float* out, std::size_t stride) noexcept {
    constexpr auto tiles = []<std::size_t... I>(std::index_sequence<I...>) {
      return std::array{&block_kernel::template tile<I + 1, 2>...};
    }
    (std::make_index_sequence<pair_tokens>{});
    const std::uint8_t* const panels[] = {first, second};
    tiles[count - 1](panels, 0, blocks, x, false, shared_fetch{.passes = 1, .asks = from_memory}, out, stride);
  }

  // The whole panel against `count` tokens, as tile(). Where it comes from memory, and passes are too few to share it, the first
  // tokens ask for what follows: those that come later find it in a cache, and asking takes turns from loads.
  static void panel(const std::uint8_t* bytes, std::size_t blocks, bool from_memory, const activation_block* const* x,
                    std::size_t count, bool resume, float* out, std::size_t stride) noexcept {
    shared_fetch fetch{.passes = count / tokens * (packed_rows / dot::lanes / strips(tokens))};
    for (std::size_t t = 0; t < count; t += tokens) {
      const std::size_t some = std::min(tokens, count - t);
      fetch.asks = from_memory && t == 0;
      const bool shared = some == tokens && fetch.passes > most_passes_alone;
      const auto run = shared ? &block_kernel::template tile<tokens, 1, true> : function(some);
      for (std::size_t strip = 0; strip * dot::lanes < packed_rows; strip += strips(some)) {
        run(&bytes, strip, blocks, x + t, resume, fetch, out + t * stride, stride);
        ++fetch.pass;
      }
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE
