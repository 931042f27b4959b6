#include <mote/ops/rope/rope.hpp>

#include "support/backends.hpp"
#include "support/random.hpp"

namespace {

using mote::rope_pairing;

// Straight from the definition: which channels are read and written, in double precision.
std::vector<float> rotate(const std::vector<float>& x, std::size_t heads, std::size_t dim,
                          const std::vector<float>& cos, const std::vector<float>& sin, rope_pairing pairing) {
  std::vector<float> y(x.size());
  const std::size_t half = dim / 2, tokens = heads * dim == 0 ? 0 : x.size() / heads / dim;
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t h = 0; h < heads; ++h) {
      const float* in = x.data() + (t * heads + h) * dim;
      float* out = y.data() + (t * heads + h) * dim;
      for (std::size_t i = 0; i < half; ++i) {
        const bool split_in = pairing == rope_pairing::half_split, split_out = pairing != rope_pairing::interleaved;
        const double a = in[split_in ? i : 2 * i], b = in[split_in ? half + i : 2 * i + 1];
        const double c = cos[t * half + i], s = sin[t * half + i];
        out[split_out ? i : 2 * i] = static_cast<float>(a * c - b * s);
        out[split_out ? half + i : 2 * i + 1] = static_cast<float>(b * c + a * s);
      }
    }
  }
  return y;
}

}  // namespace

TEST_CASE("rope: every pairing, strided rows and heads, in place") {
  test::random_source random(1);
  test::for_each_backend([&](auto& be) {
    for (const auto pairing :
         {rope_pairing::interleaved, rope_pairing::half_split, rope_pairing::interleaved_to_half_split}) {
      for (const std::size_t dim : {0u, 2u, 4u, 6u, 8u, 14u, 16u, 18u, 32u, 34u, 64u, 66u, 130u, 200u}) {
        for (const std::size_t heads : {1u, 3u}) {
          for (const std::size_t tokens : {0u, 1u, 3u}) {
            CAPTURE(static_cast<int>(pairing), dim, heads, tokens);
            const auto x = random.normal(tokens * heads * dim);
            const auto cos = random.normal(tokens * dim / 2), sin = random.normal(tokens * dim / 2);
            const auto want = rotate(x, heads, dim, cos, sin, pairing);
            // Heads are the framed matrix's rows, so that they have NaN between them.
            test::framed in(tokens * heads, dim, x), out(tokens * heads, dim, 5);
            test::framed c(tokens, dim / 2, cos, 1), s(tokens, dim / 2, sin, 2);
            const auto by_token = [&](test::framed& f, std::size_t gap) {
              return mote::view<float, 3>(f.view().data(), {tokens, heads, dim}, {heads * (dim + gap), dim + gap, 1});
            };
            mote::rope(be, by_token(in, 3), c.view(), s.view(), pairing, by_token(out, 5));
            test::check_close(out.values(), want, 1e-6f, 1e-6f);
            CHECK(out.intact());
            mote::rope(be, by_token(in, 3), c.view(), s.view(), pairing, by_token(in, 3));
            CHECK(test::same_bits(in.values(), out.values()));
            CHECK(in.intact());
          }
        }
      }
    }
  });
}

TEST_CASE("rope_table: angles of far positions keep their accuracy") {
  const auto f = mote::make_rope_frequencies(64, 10000.0);
  const std::vector<std::int32_t> positions = {0, 1, 7, 4095, 131071};
  test::for_each_backend([&](auto& be) {
    test::framed cos(positions.size(), 32), sin(positions.size(), 32, 2);
    mote::rope_table(be, positions, f.inv_freq, 2.0f, cos.view(), sin.view());
    for (std::size_t t = 0; t < positions.size(); ++t) {
      for (std::size_t i = 0; i < 32; ++i) {
        const float angle = static_cast<float>(positions[t]) * f.inv_freq[i];
        CHECK(cos.view()(t, i) == Approx(2.0 * std::cos(double{angle})).margin(1e-6));
        CHECK(sin.view()(t, i) == Approx(2.0 * std::sin(double{angle})).margin(1e-6));
      }
    }
    CHECK((cos.intact() && sin.intact()));
  });
}

TEST_CASE("rope: bits do not depend on threads nor on other tokens") {
  const std::size_t tokens = 37, heads = 20, dim = 64;
  const auto x = test::random_source(2).normal(tokens * heads * dim);
  const auto cos = test::random_source(3).normal(tokens * dim / 2),
             sin = test::random_source(4).normal(tokens * dim / 2);
  for (const auto pairing :
       {rope_pairing::interleaved, rope_pairing::half_split, rope_pairing::interleaved_to_half_split}) {
    const auto run = [&](auto& be, std::size_t begin, std::size_t count, std::vector<float>& y) {
      mote::rope(be, mote::view<const float, 3>(x.data() + begin * heads * dim, count, heads, dim),
                 mote::view<const float, 2>(cos.data() + begin * dim / 2, count, dim / 2),
                 mote::view<const float, 2>(sin.data() + begin * dim / 2, count, dim / 2), pairing,
                 mote::view<float, 3>(y.data(), count, heads, dim));
    };
    mote::simd<> one, three{mote::threads{3}};
    std::vector<float> all(x.size()), other(x.size()), row(heads * dim);
    run(one, 0, tokens, all);
    run(three, 0, tokens, other);
    CHECK(test::same_bits(other, all));
    run(one, 20, 1, row);
    CHECK(test::same_bits(row, std::span(all).subspan(20 * heads * dim, heads * dim)));
    test::run_team([&](auto& be) { run(be, 0, tokens, other); });
    CHECK(test::same_bits(other, all));
  }
}

TEST_CASE("rope: wrong shapes and settings are refused") {
  std::vector<float> x(48);
  const std::vector<std::int32_t> positions = {0, 1};
  test::for_each_backend([&](auto& be) {
    const mote::view<float, 3> v(x.data(), 2, 3, 8);
    const mote::view<float, 2> table(x.data(), 2, 4), narrow(x.data(), 2, 3);
    const auto pairing = rope_pairing::interleaved;
    CHECK_THROWS_WITH(mote::rope(be, mote::view<const float, 3>(x.data(), 2, 3, 7), table, table, pairing, v),
                      contains("rope: x: the last dimension must be even"));
    CHECK_THROWS_WITH(mote::rope(be, v, narrow, table, pairing, v), contains("rope: cos: expected shape [2, 4]"));
    CHECK_THROWS_WITH(mote::rope(be, v, table, narrow, pairing, v), contains("rope: sin: expected shape [2, 4]"));
    CHECK_THROWS_WITH(mote::rope(be, v, table, table, pairing, mote::view<float, 3>(x.data(), 2, 2, 8)),
                      "rope: y: expected shape [2, 3, 8], got [2, 2, 8]");
    CHECK_THROWS_WITH(mote::rope_table(be, positions, std::span<const float>(x.data(), 4), 1.0f, narrow, table),
                      "rope_table: cos: expected shape [2, 4], got [2, 3]");
  });
  CHECK_THROWS_WITH(mote::make_rope_frequencies(7, 10000.0), contains("rope: dim"));
  CHECK_THROWS_WITH(mote::make_rope_frequencies(8, 1.0), contains("rope: base"));
}
