#include <mote/ops/softmax/softmax.hpp>

#include "support/backends.hpp"
#include "support/random.hpp"

TEST_CASE("softmax: equals the formula in double precision, strided rows, in place") {
  test::random_source random(1);
  test::for_each_backend([&](auto& be) {
    for (const std::size_t n : test::awkward_sizes) {
      for (const std::size_t rows : {0u, 1u, 3u}) {
        CAPTURE(n, rows);
        auto x = random.normal(rows * n, 10.0f);
        for (float& v : x) v += 1000.0f;
        std::vector<float> want(x.size());
        for (std::size_t r = 0; r < rows; ++r) {
          double total = 0.0;
          for (std::size_t i = 0; i < n; ++i) total += std::exp(double{x[r * n + i]} - 1000.0);
          for (std::size_t i = 0; i < n; ++i) {
            want[r * n + i] = static_cast<float>(std::exp(double{x[r * n + i]} - 1000.0) / total);
          }
        }
        test::framed in(rows, n, x), out(rows, n, 5);
        mote::softmax(be, in.view(), out.view());
        test::check_close(out.values(), want, 1e-7f, 2e-6f);
        CHECK(out.intact());
        mote::softmax(be, in.view(), in.view());
        CHECK(test::same_bits(in.values(), out.values()));
        CHECK(in.intact());
      }
    }
  });
}

TEST_CASE("softmax: minus infinity gets nothing, NaN spoils only its row") {
  const float low = -std::numeric_limits<float>::infinity();
  const std::vector<float> x = {low, 1.0f, low, 1.0f, 0.0f, std::nanf(""), 0.0f, 0.0f};
  test::for_each_backend([&](auto& be) {
    std::vector<float> y(x.size());
    mote::softmax(be, mote::view<const float, 2>(x.data(), 2, 4), mote::view<float, 2>(y.data(), 2, 4));
    test::check_close(std::span(y).first(4), std::vector<float>{0.0f, 0.5f, 0.0f, 0.5f}, 1e-7f);
    for (std::size_t i = 4; i < 8; ++i) CHECK(std::isnan(y[i]));
  });
}

TEST_CASE("softmax: bits do not depend on threads nor on other rows") {
  const std::size_t rows = 37, n = 1500;
  const auto x = test::random_source(2).normal(rows * n);
  const auto run = [&](auto& be, std::size_t begin, std::size_t count, std::vector<float>& y) {
    mote::softmax(be, mote::view<const float, 2>(x.data() + begin * n, count, n),
                  mote::view<float, 2>(y.data(), count, n));
  };
  mote::simd<> one, three{mote::threads{3}};
  std::vector<float> all(rows * n), other(rows * n), row(n);
  run(one, 0, rows, all);
  run(three, 0, rows, other);
  CHECK(test::same_bits(other, all));
  run(one, 20, 1, row);
  CHECK(test::same_bits(row, std::span(all).subspan(20 * n, n)));
  test::run_team([&](auto& be) { run(be, 0, rows, other); });
  CHECK(test::same_bits(other, all));
}

TEST_CASE("softmax: wrong shapes name the argument") {
  std::vector<float> x(12);
  test::for_each_backend([&](auto& be) {
    CHECK_THROWS_WITH(
        mote::softmax(be, mote::view<const float, 2>(x.data(), 3, 4), mote::view<float, 2>(x.data(), 3, 3)),
        "softmax: y: expected shape [3, 4], got [3, 3]");
  });
}
