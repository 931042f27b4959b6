#include <mote/ops/matmul/matmul.hpp>

#include "support/backends.hpp"
#include "support/kernels.hpp"
#include "support/matrices.hpp"
#include "support/random.hpp"

namespace {

using test::strided_weight, test::weight_format;

// y = x Wᵀ, products and sums in float64.
std::vector<float> exact(const std::vector<float>& x, const std::vector<float>& w, std::size_t tokens, std::size_t out,
                         std::size_t in) {
  std::vector<float> y;
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t n = 0; n < out; ++n) {
      double sum = 0.0;
      for (std::size_t k = 0; k < in; ++k) sum += double{x[t * in + k]} * w[n * in + k];
      y.push_back(static_cast<float>(sum));
    }
  }
  return y;
}

struct product_shape {
  std::size_t tokens, out, in;
};

// Around tiles, panels and blocks of k.
const std::vector<product_shape> product_shapes = {
    {0, 5, 7},    {3, 0, 7},    {3, 5, 0},    {1, 1, 1},    {1, 1, 15},   {1, 33, 16},   {2, 3, 17},   {5, 4, 31},
    {6, 4, 64},   {7, 5, 67},   {1, 70, 130}, {25, 35, 33}, {50, 33, 19}, {1, 3, 1023},  {3, 9, 1024}, {26, 6, 1041},
    {2, 37, 129}, {24, 32, 65}, {13, 64, 80}, {4, 2, 3},    {1, 129, 48}, {7, 31, 2100}, {70, 2, 5},   {97, 7, 40}};

}  // namespace

TEST_CASE("matmul: forms that are widened equal the sum in double precision, strided rows, set and added") {
  test::random_source random(1);
  for (const auto& s : product_shapes) {
    const std::size_t tokens = s.tokens, out = s.out, in = s.in;
    for (const auto format : test::float_formats) {
      CAPTURE(tokens, out, in, test::name(format));
      const auto x = random.normal(tokens * in), before = random.normal(tokens * out);
      const strided_weight w(format, out, in, random.normal(out * in));
      const auto want = exact(x, w.values(), tokens, out, in);
      const float tolerance = 1.6e-5f * std::sqrt(static_cast<float>(in + 1));
      auto sum = want;
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += before[i];
      test::for_each_backend([&](auto& be) {
        test::framed rows(tokens, in, x), y(tokens, out, 5), added(tokens, out, before, 2);
        mote::matmul(be, rows.view(), w.get(), y.view());
        test::check_close(y.values(), want, tolerance);
        mote::matmul(be, rows.view(), w.get(), added.view(), mote::output::accumulate);
        test::check_close(added.values(), sum, tolerance);
        CHECK((y.intact() && added.intact()));
      });
    }
  }
}

TEST_CASE("matmul: int8 equals the reference bit for bit") {
  test::random_source random(2);
  for (const auto& s : product_shapes) {
    const std::size_t tokens = s.tokens, out = s.out, in = s.in;
    CAPTURE(tokens, out, in);
    const auto x = random.normal(tokens * in, 3.0f);
    const strided_weight w(weight_format::int8, out, in, random.normal(out * in));
    mote::reference reference;
    const auto want = test::product(reference, x, tokens, w.get());
    test::for_each_simd([&](auto& be) {
      test::framed rows(tokens, in, x), y(tokens, out, 4);
      mote::matmul(be, rows.view(), w.get(), y.view());
      CHECK(test::same_bits(y.values(), want));
      mote::matmul(be, rows.view(), w.get(), y.view(), mote::output::accumulate);
      std::vector<float> twice(want);
      for (float& v : twice) v += v;
      test::check_close(y.values(), twice, 1e-6f, 1e-6f);
      CHECK(y.intact());
    });
  }
}

TEST_CASE("matmul: int8 is exact at the largest codes, of zero rows and at ties") {
  const std::size_t in = 4099, out = 3;
  std::vector<float> w(out * in, 1.0f), x(3 * in, 0.0f);
  for (std::size_t k = 0; k < in; ++k) {
    w[in + k] = -1.0f;
    w[2 * in + k] = k % 2 == 0 ? 1.0f : -1.0f;
    x[k] = -127.0f;
    x[2 * in + k] = static_cast<float>(k % 255) - 127.0f + (k % 3 == 0 ? 0.5f : 0.0f);  // amax 127: the scale is 1
  }
  x[2 * in + 254] = 127.0f;
  const strided_weight matrix(weight_format::int8, out, in, w);
  mote::reference reference;
  const auto want = test::product(reference, x, 3, matrix.get());
  CHECK(want[out] == 0.0f);
  test::for_each_simd([&](auto& be) { CHECK(test::same_bits(test::product(be, x, 3, matrix.get()), want)); });
}

