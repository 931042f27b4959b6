#include <mote/ops/route/route.hpp>

#include <algorithm>
#include <numeric>

#include "support/backends.hpp"
#include "support/random.hpp"

namespace {

using mote::scoring_func;
using mote::topk_method;

struct routed {
  std::vector<std::int32_t> indices;
  std::vector<float> weights;
};

template <class Backend>
routed run(Backend& be, const mote::router_config& c, const std::vector<float>& logits, std::size_t experts,
           const std::vector<float>& bias) {
  const std::size_t tokens = logits.size() / experts, k = c.num_experts_per_tok;
  test::framed z(tokens, experts, logits), w(tokens, k, 2);
  routed r{std::vector<std::int32_t>(tokens * k + 1, -7), {}};
  mote::route(be, c, z.view(), mote::view<const float, 1>(bias),
              mote::view<std::int32_t, 2>(r.indices.data(), tokens, k), w.view());
  CHECK(w.intact());
  CHECK(r.indices.back() == -7);
  r.indices.pop_back();
  r.weights = w.values();
  return r;
}

// The definition in double precision, by sorting.
routed define(const mote::router_config& c, const std::vector<float>& logits, std::size_t experts,
              const std::vector<float>& bias) {
  routed r;
  for (std::size_t t = 0; t < logits.size() / experts; ++t) {
    std::vector<double> s(logits.begin() + static_cast<std::ptrdiff_t>(t * experts),
                          logits.begin() + static_cast<std::ptrdiff_t>((t + 1) * experts));
    if (c.scoring == scoring_func::softmax) {
      const double largest = *std::max_element(s.begin(), s.end());
      double total = 0.0;
      for (double& v : s) total += v = std::exp(v - largest);
      for (double& v : s) v /= total;
    } else {
      for (double& v : s) v = 1.0 / (1.0 + std::exp(-v));
    }
    std::vector<double> choice = s;
    for (std::size_t e = 0; e < bias.size(); ++e) choice[e] += bias[e];
    std::vector<std::size_t> kept(experts);
    std::iota(kept.begin(), kept.end(), std::size_t{0});
    if (c.method != topk_method::greedy) {
      const std::size_t size = experts / c.n_group;
      std::vector<std::size_t> groups(c.n_group);
      std::iota(groups.begin(), groups.end(), std::size_t{0});
      std::vector<double> score(c.n_group);
      for (std::size_t g = 0; g < c.n_group; ++g) {
        std::vector<double> members(choice.begin() + static_cast<std::ptrdiff_t>(g * size),
                                    choice.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
        std::sort(members.rbegin(), members.rend());
        score[g] = members[0] + (c.method == topk_method::noaux_tc && size > 1 ? members[1] : 0.0);
      }
      std::stable_sort(groups.begin(), groups.end(), [&](auto a, auto b) { return score[a] > score[b]; });
      groups.resize(c.topk_group);
      std::erase_if(kept, [&](auto e) { return std::find(groups.begin(), groups.end(), e / size) == groups.end(); });
    }
    std::stable_sort(kept.begin(), kept.end(), [&](auto a, auto b) { return choice[a] > choice[b]; });
    kept.resize(c.num_experts_per_tok);
    std::sort(kept.begin(), kept.end());
    double total = 0.0;
    for (const auto e : kept) total += s[e];
    const bool noaux = c.method == topk_method::noaux_tc;
    const bool normalise = c.norm_topk_prob && (noaux || kept.size() > 1);
    for (const auto e : kept) {
      r.indices.push_back(static_cast<std::int32_t>(e));
      double w = normalise ? s[e] / total : s[e];
      if (!normalise || noaux) w *= c.routed_scaling_factor;
      r.weights.push_back(static_cast<float>(w));
    }
  }
  return r;
}

struct shape {
  std::size_t experts, groups, kept, top_k;
};

const std::vector<shape> router_shapes = {
    {256, 8, 4, 8}, {64, 1, 1, 6},  {160, 8, 3, 6}, {16, 4, 2, 4}, {1, 1, 1, 1},   {2, 2, 1, 1},   {5, 1, 1, 5},
    {21, 7, 3, 9},  {12, 4, 4, 12}, {33, 3, 2, 20}, {72, 8, 8, 2}, {40, 40, 7, 7}, {384, 1, 1, 8}, {300, 2, 1, 40}};

std::vector<mote::router_config> configs(const shape& s) {
  std::vector<mote::router_config> list;
  for (const auto method : {topk_method::greedy, topk_method::group_limited_greedy, topk_method::noaux_tc}) {
    for (const auto scoring : {scoring_func::softmax, scoring_func::sigmoid}) {
      for (const bool norm : {false, true}) {
        list.push_back({.scoring = scoring,
                        .method = method,
                        .num_experts_per_tok = s.top_k,
                        .n_group = s.groups,
                        .topk_group = s.kept,
                        .norm_topk_prob = norm,
                        .routed_scaling_factor = 2.5f});
      }
    }
  }
  return list;
}

}  // namespace

TEST_CASE("route: every method and scoring equals the definition") {
  test::random_source random(1);
  for (const shape& s : router_shapes) {
    for (const auto& c : configs(s)) {
      // Values far enough apart to rank the same in any precision: shuffled steps.
      std::vector<float> logits(7 * s.experts);
      for (std::size_t t = 0; t < 7; ++t) {
        const auto row = logits.begin() + static_cast<std::ptrdiff_t>(t * s.experts);
        for (std::size_t e = 0; e < s.experts; ++e) {
          row[static_cast<std::ptrdiff_t>(e)] = 6.0f * static_cast<float>(e) / static_cast<float>(s.experts) - 3.0f;
        }
        for (std::size_t e = s.experts; e > 1; --e) {
          std::swap(row[static_cast<std::ptrdiff_t>(e - 1)], row[static_cast<std::ptrdiff_t>(random.below(e))]);
        }
      }
      for (const bool biased : {false, true}) {
        std::vector<float> bias(biased ? s.experts : 0);
        for (std::size_t e = 0; e < bias.size(); ++e) bias[e] = 0.25f * static_cast<float>(random.below(3)) - 0.5f;
        if (biased && c.scoring == scoring_func::softmax) std::fill(bias.begin(), bias.end(), 0.125f);
        const routed want = define(c, logits, s.experts, bias);
        test::for_each_backend([&](auto& be) {
          CAPTURE(s.experts, s.groups, s.kept, s.top_k, static_cast<int>(c.method), static_cast<int>(c.scoring),
                  biased);
          const routed got = run(be, c, logits, s.experts, bias);
          CHECK(got.indices == want.indices);
          test::check_close(got.weights, want.weights, 1e-6f, 1e-5f);
        });
      }
    }
  }
}

TEST_CASE("route: ties go to the lower index") {
  for (const shape& s : router_shapes) {
    for (const auto& c : configs(s)) {
      test::random_source random(5);
      std::vector<float> logits(6 * s.experts);
      for (std::size_t i = 0; i < 5 * s.experts; ++i)
        logits[i] = 0.5f * static_cast<float>(random.below(1 + i / s.experts));
      const routed want = define(c, logits, s.experts, {});
      test::for_each_backend([&](auto& be) {
        CAPTURE(s.experts, s.groups, s.kept, s.top_k, static_cast<int>(c.method), static_cast<int>(c.scoring));
        CHECK(run(be, c, logits, s.experts, {}).indices == want.indices);
      });
    }
  }
}

TEST_CASE("route: NaN and infinite logits give different experts within range, the same on all back ends") {
  const float nan = std::nanf(""), infinity = std::numeric_limits<float>::infinity();
  for (const shape& s : router_shapes) {
    for (const auto& c : configs(s)) {
      test::random_source random(6);
      std::vector<float> logits = random.normal(8 * s.experts);
      for (std::size_t e = 0; e < s.experts; ++e) {
        logits[e] = nan;
        logits[s.experts + e] = -infinity;
        logits[2 * s.experts + e] = infinity;
        if (random.below(4) != 0) logits[3 * s.experts + e] = nan;
        if (random.below(4) == 0) logits[4 * s.experts + e] = nan;
        if (random.below(2) == 0) logits[5 * s.experts + e] = -infinity;
        if (random.below(2) == 0) logits[6 * s.experts + e] = infinity;
      }
      std::vector<float> bias = random.normal(s.experts);
      bias[0] = nan;
      bias.back() = -infinity;
      mote::reference ref;
      const routed plain = run(ref, c, logits, s.experts, {}), biased = run(ref, c, logits, s.experts, bias);
      for (const routed* r : {&plain, &biased}) {
        for (std::size_t i = 0; i < r->indices.size(); ++i) {
          CHECK((r->indices[i] >= 0 && static_cast<std::size_t>(r->indices[i]) < s.experts));
          CHECK((i % s.top_k == 0 || r->indices[i] > r->indices[i - 1]));
        }
      }
      test::for_each_simd([&](auto& be) {
        CAPTURE(s.experts, s.groups, s.kept, s.top_k, static_cast<int>(c.method), static_cast<int>(c.scoring));
        CHECK(run(be, c, logits, s.experts, {}).indices == plain.indices);
        CHECK(run(be, c, logits, s.experts, bias).indices == biased.indices);
      });
    }
  }
}

TEST_CASE("route: a token's bits do not depend on threads nor on other tokens") {
  const std::size_t tokens = 300, experts = 256;
  const auto logits = test::random_source(7).normal(tokens * experts),
             bias = test::random_source(8).normal(experts, 0.1f);
  const auto c = configs(router_shapes[0]).back();
  mote::simd<> one, three{mote::threads{3}};
  const routed all = run(one, c, logits, experts, bias), other = run(three, c, logits, experts, bias);
  CHECK(all.indices == other.indices);
  CHECK(test::same_bits(all.weights, other.weights));
  const std::vector<float> row(logits.begin() + 200 * 256, logits.begin() + 201 * 256);
  CHECK(test::same_bits(run(one, c, row, experts, bias).weights, std::span(all.weights).subspan(200 * 8, 8)));
  std::vector<std::int32_t> indices(tokens * 8);
  std::vector<float> weights(tokens * 8);
  test::run_team([&](auto& be) {
    mote::route(be, c, mote::view<const float, 2>(logits.data(), tokens, experts), mote::view<const float, 1>(bias),
                mote::view<std::int32_t, 2>(indices.data(), tokens, 8),
                mote::view<float, 2>(weights.data(), tokens, 8));
  });
  CHECK(indices == all.indices);
  CHECK(test::same_bits(weights, all.weights));
}

TEST_CASE("route: wrong shapes and settings name the argument") {
  std::vector<float> x(64);
  std::vector<std::int32_t> i(64);
  test::for_each_backend([&](auto& be) {
    mote::router_config c{.method = topk_method::noaux_tc, .num_experts_per_tok = 2, .n_group = 4, .topk_group = 2};
    const mote::view<float, 2> z(x.data(), 3, 8), w(x.data(), 3, 2);
    const mote::view<std::int32_t, 2> chosen(i.data(), 3, 2);
    const mote::view<const float, 1> none;
    CHECK_THROWS_WITH(mote::route(be, c, z, mote::view<const float, 1>(x.data(), 7), chosen, w),
                      "route: bias: expected shape [8], got [7]");
    CHECK_THROWS_WITH(mote::route(be, c, z, none, mote::view<std::int32_t, 2>(i.data(), 3, 3), w),
                      "route: indices: expected shape [3, 2], got [3, 3]");
    CHECK_THROWS_WITH(mote::route(be, c, z, none, chosen, z), "route: weights: expected shape [3, 2], got [3, 8]");
    c.num_experts_per_tok = 5;
    CHECK_THROWS_WITH(mote::route(be, c, z, none, chosen, w), contains("route: num_experts_per_tok: 5 exceeds the 4"));
    c.num_experts_per_tok = 0;
    CHECK_THROWS_WITH(mote::route(be, c, z, none, chosen, w), contains("route: num_experts_per_tok: expected 1 to 8"));
    c.num_experts_per_tok = 2;
    c.topk_group = 5;
    CHECK_THROWS_WITH(mote::route(be, c, z, none, chosen, w), contains("route: topk_group: expected 1 to 4"));
    c.n_group = 3;
    CHECK_THROWS_WITH(mote::route(be, c, z, none, chosen, w), contains("route: n_group: expected a divisor of 8"));
  });
}
