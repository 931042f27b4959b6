#include <mote/ops/add_bias/add_bias.hpp>

#include <benchmark/benchmark.h>

#include "support/bench.hpp"

namespace {

// In place, beyond the last-level cache: every element is read and written once.
void add_bias_memory(benchmark::State& state) {
  const std::size_t hidden = 2048, tokens = bench::beyond_cache() / sizeof(float) / hidden;
  auto y = bench::random_floats(tokens * hidden);
  const auto bias = bench::random_floats(hidden, 1e-3f);
  const float want = y[hidden + 7] + bias[7];
  mote::simd<> be;
  mote::add_bias(be, bias.as(hidden), y.as(tokens, hidden));
  if (y[hidden + 7] != want) return state.SkipWithError("the result differs from the sum");
  for (auto _ : state) mote::add_bias(be, bias.as(hidden), y.as(tokens, hidden));
  bench::of_update_limit(state, 2 * tokens * hidden * sizeof(float));
}
BENCHMARK(add_bias_memory)->Name("add_bias/memory/2048");

}  // namespace
