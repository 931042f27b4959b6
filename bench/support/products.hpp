// What the benchmarks of matrix products share: the race with the peers, and the counters that come of it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <mote/core/simd.hpp>

#include "peers/peers.hpp"
#include "support/limits.hpp"
#include "support/weights.hpp"

namespace bench {

// Who else multiplies the same matrices; `name` as in the counter vs_<name>.
struct contender {
  std::string name;
  std::function<void(std::size_t turn)> run;
};

inline double seconds_of(const std::function<void(std::size_t)>& run, std::size_t turn) {
  const auto start = std::chrono::steady_clock::now();
  run(turn);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// What a product needs at least: bytes from memory, and seconds of arithmetic.
struct work {
  double bytes = 0.0, seconds = 0.0;
  std::size_t threads = 1;
};

// The benchmark's loop: mote, and now and then the others and a plain read of memory, so that whatever else the machine does
// meets all alike. Returns mote's shortest run in seconds and sets, from the shortest runs,
//
//   shortest   mote's, in seconds
//   of_limit   the time of reading the bytes, or that of the arithmetic if it is longer, / mote's
//   vs_NAME    NAME's / mote's; vs_peer that of torch
inline double race(benchmark::State& state, const std::string& benchmark, const work& least,
                   const std::function<void(std::size_t turn)>& mote, const std::vector<contender>& others) {
  // A benchmark's function is called several times; none of its runs is lost.
  static std::map<std::string, std::map<std::string, double>> all;
  auto& best = all[benchmark];
  const auto keep = [&best](const std::string& name, double seconds) {
    const auto known = best.find(name);
    best[name] = known == best.end() ? seconds : std::min(known->second, seconds);
  };
  std::size_t turn = 0;
  const double slice = measuring_time / 3;
  const auto let_others_run = [&] {
    keep("memory", least.bytes / read_bandwidth(least.threads));
    for (const contender& other : others) {
      other.run(turn++);  // wakes its threads
      double total = 0.0;
      do {
        const double seconds = seconds_of(other.run, turn++);
        keep(other.name, seconds);
        total += seconds;
      } while (total < slice);
    }
    mote(turn++);
  };
  let_others_run();
  double total = 0.0;
  for (auto _ : state) {
    const double seconds = seconds_of(mote, turn++);
    keep("mote", seconds);
    total += seconds;
    if (total > slice) {
      state.PauseTiming();
      let_others_run();
      total = 0.0;
      state.ResumeTiming();
    }
  }
  state.counters["shortest"] = best["mote"];
  state.counters["of_limit"] = std::max(best["memory"], least.seconds) / best["mote"];
  for (const contender& other : others) state.counters["vs_" + other.name] = best[other.name] / best["mote"];
  if (const auto torch = torch_seconds(benchmark)) state.counters["vs_peer"] = *torch / best["mote"];
  return best["mote"];
}

// Whether a peer has multiplied the same numbers: activations are rounded in other ways, so only roughly.
inline bool alike(mote::view<const float, 2> peer, mote::view<const float, 2> mote) {
  double difference = 0.0, size = 0.0;
  for (std::size_t t = 0; t < mote.extent(0); ++t) {
    for (std::size_t n = 0; n < mote.extent(1); ++n) {
      const double a = static_cast<double>(peer(t, n)), b = static_cast<double>(mote(t, n));
      difference += (a - b) * (a - b);
      size += b * b;
    }
  }
  return std::sqrt(difference) <= 0.05 * std::sqrt(size);
}

inline std::string tokens_and_threads(std::size_t tokens, std::size_t threads) {
  return "/tokens:" + std::to_string(tokens) + "/threads:" + std::to_string(threads);
}

}  // namespace bench
