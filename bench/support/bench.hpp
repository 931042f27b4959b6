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
#include <fstream>
#include <optional>
#include <random>
#include <string>

#include <mote/core/backend.hpp>
#include <mote/core/buffer.hpp>

#include <nlohmann/json.hpp>

#include "support/limits.hpp"

namespace bench {

// How long each contender of a benchmark is measured, in seconds; main() sets it.
inline double measuring_time = 0.2;

inline mote::buffer<float> random_floats(std::size_t size, float scale = 1.0f) {
  std::minstd_rand engine(static_cast<unsigned>(size));
  std::uniform_real_distribution<float> distribution(-1.7f * scale, 1.7f * scale);
  mote::buffer<float> x(size);
  // Large arrays repeat themselves: drawing every number would take longer than the benchmarks.
  const std::size_t drawn = std::min(size, std::size_t{1000003});
  for (std::size_t i = 0; i < size; ++i) x.data()[i] = i < drawn ? distribution(engine) : x.data()[i - drawn];
  return x;
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
  set_ratio(state, "of_limit", operations / rate(arithmetic::float32, 1));
}

// What torch took for the benchmark of that name, if it was measured.
inline std::optional<double> torch_seconds(const std::string& benchmark) {
  static const auto measured = [] {
    const char* path = std::getenv("MOTE_PEERS_JSON");
    if (path == nullptr) return nlohmann::json();
    std::ifstream file(path);
    return nlohmann::json::parse(file, nullptr, false);
  }();
  if (!measured.is_object() || !measured.contains(benchmark)) return std::nullopt;
  return measured[benchmark].get<double>();
}

inline void vs_peer(benchmark::State& state, const std::string& name) {
  if (const auto torch = torch_seconds(name)) set_ratio(state, "vs_peer", *torch);
}

}  // namespace bench
