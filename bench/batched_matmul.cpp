#include <mote/ops/batched_matmul/batched_matmul.hpp>

#include "support/products.hpp"

namespace {

// The query of 16 heads into the latent space of MLA, 128 channels to 512.
void batched_matmul(benchmark::State& state, bench::format f) {
  const auto tokens = static_cast<std::size_t>(state.range(0));
  const std::size_t heads = 16, out = 512, in = 128;
  const auto& all = bench::rotated_weights(f, heads * out, in);
  const auto x = bench::random_floats(heads * tokens * in);
  mote::buffer<float> y(heads * tokens * out), want(y.size());
  const auto rows = x.as(heads, tokens, in);
  mote::simd<> be;
  mote::reference reference;
  mote::batched_matmul(be, rows, all[0].get(), y.as(heads, tokens, out));
  mote::batched_matmul(reference, rows, all[0].get(), want.as(heads, tokens, out));
  if (!bench::same(y.as(heads * tokens, out), want.as(heads * tokens, out))) {
    return state.SkipWithError("the result differs from the reference");
  }
  std::size_t turn = 0;
  for (auto _ : state) {
    mote::batched_matmul(be, rows, all[turn].get(), y.as(heads, tokens, out));
    turn = (turn + 1) % all.size();
  }
  bench::of_product_limit(state, f, 1, mote::bytes(all[0].get()), 2.0 * static_cast<double>(heads * tokens * out * in));
  bench::vs_peer(state, std::string("batched_matmul/") + bench::name(f) + "/tokens:" + std::to_string(tokens));
}
BENCHMARK_CAPTURE(batched_matmul, f32, bench::format::f32)->ArgName("tokens")->Arg(1)->Arg(64)->UseRealTime();
BENCHMARK_CAPTURE(batched_matmul, bf16, bench::format::bf16)->ArgName("tokens")->Arg(1)->Arg(64)->UseRealTime();

}  // namespace
