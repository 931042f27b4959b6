#include <mote/ops/rms_norm/rms_norm.hpp>

#include "support/backends.hpp"
#include "support/random.hpp"

TEST_CASE("rms_norm: equals the formula in double precision, strided rows, with and without a weight, in place") {
  test::random_source random(1);
  test::for_each_backend([&](auto& be) {
    for (const std::size_t n : test::awkward_sizes) {
      for (const std::size_t tokens : {0u, 1u, 3u}) {
        CAPTURE(n, tokens);
        const auto x = random.normal(tokens * n), weight = random.normal(n);
        for (const bool weighted : {true, false}) {
          std::vector<float> want(x.size());
          for (std::size_t t = 0; t < tokens; ++t) {
            double squares = 0.0;
            for (std::size_t i = 0; i < n; ++i) squares += double{x[t * n + i]} * x[t * n + i];
            for (std::size_t i = 0; i < n; ++i) {
              const double y = x[t * n + i] / std::sqrt(squares / static_cast<double>(n) + 1e-5);
              want[t * n + i] = static_cast<float>(weighted ? y * weight[i] : y);
            }
          }
          const auto w = weighted ? mote::view<const float, 1>(weight) : mote::view<const float, 1>();
          test::framed in(tokens, n, x), out(tokens, n, 5);
          mote::rms_norm(be, in.view(), w, 1e-5f, out.view());
          test::check_close(out.values(), want, 1e-6f, 1e-6f);
          CHECK(out.intact());
          mote::rms_norm(be, in.view(), w, 1e-5f, in.view());
          CHECK(test::same_bits(in.values(), out.values()));
          CHECK(in.intact());
        }
      }
    }
  });
}

TEST_CASE("rms_norm: a row's bits do not depend on threads nor on other rows") {
  const std::size_t tokens = 37, n = 1500;
  const auto x = test::random_source(2).normal(tokens * n), weight = test::random_source(3).normal(n);
  const auto run = [&](auto& be, std::size_t begin, std::size_t count) {
    std::vector<float> y(count * n);
    mote::rms_norm(be, mote::view<const float, 2>(x.data() + begin * n, count, n), mote::view<const float, 1>(weight),
                   1e-6f, mote::view<float, 2>(y.data(), count, n));
    return y;
  };
  mote::simd<> one, three{mote::threads{3}};
  const auto all = run(one, 0, tokens);
  CHECK(test::same_bits(run(three, 0, tokens), all));
  CHECK(test::same_bits(run(one, 20, 1), std::span(all).subspan(20 * n, n)));
  std::vector<float> y(x.size());
  test::run_team([&](auto& be) {
    mote::rms_norm(be, mote::view<const float, 2>(x.data(), tokens, n), mote::view<const float, 1>(weight), 1e-6f,
                   mote::view<float, 2>(y.data(), tokens, n));
  });
  CHECK(test::same_bits(y, all));
}

TEST_CASE("rms_norm: wrong shapes name the argument") {
  std::vector<float> x(12);
  test::for_each_backend([&](auto& be) {
    const mote::view<float, 2> v(x.data(), 3, 4);
    CHECK_THROWS_WITH(mote::rms_norm(be, v, mote::view<const float, 1>(x.data(), 3), 1e-6f, v),
                      "rms_norm: gain: expected shape [4], got [3]");
    CHECK_THROWS_WITH(mote::rms_norm(be, v, mote::view<const float, 1>(), 1e-6f, mote::view<float, 2>(x.data(), 4, 3)),
                      "rms_norm: y: expected shape [3, 4], got [4, 3]");
  });
}
