#include <mote/ops/mla_prefill/mla_prefill.hpp>

#include "support/backends.hpp"
#include "support/random.hpp"

namespace {

struct prefill_case {
  std::size_t tokens, context, heads, nope, rope, v;

  std::vector<float> q_nope, q_rope, k_nope, k_rope, values;

  prefill_case(std::size_t t, std::size_t c, std::size_t h, std::size_t dn, std::size_t dr, std::size_t dv)
      : tokens(t), context(c), heads(h), nope(dn), rope(dr), v(dv) {
    test::random_source random(static_cast<std::uint32_t>(t + 31 * c + 7 * h));
    q_nope = random.normal(t * h * dn);
    q_rope = random.normal(t * h * dr);
    k_nope = random.normal(c * h * dn);
    k_rope = random.normal(c * dr);
    values = random.normal(c * h * dv);
  }

  std::vector<float> define() const {
    std::vector<float> y(tokens * heads * v);
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t h = 0; h < heads; ++h) {
        const std::size_t visible = context - tokens + t + 1;
        std::vector<double> p(visible), o(v);
        double total = 0.0;
        for (std::size_t c = 0; c < visible; ++c) {
          double s = 0.0;
          for (std::size_t i = 0; i < nope; ++i) {
            s += double{q_nope[(t * heads + h) * nope + i]} * k_nope[(c * heads + h) * nope + i];
          }
          for (std::size_t i = 0; i < rope; ++i) s += double{q_rope[(t * heads + h) * rope + i]} * k_rope[c * rope + i];
          total += p[c] = std::exp(s * 0.3);
        }
        for (std::size_t c = 0; c < visible; ++c) {
          for (std::size_t i = 0; i < v; ++i) o[i] += p[c] / total * values[(c * heads + h) * v + i];
        }
        for (std::size_t i = 0; i < v; ++i) y[(t * heads + h) * v + i] = static_cast<float>(o[i]);
      }
    }
    return y;
  }

  // With NaN around all rows.
  template <class Backend>
  std::vector<float> run_framed(Backend& be) const {
    test::framed qn(tokens, heads * nope, q_nope), qr(tokens, heads * rope, q_rope), kn(context, heads * nope, k_nope);
    test::framed kr(context, rope, k_rope), vs(context, heads * v, values), y(tokens, heads * v, 4);
    const auto by_head = [&](test::framed& f, std::size_t dim) {
      const auto rows = f.view();
      return mote::view<float, 3>(rows.data(), {rows.extent(0), heads, dim}, {rows.stride(0), dim, 1});
    };
    mote::mla_prefill(be, by_head(qn, nope), by_head(qr, rope), by_head(kn, nope), kr.view(), by_head(vs, v), 0.3f,
                      by_head(y, v));
    CHECK(y.intact());
    return y.values();
  }

  // Tokens [begin, begin + count) against their own context.
  template <class Backend>
  void run(Backend& be, std::size_t begin, std::size_t count, float* y) const {
    const std::size_t seen = context - tokens + begin + count;
    mote::mla_prefill(be, mote::view<const float, 3>(q_nope.data() + begin * heads * nope, count, heads, nope),
                      mote::view<const float, 3>(q_rope.data() + begin * heads * rope, count, heads, rope),
                      mote::view<const float, 3>(k_nope.data(), seen, heads, nope),
                      mote::view<const float, 2>(k_rope.data(), seen, rope),
                      mote::view<const float, 3>(values.data(), seen, heads, v), 0.3f,
                      mote::view<float, 3>(y, count, heads, v));
  }
};

}  // namespace

TEST_CASE("mla_prefill: equals the definition in double precision") {
  const prefill_case cases[] = {{0, 0, 2, 8, 4, 8},       {0, 5, 2, 8, 4, 8},     {1, 1, 1, 1, 1, 1},
                                {3, 3, 2, 5, 3, 7},       {7, 70, 3, 16, 8, 12},  {17, 17, 1, 16, 8, 16},
                                {40, 40, 2, 24, 0, 33},   {33, 100, 2, 0, 8, 20}, {70, 150, 1, 32, 16, 64},
                                {129, 129, 1, 16, 8, 80}, {20, 40, 2, 0, 0, 8}};
  for (const auto& c : cases) {
    const auto want = c.define();
    test::for_each_backend([&](auto& be) {
      CAPTURE(c.tokens, c.context, c.heads, c.nope, c.rope, c.v);
      test::check_close(c.run_framed(be), want, 1e-5f);
    });
  }
}

TEST_CASE("mla_prefill: large scores do not overflow") {
  prefill_case c(20, 90, 2, 16, 8, 8);
  for (float& q : c.q_nope) q *= 100.0f;
  mote::reference ref;
  const auto want = c.run_framed(ref);
  test::for_each_simd([&](auto& be) { test::check_close(c.run_framed(be), want, 1e-3f); });
}

