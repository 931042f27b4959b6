#include <mote/ops/paged_store/paged_store.hpp>

#include <cstring>
#include <vector>

#include <benchmark/benchmark.h>

#include "support/cache.hpp"

namespace {

// Rows of a latent cache are written in turn, as many a call as a prefill has. The limit is that of an update of the bytes
// that move: a row of x is read, a row of the cache is read into the processor's caches and written back.
template <class T>
void paged_store(benchmark::State& state) {
  const std::size_t width = 576, count = 512;
  bench::scattered_cache<T> cache(64, width);
  const auto cached = cache.rows();
  const std::size_t rounds = cached.length / count;
  const mote::buffer<float> matrix = bench::random_floats(cached.length * width);
  const auto rows = matrix.as(cached.length, width);
  mote::simd<> be;
  const auto store = [&] {
    for (std::size_t i = 0; i < rounds; ++i) {
      mote::paged_store(be, rows.slice(0, i * count, count), cached, i * count, 0);
    }
  };
  store();
  std::vector<T> row(cached.width());
  for (const std::size_t i : {std::size_t{0}, rounds * count - 1}) {
    mote::encode_row(rows.row(i), width, row.data());
    if (std::memcmp(row.data(), cached.row(i), row.size() * sizeof(T)) != 0) {
      return state.SkipWithError("a row differs");
    }
  }
  for (auto _ : state) store();
  bench::of_update_limit(state, rounds * count * (width * sizeof(float) + 2 * row.size() * sizeof(T)));
}
BENCHMARK(paged_store<float>)->Name("paged_store/memory/576");
BENCHMARK(paged_store<mote::bf16>)->Name("paged_store/memory/bf16/576");
BENCHMARK(paged_store<mote::mxfp8>)->Name("paged_store/memory/mxfp8/576");
BENCHMARK(paged_store<mote::q8_0>)->Name("paged_store/memory/q8_0/576");

}  // namespace
