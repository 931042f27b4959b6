#include <mote/ops/mla_decode/mla_decode.hpp>

#include <numeric>

#include <benchmark/benchmark.h>

#include "support/bench.hpp"

namespace {

// One token: kv_lora_rank 512, 64 rope channels, pages of 16 rows.
void mla_decode_one(benchmark::State& state) {
  const auto heads = static_cast<std::size_t>(state.range(0)), length = static_cast<std::size_t>(state.range(1));
  const std::size_t rank = 512, rope = 64, page = 16;
  const auto q = bench::random_floats(heads * rank), r = bench::random_floats(heads * rope);
  const auto cache = bench::random_floats(length * (rank + rope));
  mote::buffer<float> y(heads * rank);
  std::vector<std::int32_t> table(length / page);
  std::iota(table.begin(), table.end(), 0);
  const mote::paged_rows<const float> context{cache.as(length / page, page, rank + rope), table, length};
  mote::buffer<float> want(heads * rank);
  mote::simd<> be;
  mote::reference reference;
  const auto decode = [&](auto& backend, mote::buffer<float>& out) {
    mote::mla_decode(backend, q.as(std::size_t{1}, heads, rank), r.as(std::size_t{1}, heads, rope),
                     std::span(&context, 1), 0.05f, out.as(std::size_t{1}, heads, rank));
  };
  decode(reference, want);
  decode(be, y);
  if (!bench::same(y.as(heads, rank), want.as(heads, rank)))
    return state.SkipWithError("the result differs from the reference");
  for (auto _ : state) decode(be, y);
  bench::of_fma_limit(state, 2.0 * static_cast<double>(heads * length * (2 * rank + rope)));
  bench::vs_peer(state, "mla_decode/" + std::to_string(heads) + "/" + std::to_string(length));
}
BENCHMARK(mla_decode_one)->Name("mla_decode")->Args({16, 1024})->Args({16, 8192})->Args({128, 8192});

}  // namespace
