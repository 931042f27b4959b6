#include <mote/ops/paged_load/paged_load.hpp>

#include <algorithm>
#include <vector>

#include <benchmark/benchmark.h>

#include "support/cache.hpp"

namespace {

// Rows of a latent cache are read. The limit is that of an update of the bytes that move: a row of the cache is read, a
// row of y is read into the processor's caches and written back.
template <class T>
void paged_load(benchmark::State& state) {
  const std::size_t width = 576;
  bench::scattered_cache<T> cache(64, width);
  auto cached = cache.rows();
  cached.length = std::min(cached.length, bench::beyond_cache() / sizeof(float) / width);
  std::vector<float> value(width, 0.5f);
  for (std::size_t i = 0; i < cached.length; ++i) mote::encode_row(value.data(), width, cached.row(i));
  mote::decode_row(cached.row(0), width, value.data());
  mote::buffer<float> matrix(cached.length * width);
  const auto rows = matrix.as(cached.length, width);
  mote::simd<> be;
  mote::paged_load(be, cached, 0, rows);
  for (const std::size_t i : {std::size_t{0}, cached.length - 1}) {
    if (!std::equal(value.begin(), value.end(), rows.row(i))) return state.SkipWithError("a row differs");
  }
  for (auto _ : state) mote::paged_load(be, cached, 0, rows);
  bench::of_update_limit(state, cached.length * (2 * width * sizeof(float) + cached.width() * sizeof(T)));
}
BENCHMARK(paged_load<float>)->Name("paged_load/memory/576");
BENCHMARK(paged_load<mote::bf16>)->Name("paged_load/memory/bf16/576");
BENCHMARK(paged_load<mote::mxfp8>)->Name("paged_load/memory/mxfp8/576");
BENCHMARK(paged_load<mote::q8_0>)->Name("paged_load/memory/q8_0/576");

}  // namespace
