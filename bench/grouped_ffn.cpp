#include <mote/ops/grouped_ffn/grouped_ffn.hpp>

#include <random>
#include <set>

#include "support/products.hpp"

namespace {

// The routed experts of DeepSeek-V2-Lite: 64, of which a token takes 6.
constexpr std::size_t experts = 64, top_k = 6, hidden = 2048, intermediate = 1408;

// Kept from call to call, as a benchmark's function is called several times.
const std::vector<mote::ffn_weights>& expert_weights(bench::format f) {
  static bench::format made;
  static std::vector<bench::random_weight> owned;
  static std::vector<mote::ffn_weights> all;
  if (!all.empty() && made == f) return all;
  all.clear();
  owned.clear();
  owned.reserve(3 * experts);
  for (std::size_t e = 0; e < experts; ++e) {
    const auto matrix = [&](std::size_t out, std::size_t in) { return owned.emplace_back(f, out, in).get(); };
    const auto gate = matrix(intermediate, hidden), up = matrix(intermediate, hidden);
    all.push_back({gate, up, matrix(hidden, intermediate)});
  }
  made = f;
  return all;
}

void grouped_ffn(benchmark::State& state, bench::format f, std::size_t tokens, std::size_t threads,
                 const std::string& peer) {
  const auto& all = expert_weights(f);
  // Another routing in each turn, so that few tokens find their experts in memory and not in a cache.
  std::minstd_rand random(1);
  const std::size_t turns = 16;
  std::vector<std::int32_t> indices;
  double distinct = 0.0;
  for (std::size_t turn = 0; turn < turns; ++turn) {
    std::set<std::int32_t> used;
    for (std::size_t t = 0; t < tokens; ++t) {
      std::vector<std::int32_t> order(experts);
      for (std::size_t e = 0; e < experts; ++e) order[e] = static_cast<std::int32_t>(e);
      std::shuffle(order.begin(), order.end(), random);
      indices.insert(indices.end(), order.begin(), order.begin() + top_k);
      used.insert(order.begin(), order.begin() + top_k);
    }
    distinct += static_cast<double>(used.size()) / static_cast<double>(turns);
  }
  const auto x = bench::random_floats(tokens * hidden), weights = bench::random_floats(tokens * top_k, 0.2f);
  mote::buffer<float> y(tokens * hidden), want(hidden);
  const auto rows = x.as(tokens, hidden);
  const auto result = y.as(tokens, hidden);
  const auto routing = weights.as(tokens, top_k);
  const auto chosen = [&](std::size_t turn) {
    return mote::view<const std::int32_t, 2>(indices.data() + turn * tokens * top_k, tokens, top_k);
  };
  mote::simd<> be{mote::threads{threads}};
  mote::reference reference;
  mote::grouped_ffn(be, rows, chosen(0), routing, all, result);
  mote::grouped_ffn(reference, rows.slice(0, tokens - 1, 1), chosen(0).slice(0, tokens - 1, 1),
                    routing.slice(0, tokens - 1, 1), all, want.as(std::size_t{1}, hidden));
  if (!bench::same(result.slice(0, tokens - 1, 1), want.as(std::size_t{1}, hidden))) {
    return state.SkipWithError("the result differs from the reference");
  }

  std::size_t turn = 0;
  for (auto _ : state) {
    mote::grouped_ffn(be, rows, chosen(turn), routing, all, result);
    turn = (turn + 1) % turns;
  }
  const auto& e = all[0];
  const auto bytes = static_cast<double>(mote::bytes(e.gate) + mote::bytes(e.up) + mote::bytes(e.down)) * distinct;
  bench::of_product_limit(state, f, threads, static_cast<std::size_t>(bytes),
                          6.0 * static_cast<double>(tokens * top_k * hidden * intermediate));
  if (threads == 1) bench::vs_peer(state, peer);
}

const bool registered = [] {
  for (const auto f : {bench::format::bf16, bench::format::int8}) {
    for (const std::size_t tokens : {1u, 16u, 128u, 512u}) {
      for (const std::size_t threads : {1u, 2u}) {
        const std::string name =
            std::string("grouped_ffn/") + bench::name(f) + "/64x6/2048x1408/tokens:" + std::to_string(tokens);
        benchmark::RegisterBenchmark((name + "/threads:" + std::to_string(threads)).c_str(),
                                     [=](benchmark::State& state) { grouped_ffn(state, f, tokens, threads, name); })
            ->UseRealTime();
      }
    }
  }
  return true;
}();

}  // namespace
