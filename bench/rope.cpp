#include <mote/ops/rope/rope.hpp>

#include <numeric>
#include <vector>

#include <benchmark/benchmark.h>

#include "support/bench.hpp"

namespace {

// In place, beyond the last-level cache: 16 heads of 64 channels, the tables once a token.
void rope_memory(benchmark::State& state, mote::rope_pairing pairing) {
  const std::size_t heads = 16, dim = 64, tokens = bench::beyond_cache() / sizeof(float) / heads / dim;
  auto x = bench::random_floats(tokens * heads * dim);
  mote::buffer<float> cos(tokens * dim / 2), sin(tokens * dim / 2);
  std::vector<std::int32_t> positions(tokens);
  std::iota(positions.begin(), positions.end(), 0);
  const auto y = x.as(tokens, heads, dim);
  mote::simd<> be;
  mote::rope_table(be, positions, mote::make_rope_frequencies(dim, 10000.0).inv_freq, 1.0f, cos.as(tokens, dim / 2),
                   sin.as(tokens, dim / 2));
  mote::reference reference;
  const auto c = cos.as(tokens, dim / 2), s = sin.as(tokens, dim / 2);
  mote::buffer<float> want(8 * heads * dim);
  mote::rope(reference, y.slice(0, 8, 8), c.slice(0, 8, 8), s.slice(0, 8, 8), pairing, want.as(8, heads, dim));
  mote::rope(be, y, c, s, pairing, y);
  if (!bench::same(x.as(tokens, heads * dim).slice(0, 8, 8), want.as(8, heads * dim)))
    return state.SkipWithError("the result differs from the reference");
  for (auto _ : state) mote::rope(be, y, c, s, pairing, y);
  bench::of_update_limit(state, (2 * heads + 1) * tokens * dim * sizeof(float));
}
BENCHMARK_CAPTURE(rope_memory, interleaved, mote::rope_pairing::interleaved)->Name("rope/memory/interleaved");
BENCHMARK_CAPTURE(rope_memory, half_split, mote::rope_pairing::half_split)->Name("rope/memory/half_split");

}  // namespace