TEST_CASE("matmul: bf16, f16 and fp8 weights give the bits of the same weights in float32") {
  test::random_source random(3);
  for (const auto& s : product_shapes) {
    const std::size_t tokens = s.tokens, out = s.out, in = s.in;
    const auto x = random.normal(tokens * in);
    for (const auto format : test::float_formats) {
      CAPTURE(tokens, out, in, test::name(format));
      const strided_weight narrow(format, out, in, random.normal(out * in), 1);
      const strided_weight wide(weight_format::f32, out, in, narrow.values());
      test::for_each_simd([&](auto& be) {
        CHECK(test::same_bits(test::product(be, x, tokens, narrow.get()), test::product(be, x, tokens, wide.get())));
      });
    }
  }
}

TEST_CASE("matmul: a token's bits do not depend on the batch, its place in it, nor on threads") {
  test::random_source random(4);
  for (const auto format : test::weight_formats) {
    for (const auto& s : {product_shape{67, 131, 2113}, {67, 64, 1024}, {67, 7, 67}}) {
      const std::size_t tokens = s.tokens, out = s.out, in = s.in;
      CAPTURE(test::name(format), out, in);
      const auto x = random.normal(tokens * in);
      const strided_weight w(format, out, in, random.normal(out * in));
      std::vector<float> all;
      test::for_each_simd([&](auto& be) {
        const auto y = test::product(be, x, tokens, w.get());
        for (const std::size_t count : {1u, 2u, 3u, 5u, 6u, 7u, 13u, 25u}) {
          for (std::size_t t = 0; t + count <= tokens; t += 11) {
            CAPTURE(count, t);
            const auto from = x.begin() + static_cast<std::ptrdiff_t>(t * in);
            const std::vector<float> part(from, from + static_cast<std::ptrdiff_t>(count * in));
            CHECK(test::same_bits(test::product(be, part, count, w.get()), std::span(y).subspan(t * out, count * out)));
          }
        }
      });
      mote::simd<> one, three{mote::threads{3}};
      all = test::product(one, x, tokens, w.get());
      CHECK(test::same_bits(test::product(three, x, tokens, w.get()), all));
      std::vector<float> shared(all.size());
      test::run_team([&](auto& be) {
        mote::matmul(be, mote::view<const float, 2>(x.data(), tokens, in), w.get(),
                     mote::view<float, 2>(shared.data(), tokens, out));
      });
      CHECK(test::same_bits(shared, all));
    }
  }
}

TEST_CASE("matmul: an output does not depend on the other rows of the matrix") {
  test::random_source random(5);
  const std::size_t tokens = 9, out = 75, in = 1100;
  const auto x = random.normal(tokens * in);
  for (const auto format : test::weight_formats) {
    const strided_weight w(format, out, in, random.normal(out * in));
    mote::simd<> be;
    const auto all = test::product(be, x, tokens, w.get());
    for (const std::size_t begin : {1u, 30u, 33u, 74u}) {
      const auto part = test::product(be, x, tokens, mote::slice_rows(w.get(), begin, 1));
      for (std::size_t t = 0; t < tokens; ++t) CHECK(test::same_bits({&part[t], 1}, {&all[t * out + begin], 1}));
    }
  }
}

TEST_CASE("matmul: wrong shapes name the argument") {
  std::vector<float> x(12), y(15);
  const strided_weight w(weight_format::f32, 5, 4, std::vector<float>(20));
  test::for_each_backend([&](auto& be) {
    const mote::view<const float, 2> good(x.data(), 3, 4), narrow(x.data(), 4, 3);
    CHECK_THROWS_WITH(mote::matmul(be, narrow, w.get(), mote::view<float, 2>(y.data(), 3, 5)),
                      "matmul: x: expected shape [4, 4], got [4, 3]");
    CHECK_THROWS_WITH(mote::matmul(be, good, w.get(), mote::view<float, 2>(y.data(), 3, 4)),
                      "matmul: y: expected shape [3, 5], got [3, 4]");
  });
}
