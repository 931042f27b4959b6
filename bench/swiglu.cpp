#include <mote/ops/swiglu/swiglu.hpp>

#include <benchmark/benchmark.h>

#include "support/bench.hpp"

namespace {

// In place, beyond the last-level cache: two matrices are read and one is written. silu(20) · 1 is 20 in float32, so that
// the values stay what they are, run after run.
void swiglu_memory(benchmark::State& state) {
  const auto inner = static_cast<std::size_t>(state.range(0));
  const std::size_t tokens = bench::beyond_cache() / sizeof(float) / inner / 2;
  mote::buffer<float> gate(tokens * inner), up(tokens * inner);
  for (float& g : gate) g = 20.0f;
  for (float& u : up) u = 1.0f;
  const auto y = gate.as(tokens, inner);
  mote::simd<> be;
  mote::swiglu(be, y, up.as(tokens, inner), y);
  if (y(0, 0) != 20.0f || y(tokens - 1, inner - 1) != 20.0f) return state.SkipWithError("the result is not 20");
  for (auto _ : state) mote::swiglu(be, y, up.as(tokens, inner), y);
  bench::of_update_limit(state, 3 * tokens * inner * sizeof(float));
}
BENCHMARK(swiglu_memory)->Name("swiglu/memory")->Arg(1408)->Arg(10944);

// A prefill's activations into another matrix.
void swiglu_512(benchmark::State& state) {
  const std::size_t tokens = 512, inner = 1408;
  const auto gate = bench::random_floats(tokens * inner), up = bench::random_floats(tokens * inner, 0.5f);
  const auto g = gate.as(tokens, inner), u = up.as(tokens, inner);
  mote::buffer<float> y(tokens * inner), want(tokens * inner);
  mote::simd<> be;
  mote::reference reference;
  mote::swiglu(reference, g, u, want.as(tokens, inner));
  mote::swiglu(be, g, u, y.as(tokens, inner));
  if (!bench::same(y.as(tokens, inner), want.as(tokens, inner)))
    return state.SkipWithError("the result differs from the reference");
  for (auto _ : state) mote::swiglu(be, g, u, y.as(tokens, inner));
  bench::of_update_limit(state, 3 * tokens * inner * sizeof(float));
  bench::vs_peer(state, "swiglu/512x1408");
}
BENCHMARK(swiglu_512)->Name("swiglu/512x1408");

}  // namespace
