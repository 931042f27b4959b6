#include "support/limits.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <type_traits>
#include <utility>
#include <vector>

#include <unistd.h>

#include <benchmark/benchmark.h>

#include <mote/core/amx.hpp>
#include <mote/core/backend.hpp>
#include <mote/core/buffer.hpp>
#include <mote/core/int8_dot.hpp>
#include <mote/core/simd.hpp>
#include <mote/ops/matmul/element_kernel.hpp>

namespace {

using bf16_dot = mote::detail::element_dot<mote::default_arch, mote::bf16>;

constexpr int steps = 20000;
// Enough for two products a cycle of five cycles each, and as many as fit the registers.
constexpr std::size_t chains = mote::detail::many_registers<mote::default_arch> ? 16 : 10;
constexpr std::make_index_sequence<chains> all_chains;

// Sums and operands in registers; those of plain loops are in memory anyway.
template <class T>
[[gnu::always_inline]] inline void keep(T& x) {
  if constexpr (std::is_class_v<T> && !requires { typename T::arch_type; }) {
    benchmark::DoNotOptimize(x);
  } else {
    mote::detail::keep_in_register(x);
  }
}

// `steps` times sum = add(sum, w, x) in each of several independent chains, which start at start(0), start(1), … Not inlined, and
// sums are kept as values, not as elements of the array: so each stays in a register.
template <class Start, class Operand, class Add, std::size_t... Chain>
[[gnu::noinline]] void run_chains(std::index_sequence<Chain...>, Start start, Operand w, Operand x, Add add) {
  const auto step = [&](auto sum) {
    keep(w);  // where a product is apart from its sum, one must not do for all chains
    sum = add(sum, w, x);
    keep(sum);
    return sum;
  };
  decltype(start(0)) sums[] = {start(static_cast<int>(Chain))...};
  for (int i = 0; i < steps; ++i) ((sums[Chain] = step(sums[Chain])), ...);
  (benchmark::DoNotOptimize(sums[Chain]), ...);
}

template <class Dot>
void int8_chains() {
  const std::uint8_t codes[Dot::lanes * 4] = {1, 2, 3};
  const std::int8_t four[4] = {4, 5, 6, 7};
  run_chains(all_chains, Dot::splat, Dot::load(codes), Dot::splat_codes(four), [](auto sum, auto w, auto x) {
    if constexpr (Dot::unsigned_limit > 0) {
      return Dot::dot_unsigned(sum, w, x);
    } else {
      return Dot::dot_signed(sum, w, x);
    }
  });
}

template <class Vector>
Vector splat(int chain) {
  return Vector(static_cast<float>(chain));
}

void bf16_chains() {
  const std::uint8_t pairs[bf16_dot::lanes * 4] = {0, 0x3F};
  run_chains(all_chains, splat<bf16_dot::sums>, bf16_dot::load<0>(pairs), bf16_dot::splat<0>(pairs),
             [](auto sum, auto w, auto x) { return bf16_dot::add(sum, w, x); });
}

void float32_chains() {
  using vector = mote::batch<float, mote::default_arch>;
  run_chains(all_chains, splat<vector>, vector(0.5f), vector(0.25f),
             [](vector sum, vector w, vector x) { return mote::fused_multiply_add(sum, w, x); });
}

// `Streams` equal parts side by side, each a whole number of kilobytes; memory is asked for what lies `Ahead` bytes behind.
template <std::size_t Streams, std::size_t Ahead>
float sum_of(const float* x, std::size_t n) {
  using vector = mote::batch<float, mote::default_arch>;
  constexpr std::size_t sums = 8;
  vector total[sums];
  for (auto& t : total) t = vector(0.0f);
  for (std::size_t i = 0; i < n / Streams; i += sums * vector::size) {
    for (std::size_t part = 0; part < Streams; ++part) {
      for (std::size_t c = 0; c < sums; ++c) {
        const float* const from = x + part * (n / Streams) + i + c * vector::size;
        if (Ahead != 0 && c * vector::size % (64 / sizeof(float)) == 0)
          __builtin_prefetch(from + Ahead / sizeof(float), 0, 3);
        total[c] += vector::load_unaligned(from);
      }
    }
  }
  for (std::size_t c = 1; c < sums; ++c) total[0] += total[c];
  return mote::sum<mote::default_arch>(total[0]);
}

template <class T>
void tile_chains() {
  constexpr mote::detail::tile_shape full{mote::detail::tile_height};
  mote::detail::amx_tiles tiles({full, full, full, full, full, full, full, full});
  // Not zeros, which are multiplied a third faster on Sapphire Rapids.
  std::uint8_t numbers[1024];
  for (std::size_t i = 0; i < sizeof numbers; ++i) numbers[i] = i % 2 == 0 ? static_cast<std::uint8_t>(37 * i) : 0x3F;
  tiles.load<4>(numbers, 64);
  tiles.load<5>(numbers, 64);
  tiles.load<6>(numbers, 64);
  tiles.load<7>(numbers, 64);
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
}

// `steps` steps of one thread, and the operations in each.
void run(bench::arithmetic unit) {
  switch (unit) {
    case bench::arithmetic::int8:
      return int8_chains<mote::detail::int8_dot<mote::default_arch>>();
    case bench::arithmetic::bf16:
      return bf16_dot::dot_products ? bf16_chains() : float32_chains();
    case bench::arithmetic::float32:
      return float32_chains();
    case bench::arithmetic::int8_tiles:
      return tile_chains<std::int8_t>();
    case bench::arithmetic::bf16_tiles:
      return tile_chains<mote::bf16>();
  }
}

double operations_of_step(bench::arithmetic unit) {
  constexpr double lanes = chains * mote::batch<float, mote::default_arch>::size, tile = 4.0 * 2.0 * 16 * 16;
  switch (unit) {
    case bench::arithmetic::int8:
      return 8.0 * lanes;
    case bench::arithmetic::bf16:
      return (bf16_dot::dot_products ? 4.0 : 2.0) * lanes;
    case bench::arithmetic::float32:
      return 2.0 * lanes;
    case bench::arithmetic::int8_tiles:
      return tile * 64;
    case bench::arithmetic::bf16_tiles:
      return tile * 32;
  }
  return 0.0;
}

}  // namespace

