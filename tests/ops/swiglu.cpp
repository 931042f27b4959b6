#include <mote/ops/swiglu/swiglu.hpp>

#include "support/backends.hpp"
#include "support/random.hpp"

TEST_CASE("swiglu: equals the formula in double precision, strided rows, in place") {
  test::random_source random(1);
  test::for_each_backend([&](auto& be) {
    for (const std::size_t n : test::awkward_sizes) {
      for (const std::size_t tokens : {0u, 1u, 3u}) {
        CAPTURE(n, tokens);
        const auto gate = random.normal(tokens * n, 4.0f), up = random.normal(tokens * n);
        std::vector<float> want(gate.size());
        for (std::size_t i = 0; i < gate.size(); ++i) {
          want[i] = static_cast<float>(gate[i] / (1.0 + std::exp(-double{gate[i]})) * up[i]);
        }
        test::framed g(tokens, n, gate), u(tokens, n, up, 2), y(tokens, n, 5);
        mote::swiglu(be, g.view(), u.view(), y.view());
        test::check_close(y.values(), want, 1e-6f, 1e-6f);
        CHECK(y.intact());
        mote::swiglu(be, g.view(), u.view(), u.view());
        CHECK(test::same_bits(u.values(), y.values()));
        test::framed again(tokens, n, up, 2);
        mote::swiglu(be, g.view(), again.view(), g.view());
        CHECK(test::same_bits(g.values(), y.values()));
        CHECK((g.intact() && u.intact()));
      }
    }
  });
}

TEST_CASE("swiglu: extreme gates give zero or the gate, NaN stays NaN") {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> gate = {-200.0f, -90.0f, -88.0f, 90.0f, 1e30f, -1e30f, infinity, 0.0f, std::nanf("")};
  const std::vector<float> up(gate.size(), 2.0f);
  test::for_each_backend([&](auto& be) {
    std::vector<float> y(gate.size());
    mote::swiglu(be, mote::view<const float, 2>(gate.data(), 1, gate.size()),
                 mote::view<const float, 2>(up.data(), 1, up.size()), mote::view<float, 2>(y.data(), 1, y.size()));
    const std::vector<float> want = {0.0f, 0.0f, 0.0f, 180.0f, 2e30f, 0.0f, infinity, 0.0f};
    test::check_close(std::span(y).first(want.size()), want, 1e-35f);
    CHECK(std::isnan(y.back()));
  });
}

TEST_CASE("swiglu: bits do not depend on threads nor on other rows") {
  const std::size_t tokens = 37, n = 1500;
  const auto gate = test::random_source(2).normal(tokens * n), up = test::random_source(3).normal(tokens * n);
  const auto run = [&](auto& be, std::size_t begin, std::size_t count, std::vector<float>& y) {
    mote::swiglu(be, mote::view<const float, 2>(gate.data() + begin * n, count, n),
                 mote::view<const float, 2>(up.data() + begin * n, count, n), mote::view<float, 2>(y.data(), count, n));
  };
  mote::simd<> one, three{mote::threads{3}};
  std::vector<float> all(tokens * n), other(tokens * n), row(n);
  run(one, 0, tokens, all);
  run(three, 0, tokens, other);
  CHECK(test::same_bits(other, all));
  run(one, 20, 1, row);
  CHECK(test::same_bits(row, std::span(all).subspan(20 * n, n)));
  test::run_team([&](auto& be) { run(be, 0, tokens, other); });
  CHECK(test::same_bits(other, all));
}

TEST_CASE("swiglu: wrong shapes name the argument") {
  std::vector<float> x(12);
  test::for_each_backend([&](auto& be) {
    const mote::view<float, 2> v(x.data(), 3, 4), other(x.data(), 2, 4);
    CHECK_THROWS_WITH(mote::swiglu(be, v, other, v), "swiglu: up: expected shape [3, 4], got [2, 4]");
    CHECK_THROWS_WITH(mote::swiglu(be, v, v, other), "swiglu: y: expected shape [3, 4], got [2, 4]");
  });
}
