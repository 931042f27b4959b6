// What the op benchmarks share: limits measured in this run, peers, data, and the check
// that goes before the clock.
//
//   of_limit   the share of the limit that was reached: time at the limit / time taken
//   vs_NAME    that peer's time / time taken; vs_peer where MOTE_PEERS_JSON names a file {"benchmark": seconds, …}
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <random>
#include <string>
#include <utility>

#include <mote/core/backend.hpp>
#include <mote/core/buffer.hpp>
#include <mote/core/simd.hpp>
#include <mote/ops/matmul/micro_kernel.hpp>

#include <nlohmann/json.hpp>

namespace bench {

// How long each contender of a benchmark is measured, in seconds; main() sets it.
inline double measuring_time = 0.2;

// Bytes of a working set that no last-level cache of a desktop or of a server's slice holds.
inline constexpr std::size_t beyond_cache = std::size_t{1} << 28;

inline mote::buffer<float> random_floats(std::size_t size, float scale = 1.0f) {
  std::minstd_rand engine(static_cast<unsigned>(size));
  std::uniform_real_distribution<float> distribution(-1.7f * scale, 1.7f * scale);
  mote::buffer<float> x(size);
  // Large arrays repeat themselves: drawing every number would take longer than the benchmarks.
  const std::size_t drawn = std::min(size, std::size_t{1000003});
  for (std::size_t i = 0; i < size; ++i) x.data()[i] = i < drawn ? distribution(engine) : x.data()[i - drawn];
  return x;
}

// The shortest of several runs, in seconds of processor time: what the counters are rates of as well.
template <class F>
double shortest(int runs, F&& f) {
  double best = 1e300;
  for (int i = 0; i < runs; ++i) {
    const std::clock_t start = std::clock();
    f();
    const double taken = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    best = taken < best ? taken : best;
  }
  return best;
}

// Bytes a second, read and written together, of multiplying a large array in place on one thread.
inline double update_bandwidth() {
  static const double measured = [] {
    using vector = mote::batch<float, mote::default_arch>;
    const std::size_t n = beyond_cache / sizeof(float);
    mote::buffer<float> x(n);
    const double seconds = shortest(25, [&] {
      for (std::size_t i = 0; i < n; i += vector::size) {
        (vector::load_unaligned(x.data() + i) * vector(0.5f)).store_unaligned(x.data() + i);
      }
      benchmark::DoNotOptimize(x.data());
      benchmark::ClobberMemory();
    });
    return 2.0 * static_cast<double>(beyond_cache) / seconds;
  }();
  return measured;
}

// `steps` multiply-adds in each of several independent chains. Not inlined, and sums are kept as values, not as elements of
// the array: so each stays in a register.
template <std::size_t... Chain>
[[gnu::noinline]] float multiply_add_chains(int steps, std::index_sequence<Chain...>) {
  using vector = mote::batch<float, mote::default_arch>;
  const vector a(0.5f), b(0.25f);
  const auto add = [&](vector sum) {
    sum = mote::fused_multiply_add(sum, a, b);
    mote::detail::keep_in_register(sum);
    return sum;
  };
  vector sums[] = {vector(static_cast<float>(Chain))...};
  for (int i = 0; i < steps; ++i) ((sums[Chain] = add(sums[Chain])), ...);
  return mote::sum<mote::default_arch>((sums[Chain] + ...));
}

// float32 operations a second of independent multiply-adds on one thread.
inline double fma_rate() {
  static const double measured = [] {
    constexpr int steps = 100000;
    constexpr std::size_t chains = 12;
    const double seconds = shortest(50, [&] {
      float total = multiply_add_chains(steps, std::make_index_sequence<chains>{});
      benchmark::DoNotOptimize(total);
    });
    return 2.0 * steps * static_cast<double>(chains * mote::batch<float, mote::default_arch>::size) / seconds;
  }();
  return measured;
}

// Whether results are those of the reference, to rounding: asked before the clock starts.
inline bool same(mote::view<const float, 2> got, mote::view<const float, 2> want) {
  for (std::size_t t = 0; t < want.extent(0); ++t) {
    for (std::size_t n = 0; n < want.extent(1); ++n) {
      if (!(std::abs(got(t, n) - want(t, n)) <= 0.01f + 0.001f * std::abs(want(t, n)))) return false;
    }
  }
  return true;
}

inline void set_ratio(benchmark::State& state, const char* counter, double seconds) {
  state.counters[counter] = benchmark::Counter(seconds, benchmark::Counter::kIsIterationInvariantRate);
}

// The limit: `bytes` read and written at the update bandwidth.
inline void of_update_limit(benchmark::State& state, std::size_t bytes) {
  set_ratio(state, "of_limit", static_cast<double>(bytes) / update_bandwidth());
}

// The limit: `operations` (a multiply-add is two) at the multiply-add rate.
inline void of_fma_limit(benchmark::State& state, double operations) {
  set_ratio(state, "of_limit", operations / fma_rate());
}

inline void vs_peer(benchmark::State& state, const std::string& name) {
  const char* path = std::getenv("MOTE_PEERS_JSON");
  if (path == nullptr) return;
  std::ifstream file(path);
  const auto peers = nlohmann::json::parse(file, nullptr, false);
  if (peers.is_object() && peers.contains(name)) set_ratio(state, "vs_peer", peers[name].get<double>());
}

}  // namespace bench
