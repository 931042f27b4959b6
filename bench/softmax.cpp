#include <mote/ops/softmax/softmax.hpp>

#include <benchmark/benchmark.h>

#include "support/bench.hpp"

namespace {

// In place, beyond the last-level cache. A row is read from memory once; the second and third pass find it in the cache.
void softmax_memory(benchmark::State& state) {
  const auto n = static_cast<std::size_t>(state.range(0));
  const std::size_t rows = bench::beyond_cache() / sizeof(float) / n;
  auto x = bench::random_floats(rows * n);
  const auto y = x.as(rows, n);
  mote::buffer<float> want(8 * n);
  mote::simd<> be;
  mote::reference reference;
  mote::softmax(reference, y.slice(0, 0, 8), want.as(8, n));
  mote::softmax(be, y, y);
  if (!bench::same(y.slice(0, 0, 8), want.as(8, n)))
    return state.SkipWithError("the result differs from the reference");
  for (auto _ : state) mote::softmax(be, y, y);
  bench::of_update_limit(state, 2 * rows * n * sizeof(float));
}
BENCHMARK(softmax_memory)->Name("softmax/memory")->Arg(1024)->Arg(8192);

void softmax_512(benchmark::State& state) {
  const std::size_t rows = 512, n = 256;
  const auto x = bench::random_floats(rows * n);
  mote::buffer<float> y(rows * n), want(rows * n);
  mote::simd<> be;
  mote::reference reference;
  mote::softmax(reference, x.as(rows, n), want.as(rows, n));
  mote::softmax(be, x.as(rows, n), y.as(rows, n));
  if (!bench::same(y.as(rows, n), want.as(rows, n)))
    return state.SkipWithError("the result differs from the reference");
  for (auto _ : state) mote::softmax(be, x.as(rows, n), y.as(rows, n));
  bench::of_update_limit(state, 2 * rows * n * sizeof(float));
  bench::vs_peer(state, "softmax/512x256");
}
BENCHMARK(softmax_512)->Name("softmax/512x256");

}  // namespace
