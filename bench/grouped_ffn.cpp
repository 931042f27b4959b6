#include <mote/kernels/extern.hpp>
#include <mote/ops/grouped_ffn/grouped_ffn.hpp>

#include <array>
#include <memory>
#include <random>
#include <set>

#include "support/products.hpp"

namespace {

// The routed experts of DeepSeek-V2-Lite: 64, of which a token takes 6.
constexpr std::size_t experts = 64, top_k = 6, hidden = 2048, intermediate = 1408, most_tokens = 512;
constexpr std::array<std::int32_t, top_k> checked_experts = {0, 11, 22, 33, 44, 55};

// Where a format's blocks do not divide the rows of `down`, that is Q4_0.
bench::weight_form down_form(const bench::weight_form& form) {
  if (intermediate % form.block == 0) return form;
  return {"q4_0", bench::arithmetic::int8, 32};
}

// Kept for the benchmarks that follow.
struct loaded {
  bench::weight_form form;
  bench::matrices gate, up, down;
  std::vector<mote::ffn_weights> all;
  std::vector<std::pair<std::string, std::unique_ptr<bench::peer_experts>>> peers;
  mote::buffer<float> first;  // what the reference makes of the first token, [1, hidden]

  explicit loaded(const bench::weight_form& f)
      : form(f),
        gate(f, intermediate, hidden, experts),
        up(f, intermediate, hidden, experts),
        down(down_form(f), hidden, intermediate, experts) {
    for (std::size_t e = 0; e < experts; ++e) all.push_back({gate[e], up[e], down[e]});
    for (const auto& peer : bench::peers()) {
      if (auto stacks = peer->load(gate.source(), up.source(), down.source())) {
        peers.emplace_back(peer->name(), std::move(stacks));
      }
    }
  }
  static loaded& get(const bench::weight_form& f) {
    static std::unique_ptr<loaded> last;
    if (!last || last->form.name != f.name) {
      last.reset();
      last = std::make_unique<loaded>(f);
    }
    return *last;
  }
};

// top_k experts for each token, those given and random ones. Balanced: all are as likely. Imbalanced: expert e as likely as
// 1 / (e + 1), so that a few take most of the tokens.
std::vector<std::int32_t> routing(std::size_t tokens, bool balanced, std::minstd_rand& random,
                                  std::vector<std::int32_t> indices = {}) {
  while (indices.size() < tokens * top_k) {
    std::vector<double> shares(experts);
    for (std::size_t e = 0; e < experts; ++e) shares[e] = balanced ? 1.0 : 1.0 / static_cast<double>(e + 1);
    for (std::size_t k = 0; k < top_k; ++k) {
      indices.push_back(std::discrete_distribution<std::int32_t>(shares.begin(), shares.end())(random));
      shares[static_cast<std::size_t>(indices.back())] = 0.0;
    }
  }
  return indices;
}

std::size_t distinct(const std::vector<std::int32_t>& routing) {
  return std::set(routing.begin(), routing.end()).size();
}

// Routings of as many distinct experts each, namely the median of what is drawn: the shortest run shall not be one that has less
// to read. The first token of the first one takes the experts given.
std::vector<std::vector<std::int32_t>> alike_routings(std::size_t count, std::size_t tokens, bool balanced,
                                                      const std::vector<std::int32_t>& first) {
  std::minstd_rand random(1);
  std::vector<std::size_t> sizes(65);
  for (auto& size : sizes) size = distinct(routing(tokens, balanced, random));
  std::nth_element(sizes.begin(), sizes.begin() + 32, sizes.end());
  std::vector<std::vector<std::int32_t>> routings;
  while (routings.size() < count) {
    auto drawn = routing(tokens, balanced, random, routings.empty() ? first : std::vector<std::int32_t>());
    if (distinct(drawn) == sizes[32]) routings.push_back(std::move(drawn));
  }
  return routings;
}

void moe(benchmark::State& state, const std::string& name, const bench::weight_form& form, bool balanced,
         std::size_t tokens, std::size_t threads) {
  loaded& weights = loaded::get(form);
  // Another routing in each turn, so that few tokens find their experts in memory and not in a cache.
  constexpr std::size_t turns = 16;
  const auto drawn = alike_routings(turns, tokens, balanced, {checked_experts.begin(), checked_experts.end()});
  std::vector<mote::view<const std::int32_t, 2>> routings;
  for (const auto& indices : drawn) routings.emplace_back(indices.data(), tokens, top_k);
  const auto x = bench::random_floats(most_tokens * hidden), shares = bench::random_floats(most_tokens * top_k, 0.2f);
  const auto rows = x.as(most_tokens, hidden).slice(0, 0, tokens);
  const auto expert_weights = shares.as(most_tokens, top_k).slice(0, 0, tokens);
  mote::buffer<float> y(tokens * hidden);
  const auto result = y.as(tokens, hidden);
  mote::simd<> be{mote::threads{threads}};
  const auto run = [&](std::size_t turn) {
    mote::grouped_ffn(be, rows, routings[turn % turns], expert_weights, weights.all, result);
  };
  run(0);
  if (weights.first.empty()) {
    mote::reference reference;
    weights.first = mote::buffer<float>(hidden);
    mote::grouped_ffn(reference, rows.slice(0, 0, 1), routings[0].slice(0, 0, 1), expert_weights.slice(0, 0, 1),
                      weights.all, weights.first.as(1, hidden));
  }
  if (!bench::same(result.slice(0, 0, 1), std::as_const(weights.first).as(1, hidden))) {
    return state.SkipWithError("the result differs from the reference");
  }
  std::vector<bench::contender> others;
  for (const auto& [peer, stacks] : weights.peers) {
    auto product = stacks->moe(rows, routings, expert_weights, threads);
    product.run(0);
    if (!bench::alike(product.y, result)) return state.SkipWithError((peer + "'s result differs").c_str());
    others.push_back({peer, std::move(product.run)});
  }

  // Few tokens are a matter of memory alone: each distinct expert is read once.
  const auto& e = weights.all[0];
  const std::size_t bytes = (mote::bytes(e.gate) + mote::bytes(e.up) + mote::bytes(e.down)) * distinct(drawn[0]);
  const double operations = 6.0 * static_cast<double>(tokens * top_k * hidden * intermediate);
  const double seconds = tokens > 8 ? operations / bench::rate(form.unit, threads) : 0.0;
  bench::race(state, name, {static_cast<double>(bytes), seconds, threads}, run, others);
}

const bool registered = [] {
  for (const auto& form : bench::weight_forms()) {
    if (form.name == "f32" || form.name == "bf16_rows") continue;
    for (const bool balanced : {true, false}) {
      for (const std::size_t tokens : {1u, 2u, 4u, 8u, 16u, 128u, 512u}) {
        for (const std::size_t threads : {1u, 2u}) {
          if (!balanced && tokens < 16) continue;
          const std::string name =
              "moe/" + form.name + (balanced ? "" : "/imbalanced") + bench::tokens_and_threads(tokens, threads);
          benchmark::RegisterBenchmark(
              name.c_str(), [=](benchmark::State& state) { moe(state, name, form, balanced, tokens, threads); });
        }
      }
    }
  }
  return true;
}();

}  // namespace
