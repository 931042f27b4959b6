#include <mote/ops/add_bias/add_bias.hpp>

#include "support/backends.hpp"
#include "support/random.hpp"

TEST_CASE("add_bias: every size, strided rows, one rounding") {
  test::random_source random(1);
  test::for_each_backend([&](auto& be) {
    for (const std::size_t n : test::awkward_sizes) {
      for (const std::size_t tokens : {0u, 1u, 3u}) {
        CAPTURE(n, tokens);
        const auto x = random.normal(tokens * n), bias = random.normal(n);
        auto want = x;
        for (std::size_t i = 0; i < want.size(); ++i) want[i] += bias[i % n];
        test::framed y(tokens, n, x);
        mote::add_bias(be, bias, y.view());
        CHECK(test::same_bits(y.values(), want));
        CHECK(y.intact());
      }
    }
  });
}

TEST_CASE("add_bias: bits do not depend on threads") {
  const std::size_t tokens = 301, n = 517;
  const auto x = test::random_source(2).normal(tokens * n), bias = test::random_source(3).normal(n);
  const auto run = [&](auto& be, std::vector<float>& y) {
    mote::add_bias(be, bias, mote::view<float, 2>(y.data(), tokens, n));
  };
  mote::simd<> one, three{mote::threads{3}};
  auto want = x, other = x, shared = x;
  run(one, want);
  run(three, other);
  CHECK(test::same_bits(other, want));
  test::run_team([&](auto& be) { run(be, shared); });
  CHECK(test::same_bits(shared, want));
}

TEST_CASE("add_bias: a bias of the wrong length is refused") {
  std::vector<float> y(12);
  test::for_each_backend([&](auto& be) {
    for (const std::size_t n : {0u, 3u, 5u}) {
      const std::vector<float> bias(n);
      CHECK_THROWS_WITH(mote::add_bias(be, bias, mote::view<float, 2>(y.data(), 3, 4)),
                        "add_bias: bias: expected shape [4], got [" + std::to_string(n) + "]");
    }
  });
}
