// The inner loops of every matrix product: a tile of R weight rows by C tokens, vectors along k.
//
// Weights stay row-major as checkpoints store them. Each output has one accumulator vector, walked along k in the same
// steps whatever the tile's shape, and summed across lanes in one order at the end: a token's result has the same bits
// alone and in a batch. 4 rows by 6 tokens keep 24 accumulators in 32 registers, 10 loads for 24 multiply-adds.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include "../../core/simd.hpp"
#include "../../core/types.hpp"
#include "../../core/widen.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Registers decide the tile: 32 of them with AVX-512 and on ARM, 16 elsewhere.
template <class Arch>
inline constexpr bool many_registers = batch<float, Arch>::size == 16
#if defined(__aarch64__)
                                       || true
#endif
    ;
template <class Arch>
inline constexpr std::size_t tile_rows = many_registers<Arch> ? 4 : 3;
template <class Arch>
inline constexpr std::size_t tile_tokens = many_registers<Arch> ? 6 : 4;

// The last n < size elements of a row, zeros behind them; reads nothing past them.
template <class Arch, class T>
batch<float, Arch> load_tail(const T* p, std::size_t n) {
  float lanes[batch<float, Arch>::size] = {};
  for (std::size_t i = 0; i < n; ++i) lanes[i] = static_cast<float>(p[i]);
  return batch<float, Arch>::load_unaligned(lanes);
}

// How often rows in memory are asked for: a vector that is less than a line asks for its line more than once anyway.
template <class Arch, class T>
inline constexpr std::size_t asks_of_memory = batch<float, Arch>::size * sizeof(T) >= 32 ? 3 : 2;

// f(0), f(1) … f(N - 1), always unrolled: the accumulators below must become registers.
template <std::size_t N, class F>
[[gnu::always_inline]] inline void unroll(F&& f) {
  [&]<std::size_t... I>(std::index_sequence<I...>) __attribute__((always_inline)) { (f(I), ...); }
  (std::make_index_sequence<N>{});
}

// One tile over k elements. k may come in blocks: `state` holds the R·C accumulators between them (`resume`: there is a
// block before this one). After the last block, where `out` is given, the sums go to out[r + c · out_stride].
//
// `Asks` times memory is asked for the rows that the next tile will read. That is for the tiles that are first to see their
// weights; where those come from a cache, it would only take turns from the loads. Zen 5, one thread, bf16: one token went
// from 45 % to 75 % of the read bandwidth with each row asked for beside its own reading, and to 90 % line after line. A busy
// processor drops some of what is asked of it, so that rows of memory are asked for again, further ahead and for the
// second-level cache. Zen 4, bf16, one, two and four tokens, GB/s of 37: once, for the first-level cache, 24, 15 and 15;
// three times, for the second, 35, 35 and 20.
template <class Arch, std::size_t R, std::size_t C, std::size_t Asks, class T>
void dot_tile(const T* const* w, const float* const* x, std::size_t k, bool resume, float* state, float* out,
              std::size_t out_stride) noexcept {
  using vector = batch<float, Arch>;
  vector acc[R][C];
  const T* row[R];
  const float* token[C];
  unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
    row[r] = w[r];
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      acc[r][c] = resume ? vector::load_aligned(state + (r * C + c) * vector::size) : vector(0.0f);
    });
  });
  unroll<C>([&](std::size_t c) __attribute__((always_inline)) { token[c] = x[c]; });

  // Where the next tile's rows begin, and how far apart its next lines are: rows that follow each other without a gap are
  // asked for line after line, as memory likes it; others, each at the place of the row before it.
  const std::ptrdiff_t stride = R > 1 ? row[1] - row[0] : 0;
  const bool gapless = stride == static_cast<std::ptrdiff_t>(k);
  [[maybe_unused]] const T* const next = row[0] + stride * static_cast<std::ptrdiff_t>(R);
  [[maybe_unused]] const std::ptrdiff_t apart = gapless ? 64 / static_cast<std::ptrdiff_t>(sizeof(T)) : stride;
  [[maybe_unused]] const std::size_t pace = gapless ? R : 1;
  const std::size_t whole = k / vector::size * vector::size;
  const auto fetch = [&](std::size_t r, std::size_t i) __attribute__((always_inline)) {
    if constexpr (R > 1) {
      constexpr std::size_t again = 4608 / sizeof(T);
      const T* const line = next + i * pace + static_cast<std::ptrdiff_t>(r) * apart;
      unroll<Asks>([&](std::size_t a)
                       __attribute__((always_inline)) { __builtin_prefetch(line + a * again, 0, Asks == 1 ? 3 : 2); });
    }
  };
  const auto multiply = [&](const vector* weights, std::size_t i) __attribute__((always_inline)) {
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      vector values = vector::load_unaligned(token[c] + i);
      keep_in_register(values);
      unroll<R>([&](std::size_t r)
                    __attribute__((always_inline)) { acc[r][c] = fused_multiply_add(weights[r], values, acc[r][c]); });
    });
  };
  for (std::size_t i = 0; i < whole; i += vector::size) {
    vector weights[R];
    unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
      vector values = widen<Arch>(row[r] + i);
      if constexpr (std::is_same_v<T, float>) keep_in_register(values);  // an array's element would go to memory, too
      weights[r] = values;
      fetch(r, i);
    });
    multiply(weights, i);
  }
  if (whole != k) {
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      const vector values = load_tail<Arch>(token[c] + whole, k - whole);
      unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
        acc[r][c] = fused_multiply_add(load_tail<Arch>(row[r] + whole, k - whole), values, acc[r][c]);
      });
    });
  }

  unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      if (out != nullptr) {
        out[r + c * out_stride] = sum<Arch>(acc[r][c]);
      } else {
        acc[r][c].store_aligned(state + (r * C + c) * vector::size);
      }
    });
  });
}

}  // namespace detail

MOTE_END_NAMESPACE
