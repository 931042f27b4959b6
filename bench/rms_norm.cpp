#include <mote/ops/rms_norm/rms_norm.hpp>

#include <benchmark/benchmark.h>

#include "support/bench.hpp"

namespace {

// In place, beyond the last-level cache: every element is read and written once. With weights of one the values stay
// what they are, run after run, and do not fade into slow subnormals.
void rms_norm_memory(benchmark::State& state) {
  const auto hidden = static_cast<std::size_t>(state.range(0));
  const std::size_t tokens = bench::beyond_cache() / sizeof(float) / hidden;
  auto x = bench::random_floats(tokens * hidden);
  mote::buffer<float> weight(hidden);
  for (float& w : weight) w = 1.0f;
  const auto rows = x.as(tokens, hidden);
  mote::buffer<float> want(8 * hidden);
  mote::simd<> be;
  mote::reference reference;
  mote::rms_norm(reference, rows.slice(0, 0, 8), weight.as(hidden), 1e-6f, want.as(8, hidden));
  mote::rms_norm(be, rows, weight.as(hidden), 1e-6f, rows);
  if (!bench::same(rows.slice(0, 0, 8), want.as(8, hidden)))
    return state.SkipWithError("the result differs from the reference");
  for (auto _ : state) mote::rms_norm(be, rows, weight.as(hidden), 1e-6f, rows);
  bench::of_update_limit(state, 2 * tokens * hidden * sizeof(float));
}
BENCHMARK(rms_norm_memory)->Name("rms_norm/memory")->Arg(2048)->Arg(7168);

// A prefill's activations, in the second-level cache or beyond, into another matrix.
void rms_norm_512(benchmark::State& state) {
  const std::size_t tokens = 512, hidden = 2048;
  const auto x = bench::random_floats(tokens * hidden), weight = bench::random_floats(hidden);
  mote::buffer<float> y(tokens * hidden), want(tokens * hidden);
  mote::simd<> be;
  mote::reference reference;
  mote::rms_norm(reference, x.as(tokens, hidden), weight.as(hidden), 1e-6f, want.as(tokens, hidden));
  mote::rms_norm(be, x.as(tokens, hidden), weight.as(hidden), 1e-6f, y.as(tokens, hidden));
  if (!bench::same(y.as(tokens, hidden), want.as(tokens, hidden)))
    return state.SkipWithError("the result differs from the reference");
  for (auto _ : state) mote::rms_norm(be, x.as(tokens, hidden), weight.as(hidden), 1e-6f, y.as(tokens, hidden));
  bench::of_update_limit(state, 2 * tokens * hidden * sizeof(float));
  bench::vs_peer(state, "rms_norm/512x2048");
}
BENCHMARK(rms_norm_512)->Name("rms_norm/512x2048");

}  // namespace
