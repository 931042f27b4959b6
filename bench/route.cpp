#include <mote/ops/route/route.hpp>

#include <benchmark/benchmark.h>

#include "support/bench.hpp"

namespace {

// The router of DeepSeek-V3. The limit is the exponentials' arithmetic alone: about 20 operations for each score.
void route_v3(benchmark::State& state) {
  const auto tokens = static_cast<std::size_t>(state.range(0));
  const std::size_t experts = 256;
  const auto logits = bench::random_floats(tokens * experts), bias = bench::random_floats(experts, 0.1f);
  mote::buffer<std::int32_t> indices(tokens * 8);
  mote::buffer<float> weights(tokens * 8);
  const mote::router_config config{.scoring = mote::scoring_func::sigmoid,
                                   .method = mote::topk_method::noaux_tc,
                                   .num_experts_per_tok = 8,
                                   .n_group = 8,
                                   .topk_group = 4,
                                   .norm_topk_prob = true,
                                   .routed_scaling_factor = 2.5f};
  mote::buffer<std::int32_t> want_indices(tokens * 8);
  mote::buffer<float> want(tokens * 8);
  mote::simd<> be;
  mote::reference reference;
  const auto route = [&](auto& backend, mote::buffer<std::int32_t>& chosen, mote::buffer<float>& weight) {
    mote::route(backend, config, logits.as(tokens, experts), bias.as(experts), chosen.as(tokens, 8),
                weight.as(tokens, 8));
  };
  route(reference, want_indices, want);
  route(be, indices, weights);
  if (!std::equal(indices.begin(), indices.end(), want_indices.begin()) ||
      !bench::same(weights.as(tokens, 8), want.as(tokens, 8))) {
    return state.SkipWithError("the result differs from the reference");
  }
  for (auto _ : state) route(be, indices, weights);
  bench::of_fma_limit(state, 2.0 * 20.0 * static_cast<double>(tokens * experts));
  bench::vs_peer(state, "route/v3/" + std::to_string(tokens));
}
BENCHMARK(route_v3)->Name("route/v3")->Arg(1)->Arg(512);

}  // namespace
