#include <mote/ops/paged_load/paged_load.hpp>

#include <algorithm>

#include <benchmark/benchmark.h>

#include "support/cache.hpp"

namespace {

// Every row of a latent cache is read. The limit is that of an update of the bytes that move: a row of the cache is
// read, a row of y is read into the processor's caches and written back.
void paged_load(benchmark::State& state) {
  const std::size_t width = 576;
  bench::scattered_cache cache(64, width);
  const auto cached = cache.rows();
  mote::buffer<float> matrix(cached.length * width);
  std::fill(matrix.begin(), matrix.end(), 0.5f);
  const auto rows = matrix.as(cached.length, width);
  mote::simd<> be;
  mote::paged_load(be, cached, 0, rows);
  for (const std::size_t i : {std::size_t{0}, cached.length - 1}) {
    if (!std::equal(rows.row(i), rows.row(i) + width, cached.row(i))) return state.SkipWithError("a row differs");
  }
  for (auto _ : state) mote::paged_load(be, cached, 0, rows);
  bench::of_update_limit(state, 3 * matrix.size() * sizeof(float));
}
BENCHMARK(paged_load)->Name("paged_load/memory/576");

}  // namespace
