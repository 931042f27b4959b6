#include <mote/ops/embedding/embedding.hpp>

#include <algorithm>
#include <random>
#include <vector>

#include <benchmark/benchmark.h>

#include "support/weights.hpp"

namespace {

// 16384 of 65536 rows, in random order. The limit is that of an update of the bytes that move: a row of the table is
// read, a row of y is read into the cache and written back.
void embedding(benchmark::State& state, const char* form) {
  const std::size_t vocab = std::size_t{1} << 16, hidden = 2048, tokens = std::size_t{1} << 14;
  const bench::matrices all(bench::form_named(form), vocab, hidden, 1);
  const mote::weight& table = all[0];
  std::minstd_rand random(1);
  std::vector<std::int32_t> ids(tokens);
  for (auto& id : ids) id = static_cast<std::int32_t>(random() % vocab);
  mote::buffer<float> y(tokens * hidden), want(8 * hidden);
  mote::simd<> be;
  mote::reference reference;
  mote::embedding(be, ids, table, y.as(tokens, hidden));
  mote::embedding(reference, std::span(ids).first(8), table, want.as(8, hidden));
  if (!std::equal(want.begin(), want.end(), y.begin())) return state.SkipWithError("the result differs");
  for (auto _ : state) mote::embedding(be, ids, table, y.as(tokens, hidden));
  const std::size_t row = mote::bytes(table) / vocab;
  bench::of_update_limit(state, tokens * (row + 2 * hidden * sizeof(float)));
}
BENCHMARK_CAPTURE(embedding, f32, "f32")->Name("embedding/f32/65536x2048");
BENCHMARK_CAPTURE(embedding, bf16, "bf16_rows")->Name("embedding/bf16/65536x2048");

}  // namespace
