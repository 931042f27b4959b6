#include <mote/kernels/extern.hpp>
#include <mote/ops/mla_prefill/mla_prefill.hpp>

#include <benchmark/benchmark.h>

#include "support/bench.hpp"

namespace {

// 16 heads of 128 + 64 channels, values of 128; the tokens are the last ones of the context.
void mla_prefill(benchmark::State& state) {
  const auto tokens = static_cast<std::size_t>(state.range(0)), context = static_cast<std::size_t>(state.range(1));
  const std::size_t heads = 16, nope = 128, rope = 64;
  const auto q_nope = bench::random_floats(tokens * heads * nope), q_rope = bench::random_floats(tokens * heads * rope);
  const auto k_nope = bench::random_floats(context * heads * nope), k_rope = bench::random_floats(context * rope);
  const auto v = bench::random_floats(context * heads * nope);
  mote::buffer<float> y(tokens * heads * nope);
  const std::size_t checked = 4;
  mote::buffer<float> want(checked * heads * nope);
  mote::simd<> be;
  mote::reference reference;
  const auto prefill = [&](auto& backend, std::size_t first, std::size_t count, mote::buffer<float>& out) {
    mote::mla_prefill(backend, q_nope.as(tokens, heads, nope).slice(0, first, count),
                      q_rope.as(tokens, heads, rope).slice(0, first, count), k_nope.as(context, heads, nope),
                      k_rope.as(context, rope), v.as(context, heads, nope), 0.07f, out.as(count, heads, nope));
  };
  prefill(reference, tokens - checked, checked, want);
  prefill(be, 0, tokens, y);
  if (!bench::same(y.as(tokens, heads * nope).slice(0, tokens - checked, checked), want.as(checked, heads * nope))) {
    return state.SkipWithError("the result differs from the reference");
  }
  for (auto _ : state) prefill(be, 0, tokens, y);
  const double pairs = static_cast<double>(tokens * (context - tokens) + tokens * (tokens + 1) / 2);
  bench::of_fma_limit(state, 2.0 * pairs * static_cast<double>(heads * (2 * nope + rope)));
}
BENCHMARK(mla_prefill)->Name("mla_prefill")->Args({512, 512})->Args({128, 2048});

}  // namespace
