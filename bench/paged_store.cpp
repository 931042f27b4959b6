#include <mote/ops/paged_store/paged_store.hpp>

#include <algorithm>

#include <benchmark/benchmark.h>

#include "support/cache.hpp"

namespace {

// Every row of a latent cache is written. The limit is that of an update of the bytes that move: a row of x is read, a
// row of the cache is read into the processor's caches and written back.
void paged_store(benchmark::State& state) {
  const std::size_t width = 576;
  bench::scattered_cache cache(64, width);
  const auto cached = cache.rows();
  mote::buffer<float> matrix(cached.length * width);
  std::fill(matrix.begin(), matrix.end(), 0.5f);
  const auto rows = matrix.as(cached.length, width);
  mote::simd<> be;
  mote::paged_store(be, rows, cached, 0, 0);
  for (const std::size_t i : {std::size_t{0}, cached.length - 1}) {
    if (!std::equal(rows.row(i), rows.row(i) + width, cached.row(i))) return state.SkipWithError("a row differs");
  }
  for (auto _ : state) mote::paged_store(be, rows, cached, 0, 0);
  bench::of_update_limit(state, 3 * matrix.size() * sizeof(float));
}
BENCHMARK(paged_store)->Name("paged_store/memory/576");

}  // namespace
