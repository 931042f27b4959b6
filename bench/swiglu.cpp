#include <mote/ops/swiglu/swiglu.hpp>

#include <benchmark/benchmark.h>

#include "support/bench.hpp"

namespace {

// In place, beyond the last-level cache: two matrices are read and one is written. silu(20) · 1 is 20 in float32, so that
// the values stay what they are, run after run.
void swiglu_memory(benchmark::State& state) {
  const auto inner = static_cast<std::size_t>(state.range(0));
  const std::size_t tokens = bench::beyond_cache / sizeof(float) / inner / 2;
  mote::buffer<float> gate(tokens * inner), up(tokens * inner);
  for (float& g : gate) g = 20.0f;
  for (float& u : up) u = 1.0f;
  const auto y = gate.as(tokens, inner);
  mote::simd<> be;
  for (auto _ : state) mote::swiglu(be, y, up.as(tokens, inner), y);
  bench::of_update_limit(state, 3 * tokens * inner * sizeof(float));
}
BENCHMARK(swiglu_memory)->Name("swiglu/memory")->Arg(1408)->Arg(10944);

}  // namespace
