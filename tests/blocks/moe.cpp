#include <mote/blocks/moe.hpp>

#include "blocks/support.hpp"

namespace {

struct moe_case {
  test::layer_sizes s;
  test::random_weights weights;
  std::vector<mote::ffn_weights> experts;
  mote::moe_weights w;
  mote::router_config router;

  moe_case(std::uint32_t seed, test::random_weights::format format) : weights(seed, format) {
    router = test::make_config(s).router;
    test::random_weights plain(seed + 1);
    for (std::size_t e = 0; e < s.experts; ++e) experts.push_back(weights.ffn(s.hidden, s.intermediate));
    gate_ = plain.random().normal(s.experts * s.hidden, 0.3f);
    bias_ = plain.random().normal(s.experts, 0.1f);
    w.gate = {gate_.data(), s.experts, s.hidden};
    w.bias = bias_;
    w.experts = experts;
    w.shared = weights.ffn(s.hidden, 2 * s.intermediate);
  }

  template <class Backend>
  std::vector<float> run(Backend& be, const std::vector<float>& x, mote::output mode = mote::output::overwrite) {
    std::vector<float> y(x.size(), 1.0f);
    const std::size_t tokens = x.size() / s.hidden;
    mote::moe(be, router, w, {x.data(), tokens, s.hidden}, {y.data(), tokens, s.hidden}, mode);
    return y;
  }

 private:
  std::vector<float> gate_, bias_;
};

}  // namespace

TEST_CASE("moe: every back end agrees with the reference, in every weight format") {
  using format = test::random_weights::format;
  for (const format f : {format::f32, format::bf16, format::int8}) {
    moe_case c(7, f);
    const auto x = c.weights.random().normal(13 * c.s.hidden);
    mote::reference ref;
    mote::simd<> one, three{mote::threads{3}};
    const auto want = c.run(ref, x);
    const auto got = c.run(one, x);
    test::check_close(got, want, f == format::int8 ? 2e-2f : 1e-5f);
    CHECK(c.run(three, x) == got);
  }
}

TEST_CASE("moe: each token's result is its own") {
  moe_case c(8, test::random_weights::format::f32);
  const auto x = c.weights.random().normal(9 * c.s.hidden);
  mote::simd<> be;
  const auto all = c.run(be, x);
  for (std::size_t t = 0; t < 9; ++t) {
    const std::vector<float> alone(x.begin() + static_cast<std::ptrdiff_t>(t * c.s.hidden),
                                   x.begin() + static_cast<std::ptrdiff_t>((t + 1) * c.s.hidden));
    const auto y = c.run(be, alone);
    CHECK(std::equal(y.begin(), y.end(), all.begin() + static_cast<std::ptrdiff_t>(t * c.s.hidden)));
  }
}

TEST_CASE("moe: the output is the weighted sum of the routed experts plus the shared one") {
  moe_case c(9, test::random_weights::format::f32);
  const std::size_t tokens = 5;
  const auto x = c.weights.random().normal(tokens * c.s.hidden);
  const mote::view<const float, 2> xv(x.data(), tokens, c.s.hidden);
  mote::reference be;
  std::vector<float> y(x.size()), expected(x.size());
  const mote::view<float, 2> sum(expected.data(), tokens, c.s.hidden);
  mote::ffn(be, xv, *c.w.shared, sum);
  std::size_t seen = 0;
  mote::moe(be, c.router, c.w, xv, {y.data(), tokens, c.s.hidden}, mote::output::overwrite,
            [&](const mote::routing& r) {
              seen = r.indices.extent(0);
              std::vector<float> one(c.s.hidden);
              for (std::size_t t = 0; t < tokens; ++t) {
                float total = 0.0f;
                for (std::size_t k = 0; k < c.s.top_k; ++k) {
                  const auto e = static_cast<std::size_t>(r.indices(t, k));
                  mote::ffn(be, xv.slice(0, t, 1), c.experts[e], {one.data(), std::size_t{1}, c.s.hidden});
                  for (std::size_t i = 0; i < c.s.hidden; ++i) sum(t, i) += r.weights(t, k) * one[i];
                  total += r.weights(t, k);
                }
                CHECK(total == Approx(2.5f));
              }
            });
  CHECK(seen == tokens);
  test::check_close(y, expected, 1e-5f);
}

TEST_CASE("moe: accumulates where asked, and refuses shapes that do not fit") {
  moe_case c(10, test::random_weights::format::f32);
  mote::simd<> be;
  const auto x = c.weights.random().normal(2 * c.s.hidden);
  auto set = c.run(be, x);
  const auto added = c.run(be, x, mote::output::accumulate);
  for (float& v : set) v += 1.0f;
  test::check_close(added, set, 1e-6f);

  std::vector<float> y(x.size());
  c.router.num_experts_per_tok = 9;
  CHECK_THROWS_WITH(
      mote::moe(be, c.router, c.w, {x.data(), std::size_t{2}, c.s.hidden}, {y.data(), std::size_t{2}, c.s.hidden}),
      contains("num_experts_per_tok"));
}