namespace bench {

std::size_t beyond_cache() {
  static const std::size_t bytes = [] {
    constexpr std::size_t least = std::size_t{1} << 28;
#ifdef _SC_LEVEL3_CACHE_SIZE
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return std::max(least, 2 * static_cast<std::size_t>(std::max(cache, 0L)));
#else
    return least;
#endif
  }();
  return bytes;
}

double read_bandwidth(std::size_t threads) {
  static const mote::buffer<float> x(beyond_cache() / sizeof(float));
  static std::map<std::size_t, mote::simd<>> backends;
  static std::size_t from = 0;
  const std::size_t piece = std::size_t{1} << 16;
  mote::simd<>& be = backends.try_emplace(threads, mote::threads{threads}).first->second;
  // In one stream or two, with and without asking for what comes next; in stretches as long as small matrices, whose begin and
  // end count, and in longer ones.
  constexpr auto ways = std::array{&sum_of<1, 0>, &sum_of<1, 1536>, &sum_of<2, 1536>};
  constexpr std::size_t longest = std::size_t{1} << 24;
  std::array<float, longest / piece> totals;
  double best = 0.0;
  for (const auto read : ways) {
    for (std::size_t stretch = longest; stretch >= longest / 32; stretch /= 4) {
      for (std::size_t done = 0; done < longest / 2; done += stretch) {
        if (from + stretch > x.size()) from = 0;
        const double seconds = shortest_of(1, [&] {
          be.parallel_for(stretch, piece, [&](std::size_t begin, std::size_t end) {
            totals[begin / piece] = read(x.data() + from + begin, end - begin);
          });
          benchmark::DoNotOptimize(totals.data());
        });
        best = std::max(best, static_cast<double>(stretch * sizeof(float)) / seconds);
        from += stretch;
      }
    }
  }
  return best;
}

double update_bandwidth() {
  static const double measured = [] {
    using vector = mote::batch<float, mote::default_arch>;
    const std::size_t n = beyond_cache() / sizeof(float);
    mote::buffer<float> x(n);
    const double seconds = shortest_of(
        25,
        [&] {
          for (std::size_t i = 0; i < n; i += vector::size) {
            (vector::load_unaligned(x.data() + i) * vector(0.5f)).store_unaligned(x.data() + i);
          }
          benchmark::DoNotOptimize(x.data());
          benchmark::ClobberMemory();
        },
        processor_seconds);
    return 2.0 * static_cast<double>(n * sizeof(float)) / seconds;
  }();
  return measured;
}

double rate(arithmetic unit, std::size_t threads) {
  static std::map<std::pair<arithmetic, std::size_t>, double> measured;
  const bool tiles = unit == arithmetic::int8_tiles || unit == arithmetic::bf16_tiles;
  if (tiles && !mote::detail::amx_tiles::available()) return 0.0;
  if (const auto known = measured.find({unit, threads}); known != measured.end()) return known->second;
  // Several turns for each thread, as one of them may come late.
  mote::simd<> be{mote::threads{threads}};
  const std::size_t turns = threads == 1 ? 1 : 4 * threads;
  const auto all = [&] {
    be.parallel_for(turns, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) run(unit);
    });
  };
  const double seconds = shortest_of(100, all, threads == 1 ? processor_seconds : wall_seconds);
  return measured[{unit, threads}] = static_cast<double>(turns) * steps * operations_of_step(unit) / seconds;
}

}  // namespace bench