TEST_CASE("mla_prefill: bits do not depend on threads nor on how a prompt is cut into chunks") {
  const prefill_case c(150, 210, 5, 40, 16, 24);
  mote::simd<> one, three{mote::threads{3}};
  std::vector<float> all(c.tokens * c.heads * c.v), other(all.size());
  c.run(one, 0, c.tokens, all.data());
  c.run(three, 0, c.tokens, other.data());
  CHECK(test::same_bits(other, all));
  test::run_team([&](auto& be) { c.run(be, 0, c.tokens, other.data()); });
  CHECK(test::same_bits(other, all));
  std::size_t done = 0;
  for (const std::size_t chunk : {1u, 64u, 3u, 82u}) {
    c.run(one, done, chunk, other.data() + done * c.heads * c.v);
    done += chunk;
  }
  CHECK(test::same_bits(other, all));
}

TEST_CASE("mla_prefill: matrix tiles, in software, equal the definition") {
  const prefill_case cases[] = {{3, 3, 2, 5, 3, 7}, {40, 70, 2, 40, 16, 33}, {5, 9, 1, 0, 0, 80}};
  for (const auto& c : cases) {
    CAPTURE(c.tokens, c.context, c.heads, c.nope, c.rope, c.v);
    const auto by_tiles = [&]<std::size_t Vectors>(const std::vector<float>& values) {
      using products = mote::detail::tile_products<mote::detail::software_tiles, mote::default_arch, Vectors>;
      mote::simd<mote::default_arch, mote::serial> be;
      std::vector<float> y(c.tokens * c.heads * c.v);
      mote::detail::mla_prefill_blocks<products>(
          be, mote::view<const float, 3>(c.q_nope.data(), c.tokens, c.heads, c.nope),
          mote::view<const float, 3>(c.q_rope.data(), c.tokens, c.heads, c.rope),
          mote::view<const float, 3>(c.k_nope.data(), c.context, c.heads, c.nope),
          mote::view<const float, 2>(c.k_rope.data(), c.context, c.rope),
          mote::view<const float, 3>(values.data(), c.context, c.heads, c.v), 0.3f,
          mote::view<float, 3>(y.data(), c.tokens, c.heads, c.v));
      return y;
    };
    const auto all = by_tiles.template operator()<2>(c.values);
    test::check_close(all, c.define(), 1e-5f);
    CHECK(test::same_bits(by_tiles.template operator()<1>(c.values), all));
    // The last token alone sees the last row.
    std::vector<float> spoilt = c.values;
    spoilt.back() = std::nanf("");
    const auto after = by_tiles.template operator()<2>(spoilt);
    const std::size_t others = (c.tokens - 1) * c.heads * c.v;
    CHECK(test::same_bits(std::span(after).first(others), std::span(all).first(others)));
    CHECK(std::isnan(after.back()));
  }
}

TEST_CASE("mla_prefill: wrong shapes name the argument") {
  std::vector<float> x(4096);
  test::for_each_backend([&](auto& be) {
    const auto view3 = [&](std::size_t a, std::size_t b, std::size_t c) {
      return mote::view<float, 3>(x.data(), a, b, c);
    };
    const auto qn = view3(3, 2, 8), qr = view3(3, 2, 4), kn = view3(5, 2, 8), v = view3(5, 2, 6), y = view3(3, 2, 6);
    const mote::view<float, 2> kr(x.data(), 5, 4);
    CHECK_THROWS_WITH(mote::mla_prefill(be, qn, view3(2, 2, 4), kn, kr, v, 1.0f, y), contains("mla_prefill: q_rope"));
    CHECK_THROWS_WITH(mote::mla_prefill(be, qn, qr, view3(5, 2, 7), kr, v, 1.0f, y), contains("mla_prefill: k_nope"));
    CHECK_THROWS_WITH(mote::mla_prefill(be, qn, qr, kn, kr.slice(0, 0, 4), v, 1.0f, y),
                      contains("mla_prefill: k_rope"));
    CHECK_THROWS_WITH(mote::mla_prefill(be, qn, qr, kn, kr, view3(4, 2, 6), 1.0f, y), contains("mla_prefill: v"));
    CHECK_THROWS_WITH(mote::mla_prefill(be, qn, qr, kn, kr, v, 1.0f, view3(3, 2, 5)), contains("mla_prefill: y"));
    CHECK_THROWS_WITH(mote::mla_prefill(be, view3(6, 2, 8), view3(6, 2, 4), kn, kr, v, 1.0f, view3(6, 2, 6)),
                      contains("the context must hold at least the tokens"));
  });
}
