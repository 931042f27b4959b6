#include <mote/kernels/extern.hpp>
#include <mote/ops/batched_matmul/batched_matmul.hpp>

#include "support/weights.hpp"

namespace {

// The query of 16 heads into the latent space of MLA, 128 channels to 512.
void batched_matmul(benchmark::State& state, const char* name) {
  const auto tokens = static_cast<std::size_t>(state.range(0));
  const std::size_t heads = 16, out = 512, in = 128;
  const auto form = bench::form_named(name);
  const bench::matrices all(form, heads * out, in);
  const auto x = bench::random_floats(heads * tokens * in);
  mote::buffer<float> y(heads * tokens * out), want(y.size());
  const auto rows = x.as(heads, tokens, in);
  mote::simd<> be;
  mote::reference reference;
  mote::batched_matmul(be, rows, all[0], y.as(heads, tokens, out));
  mote::batched_matmul(reference, rows, all[0], want.as(heads, tokens, out));
  if (!bench::same(y.as(heads * tokens, out), want.as(heads * tokens, out))) {
    return state.SkipWithError("the result differs from the reference");
  }
  std::size_t turn = 0;
  for (auto _ : state) {
    mote::batched_matmul(be, rows, all[turn], y.as(heads, tokens, out));
    turn = (turn + 1) % all.size();
  }
  const double operations = 2.0 * static_cast<double>(heads * tokens * out * in);
  bench::set_ratio(state, "of_limit",
                   std::max(static_cast<double>(mote::bytes(all[0])) / bench::read_bandwidth(1),
                            operations / bench::rate(form.unit, 1)));
  bench::vs_peer(state, "batched_matmul/" + form.name + "/tokens:" + std::to_string(tokens));
}
BENCHMARK_CAPTURE(batched_matmul, f32, "f32")->ArgName("tokens")->Arg(1)->Arg(64)->UseRealTime();
BENCHMARK_CAPTURE(batched_matmul, bf16, "bf16_rows")->ArgName("tokens")->Arg(1)->Arg(64)->UseRealTime();

}  // namespace
