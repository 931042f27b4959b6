#include <mote/compress/calibration.hpp>
#include <mote/compress/statistics.hpp>

#include <cmath>
#include <limits>

#include "compress/support.hpp"

namespace {

// Σ_t x_ti x_tj, float64.
double moment_of(const test::matrix& x, std::size_t i, std::size_t j) {
  double sum = 0.0;
  for (std::size_t t = 0; t < x.rows; ++t) sum += static_cast<double>(x(t, i)) * static_cast<double>(x(t, j));
  return sum;
}

void check_statistics(const mote::activation_statistics& s, const test::matrix& x) {
  CHECK(s.tokens() == x.rows);
  CHECK(s.in_features() == x.columns);
  const auto mean = s.mean_abs();
  for (std::size_t c = 0; c < x.columns; ++c) {
    float absmax = 0.0f;
    double sum = 0.0;
    for (std::size_t t = 0; t < x.rows; ++t) {
      absmax = std::max(absmax, std::fabs(x(t, c)));
      sum += static_cast<double>(std::fabs(x(t, c)));
    }
    CHECK(s.absmax()(c) == absmax);
    CHECK(mean[c] == Approx(sum / static_cast<double>(x.rows)));
  }
  std::size_t channels = 0;
  for (std::size_t b = 0; b < s.blocks(); ++b) {
    const auto g = s.moment(b);
    CHECK(g.extent(0) == s.block_size(b));
    const double scale = moment_of(x, channels, channels);
    for (std::size_t i = 0; i < g.extent(0); ++i) {
      for (std::size_t j = 0; j < g.extent(1); ++j) {
        CHECK(static_cast<double>(g(i, j)) == Approx(moment_of(x, channels + i, channels + j)).margin(1e-4 * scale));
      }
    }
    channels += g.extent(0);
  }
  CHECK(channels == x.columns);
}

}  // namespace

TEST_CASE("statistics: sums over tokens, in any block size, on any back end") {
  test::random_source random(1);
  const auto x = test::correlated(random, 37, 12);
  test::for_each_backend([&](auto& be) {
    for (const std::size_t block : test::sizes{1, 5, 12, 100}) {
      CAPTURE(block);
      mote::activation_statistics s(12, block);
      s.add(be, x.view());
      check_statistics(s, x);
    }
  });
}

TEST_CASE("statistics: more tokens than a tile, in parts, merged") {
  test::random_source random(2);
  const auto x = test::correlated(random, 1100, 8);
  mote::reference be;
  mote::activation_statistics whole(8, 8), first(8, 8), second(8, 8);
  whole.add(be, x.view());
  check_statistics(whole, x);
  first.add(be, x.view().slice(0, 0, 600));
  first.add(be, x.view().slice(0, 600, 1));
  second.add(be, x.view().slice(0, 601, 499));
  first.merge(second);
  check_statistics(first, x);
  CHECK_THROWS_WITH(first.merge(mote::activation_statistics(8, 4)), contains("blocks of 8, got 8 in blocks of 4"));
}

TEST_CASE("statistics: of scaled activations") {
  test::random_source random(3);
  auto x = test::correlated(random, 50, 6);
  std::vector<float> s = {1.0f, 2.0f, 0.5f, 8.0f, 1.0f, 3.0f};
  const auto divided = test::statistics_of(x, 4).divided_by(s);
  for (std::size_t t = 0; t < x.rows; ++t) {
    for (std::size_t c = 0; c < 6; ++c) x(t, c) /= s[c];
  }
  check_statistics(divided, x);
  s[3] = 0.0f;
  CHECK_THROWS_WITH(test::statistics_of(x, 4).divided_by(s), contains("positive number in channel 3"));
}

TEST_CASE("statistics: what is not finite is refused and leaves no trace") {
  mote::reference be;
  mote::activation_statistics s(3, 3);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
    const test::matrix x(2, 3, {1.0f, 2.0f, 3.0f, 4.0f, bad, 6.0f});
    CHECK_THROWS_WITH(s.add(be, x.view()), contains("expected finite activations") && contains("in channel 1"));
  }
  CHECK(s.tokens() == 0);
  CHECK(s.absmax()(0) == 0.0f);
  CHECK_THROWS_AS(s.add(be, test::matrix(2, 4).view()), mote::shape_error);
  CHECK_THROWS_AS(mote::activation_statistics(3, 0), mote::shape_error);
}

TEST_CASE("statistics: memory is as stated") {
  CHECK(mote::activation_statistics::bytes(7168, 7168) == 7168 * 12 + 7168ull * 7168 * 4);
  CHECK(mote::activation_statistics::bytes(10, 4) == 10 * 12 + (16 + 16 + 4) * 4);
  CHECK(mote::activation_statistics::bytes(10, 1) == 10 * 12 + 10 * 4);
}

TEST_CASE("calibration: layers by name, those never reached named") {
  mote::reference be;
  mote::calibration c;
  c.add_layer("experts.1.down_proj", 4, 4);
  c.add_layer("experts.0.down_proj", 4, 4);
  c.add_layer("experts.2.down_proj", 4, 1);
  CHECK(c.unreached() == std::vector<std::string>{"experts.0.down_proj", "experts.1.down_proj", "experts.2.down_proj"});
  test::random_source random(4);
  c.observe(be, "experts.1.down_proj", test::correlated(random, 3, 4).view());
  CHECK(c.unreached() == std::vector<std::string>{"experts.0.down_proj", "experts.2.down_proj"});
  CHECK(c.of("experts.1.down_proj").tokens() == 3);
  CHECK_THROWS_WITH(c.add_layer("experts.1.down_proj", 4, 4), contains("experts.1.down_proj: registered twice"));
  CHECK_THROWS_WITH(c.of("experts.3.down_proj"), contains("experts.3.down_proj: no such layer"));
  CHECK_THROWS_WITH(c.observe(be, "head", test::matrix(1, 4).view()), contains("head: no such layer"));
}
