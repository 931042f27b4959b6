// What this machine can do, measured in the same run: memory, and the arithmetic that products are made of.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <type_traits>
#include <utility>
#include <vector>

#include <mote/core/amx.hpp>
#include <mote/core/int8_dot.hpp>
#include <mote/ops/matmul/element_kernel.hpp>

#include "support/bench.hpp"

namespace bench {

// The shortest of several runs, in seconds on the wall: processor time would add up what several threads do at once.
template <class F>
double shortest_real(int runs, F&& f) {
  double best = 1e300;
  for (int i = 0; i < runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count());
  }
  return best;
}

// Bytes a second that `threads` threads read from memory.
inline double read_bandwidth(std::size_t threads) {
  static std::map<std::size_t, double> measured;
  if (const auto known = measured.find(threads); known != measured.end()) return known->second;
  using vector = mote::batch<float, mote::default_arch>;
  constexpr std::size_t chains = 8;
  const std::size_t n = beyond_cache / sizeof(float), piece = std::size_t{1} << 16;
  const mote::buffer<float> x(n);
  std::vector<float> sums(n / piece);
  mote::simd<> be{mote::threads{threads}};
  const double seconds = shortest_real(12, [&] {
    be.parallel_for(n, piece, [&](std::size_t begin, std::size_t end) {
      vector total[chains];
      for (auto& t : total) t = vector(0.0f);
      for (std::size_t i = begin; i < end; i += chains * vector::size) {
        for (std::size_t c = 0; c < chains; ++c) total[c] += vector::load_unaligned(x.data() + i + c * vector::size);
      }
      for (std::size_t c = 1; c < chains; ++c) total[0] += total[c];
      sums[begin / piece] = mote::sum<mote::default_arch>(total[0]);
    });
    benchmark::DoNotOptimize(sums.data());
  });
  return measured[threads] = static_cast<double>(beyond_cache) / seconds;
}

// `steps` dot products in each of several independent chains, their sums in registers until the end.
template <class Dot, std::size_t... Chain>
[[gnu::noinline]] void dot_chains(int steps, std::int32_t* results, std::index_sequence<Chain...>) {
  const std::uint8_t codes[Dot::lanes * 4] = {1, 2, 3};
  const std::int8_t four[4] = {4, 5, 6, 7};
  const auto w = Dot::load(codes);
  const auto x = Dot::splat_codes(four);
  typename Dot::ints sums[] = {Dot::splat(static_cast<std::int32_t>(Chain))...};
  for (int i = 0; i < steps; ++i) {
    if constexpr (Dot::unsigned_limit > 0) {
      ((sums[Chain] = Dot::dot_unsigned(sums[Chain], w, x)), ...);
    } else {
      ((sums[Chain] = Dot::dot_signed(sums[Chain], w, x)), ...);
    }
  }
  (std::memcpy(results + Chain, &sums[Chain], sizeof *results), ...);
}

// Operations a second (a multiply-add is two) of independent int8 dot products on one thread.
inline double int8_rate() {
  static const double measured = [] {
    using dot = mote::detail::int8_dot<mote::default_arch>;
    constexpr int steps = 100000;
    constexpr std::size_t chains = 10;
    const double seconds = shortest(50, [] {
      std::int32_t results[chains];
      dot_chains<dot>(steps, results, std::make_index_sequence<chains>{});
      benchmark::DoNotOptimize(results);
    });
    return 8.0 * steps * static_cast<double>(chains * dot::lanes) / seconds;
  }();
  return measured;
}

// As multiply_add_chains, of bf16 dot products.
template <class Dot, std::size_t... Chain>
[[gnu::noinline]] float bf16_chains(int steps, std::index_sequence<Chain...>) {
  const std::uint8_t pairs[Dot::lanes * 4] = {0, 0x3F};
  const auto w = Dot::load(pairs), x = Dot::splat(pairs);
  typename Dot::sums sums[] = {typename Dot::sums(static_cast<float>(Chain))...};
  for (int i = 0; i < steps; ++i) {
    ((sums[Chain] = Dot::add(sums[Chain], w, x), mote::detail::keep_in_register<mote::default_arch>(sums[Chain])), ...);
  }
  return mote::sum<mote::default_arch>((sums[Chain] + ...));
}

// Operations a second of independent bf16 dot products on one thread; without such an instruction, float32's.
inline double bf16_rate() {
  static const double measured = [] {
    using dot = mote::detail::element_dot<mote::default_arch, mote::bf16>;
    if constexpr (!dot::dot_products) return fma_rate();
    constexpr int steps = 100000;
    constexpr std::size_t chains = 12;
    const double seconds = shortest(50, [] {
      float total = bf16_chains<dot>(steps, std::make_index_sequence<chains>{});
      benchmark::DoNotOptimize(total);
    });
    return 4.0 * steps * static_cast<double>(chains * dot::lanes) / seconds;
  }();
  return measured;
}

// Operations a second of matrix tiles of T on one thread; 0 where there are none.
template <class T>
double tile_rate() {
  static const double measured = [] {
    using tiles_type = mote::detail::amx_tiles;
    if (!tiles_type::available()) return 0.0;
    constexpr int steps = 100000;
    const double seconds = shortest(20, [] {
      tiles_type tiles({16, 16, 16, 16, 16, 16, 16, 16});
      const std::uint8_t zeros[1024] = {};
      tiles.load<4>(zeros, 64);
      tiles.load<5>(zeros, 64);
      tiles.load<6>(zeros, 64);
      tiles.load<7>(zeros, 64);
      for (int i = 0; i < steps; ++i) {
        if constexpr (std::is_same_v<T, std::int8_t>) {
          tiles.dot_int8<0, 4, 6>();
          tiles.dot_int8<1, 4, 7>();
          tiles.dot_int8<2, 5, 6>();
          tiles.dot_int8<3, 5, 7>();
        } else {
          tiles.dot_bf16<0, 4, 6>();
          tiles.dot_bf16<1, 4, 7>();
          tiles.dot_bf16<2, 5, 6>();
          tiles.dot_bf16<3, 5, 7>();
        }
      }
    });
    return 4.0 * steps * 2.0 * 16 * 16 * (64.0 / sizeof(T)) / seconds;
  }();
  return measured;
}

}  // namespace bench
