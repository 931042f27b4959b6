#include <mote/compress/integer_grids.hpp>
#include <mote/compress/range.hpp>
#include <mote/quant/int8.hpp>

#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "compress/support.hpp"

namespace {

using mote::range_config;
using mote::range_method;

double squared_error(std::span<const float> x, const mote::range& r, const range_config& config) {
  const mote::integer_grid grid(r, config.bits, config.symmetric);
  double error = 0.0;
  for (const float v : x) error += std::pow(static_cast<double>(grid.value(grid.code(v)) - v), 2);
  return error;
}

// Normal numbers and a few far away.
std::vector<float> with_outliers(test::random_source& random, std::size_t size, float shift = 0.0f) {
  auto x = random.normal(size);
  for (float& v : x) v += shift;
  for (std::size_t i = 0; i < size; i += 500) x[i] *= 20.0f;
  return x;
}

mote::histogram histogram_of(std::span<const float> x) {
  mote::histogram h;
  h.add(x);
  return h;
}

}  // namespace

TEST_CASE("range: min_max gives the codes of quantize_int8") {
  test::random_source random(1);
  for (int round = 0; round < 60; ++round) {
    auto x = random.normal(100);
    for (float& v : x) v += 3.0f * static_cast<float>(round % 3 - 1);
    std::vector<std::int8_t> want(100);
    const float scale = mote::quantize_int8_row(x.data(), x.size(), want.data());
    const mote::integer_grid symmetric(mote::estimate_range(x, {}), 8, true);
    CHECK(symmetric.scale() == scale);
    const mote::asymmetric_range asymmetric(x.data(), x.size(), 8);
    const mote::integer_grid grid(mote::estimate_range(x, {.symmetric = false}), 8, false);
    CHECK(grid.scale() == asymmetric.scale);
    CHECK(grid.zero() == asymmetric.zero + 128);
    for (std::size_t i = 0; i < x.size(); ++i) {
      CHECK(symmetric.code(x[i]) == want[i]);
      CHECK(grid.code(x[i]) == asymmetric.code(x[i]) + 128);
      CHECK(std::fabs(grid.value(grid.code(x[i])) - x[i]) <= 0.51f * grid.scale());
    }
  }
}

TEST_CASE("histogram: what is refused leaves no trace") {
  const std::vector<float> x = {0.1f, 0.2f}, bad = {1.0f, -5.0f, std::nanf("")};
  mote::histogram h;
  CHECK_THROWS_WITH(h.add(bad), contains("histogram: expected finite values"));
  h.add(x);
  CHECK(h.low() == 0.0f);
  CHECK(h.high() == 0.2f);
}

TEST_CASE("range: every method refuses what is not finite") {
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    const std::vector<float> x = {1.0f, -bad, 0.5f, 2.0f};
    for (const auto method : {range_method::min_max, range_method::percentile, range_method::mse, range_method::kl}) {
      for (const bool symmetric : {true, false}) {
        const range_config config{.method = method, .symmetric = symmetric};
        CHECK_THROWS_WITH(mote::estimate_range(x, config), "estimate_range: expected finite values");
        CHECK_THROWS_AS(mote::estimate_ranges({x.data(), 2, 2}, mote::tile::row(), config), mote::shape_error);
      }
    }
  }
}

TEST_CASE("range: beyond it the outermost codes, of NaN the lowest") {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const bool symmetric : {true, false}) {
    const mote::integer_grid grid({-3.5f, 3.5f}, 4, symmetric);
    const int lowest = symmetric ? -8 : 0;
    CHECK(grid.code(std::nanf("")) == lowest);
    CHECK(grid.code(-infinity) == lowest);
    CHECK(grid.code(infinity) == lowest + 15);
    CHECK(mote::integer_grid({-infinity, infinity}, 4, symmetric).code(1.0f) == (symmetric ? 0 : 15));
  }
}

TEST_CASE("range: percentiles") {
  std::vector<float> x(1000);
  std::iota(x.begin(), x.end(), -99.0f);  // -99 … 900
  const auto one_sided = mote::estimate_range(x, {.method = range_method::percentile, .percentile = 99.0});
  CHECK(one_sided.high == 890.0f);
  CHECK(one_sided.low == -890.0f);
  const auto both =
      mote::estimate_range(x, {.method = range_method::percentile, .symmetric = false, .percentile = 99.0});
  CHECK(both.high == 890.0f);
  CHECK(both.low == -89.0f);
  // The histogram's bins are a quarter wide here.
  const auto h = histogram_of(x);
  for (const bool symmetric : {true, false}) {
    const range_config config{.method = range_method::percentile, .symmetric = symmetric, .percentile = 99.0};
    CHECK(mote::estimate_range(h, config).high == Approx(mote::estimate_range(x, config).high).margin(0.25));
    CHECK(mote::estimate_range(h, config).low == Approx(mote::estimate_range(x, config).low).margin(0.25));
  }
}

TEST_CASE("range: mse comes near the best of all ranges, and clips outliers") {
  test::random_source random(2);
  for (const bool symmetric : {true, false}) {
    for (const int bits : {4, 8}) {
      for (const float shift : {0.0f, 2.0f}) {
        CAPTURE(symmetric, bits, shift);
        const auto x = with_outliers(random, 3000, shift);
        const range_config config{.method = range_method::mse, .bits = bits, .symmetric = symmetric};
        const auto got = mote::estimate_range(x, config);
        const double error = squared_error(x, got, config);
        const auto full = mote::estimate_range(x, {.bits = bits, .symmetric = symmetric});
        CHECK(error <= (bits == 4 ? 0.8 : 1.0) * squared_error(x, full, config));
        double best = std::numeric_limits<double>::infinity();
        for (int step = 1; step <= 400; ++step) {
          const float factor = static_cast<float>(step) / 400.0f;
          best = std::min(best, squared_error(x, {full.low * factor, full.high * factor}, config));
        }
        CHECK(error < 1.03 * best);
        // From the histogram nearly the same.
        CHECK(squared_error(x, mote::estimate_range(histogram_of(x), config), config) < 1.05 * best);
      }
    }
  }
}

TEST_CASE("range: kl is the divergence of the histogram from what its codes know of it") {
  test::random_source random(4);
  constexpr std::size_t bins = mote::histogram::bins;
  for (const bool symmetric : {true, false}) {
    const auto h = histogram_of(with_outliers(random, 3000, symmetric ? 0.0f : 1.0f));
    const auto counts = h.counts();
    for (const float factor : {1.0f, 0.5f, 0.2f}) {
      CAPTURE(symmetric, factor);
      const float amax = std::max(-h.low(), h.high());
      const mote::range r =
          symmetric ? mote::range{-amax * factor, amax * factor} : mote::range{h.low() * factor, h.high() * factor};
      const mote::integer_grid grid(r, 5, symmetric);
      // P: clipped values count for the outermost bins. Q: what a code holds, evenly over those of its bins that hold any.
      std::vector<double> p(bins), code_mass(64), code_bins(64);
      std::vector<std::size_t> code(bins);
      std::vector<std::size_t> inside;
      for (std::size_t i = 0; i < bins; ++i) {
        if (h.center(i) >= r.low && h.center(i) <= r.high) inside.push_back(i);
      }
      double all = 0.0, kept = 0.0;
      for (std::size_t i = 0; i < bins; ++i) {
        p[std::clamp(i, inside.front(), inside.back())] += counts[i];
        all += counts[i];
      }
      for (const std::size_t i : inside) {
        code[i] = static_cast<std::size_t>(grid.code(h.center(i)) + 16);
        code_mass[code[i]] += counts[i];
        code_bins[code[i]] += counts[i] > 0.0 ? 1.0 : 0.0;
        kept += counts[i];
      }
      double want = 0.0;
      for (const std::size_t i : inside) {
        if (p[i] == 0.0) continue;
        const double q = counts[i] > 0.0 ? code_mass[code[i]] / code_bins[code[i]] / kept : 1e-9;
        want += p[i] / all * std::log(p[i] / all / q);
      }
      CHECK(mote::detail::kl_divergence(h, r, grid) == Approx(want).epsilon(1e-9));
    }
  }
}

TEST_CASE("range: kl keeps the bulk and gives up a lone outlier") {
  test::random_source random(3);
  auto x = random.normal(20000);
  x[77] = 60.0f;
  for (const bool symmetric : {true, false}) {
    const range_config config{.method = range_method::kl, .bits = 8, .symmetric = symmetric};
    const auto r = mote::estimate_range(x, config);
    CHECK(r.high > 2.0f);
    CHECK(r.high < 20.0f);
  }
  // Evenly spread numbers are worth their whole range.
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i) / 10000.0f - 1.0f;
  CHECK(mote::estimate_range(x, {.method = range_method::kl}).high > 0.95f);
}

TEST_CASE("range: of nothing, zeros, constants and one-sided values") {
  for (const auto method : {range_method::min_max, range_method::percentile, range_method::mse, range_method::kl}) {
    for (const bool symmetric : {true, false}) {
      const range_config config{.method = method, .bits = 4, .symmetric = symmetric};
      CAPTURE(static_cast<int>(method), symmetric);
      for (const auto& x : {std::vector<float>{}, std::vector<float>(9)}) {
        const auto r = mote::estimate_range(x, config);
        CHECK(r.low == 0.0f);
        CHECK(r.high == 0.0f);
        CHECK(mote::integer_grid(r, 4, symmetric).scale() == 1.0f);
      }
      for (const float value : {1e-38f, 0.3f, -2.0f, -1e38f}) {
        const std::vector<float> x(100, value);
        const auto r = mote::estimate_range(x, config);
        CHECK(r.low <= 0.0f);
        CHECK(r.high >= 0.0f);
        if (!symmetric) CHECK((value > 0.0f ? r.low : r.high) == 0.0f);
        const mote::integer_grid grid(r, 4, symmetric);
        CHECK(grid.value(grid.code(value)) == Approx(value).epsilon(0.05));
      }
    }
  }
  CHECK_THROWS_WITH(mote::estimate_range(std::vector<float>{1.0f}, {.bits = 9}), contains("bits: expected 2 to 8"));
  CHECK_THROWS_WITH(mote::estimate_range(std::vector<float>{1.0f}, {.percentile = 20.0}), contains("percentile"));
}

TEST_CASE("range: a percentile clips as many values as it says") {
  for (const auto& [count, percentile, clipped] : {std::tuple<std::size_t, double, std::size_t>{50000, 99.9, 50},
                                                   {10000, 99.99, 1},
                                                   {1000, 99.9, 1},
                                                   {999, 99.9, 0}}) {
    CAPTURE(count, percentile);
    std::vector<float> x(count);
    std::iota(x.begin(), x.end(), 1.0f);
    const auto r = mote::estimate_range(
        x, {.method = mote::range_method::percentile, .bits = 8, .symmetric = true, .percentile = percentile});
    CHECK(r.high == static_cast<float>(count - clipped));
  }
}

TEST_CASE("range: tiles of a matrix") {
  test::random_source random(4);
  const test::matrix x(5, 12, random.normal(60));
  const auto absmax = [&](std::size_t r, std::size_t rows, std::size_t c, std::size_t columns) {
    float m = 0.0f;
    for (std::size_t i = r; i < r + rows; ++i) {
      for (std::size_t j = c; j < c + columns; ++j) m = std::max(m, std::fabs(x(i, j)));
    }
    return m;
  };
  const auto tensor = mote::estimate_ranges(x, mote::tile::tensor(), {});
  REQUIRE(tensor.size() == 1);
  CHECK(tensor[0].high == absmax(0, 5, 0, 12));
  const auto rows = mote::estimate_ranges(x, mote::tile::row(), {});
  const auto columns = mote::estimate_ranges(x, mote::tile::column(), {});
  const auto groups = mote::estimate_ranges(x, mote::tile::group(5), {});
  const auto blocks = mote::estimate_ranges(x, {2, 6}, {});
  REQUIRE((rows.size() == 5 && columns.size() == 12 && groups.size() == 15 && blocks.size() == 6));
  for (std::size_t r = 0; r < 5; ++r) {
    CHECK(rows[r].high == absmax(r, 1, 0, 12));
    CHECK(groups[3 * r + 2].high == absmax(r, 1, 10, 2));
    for (std::size_t c = 0; c < 12; ++c) CHECK(columns[c].high == absmax(0, 5, c, 1));
  }
  CHECK(blocks[3].high == absmax(2, 2, 6, 6));
  CHECK(blocks[5].high == absmax(4, 1, 6, 6));
}

TEST_CASE("histogram: streams, grows and merges; what is not finite is refused") {
  test::random_source random(5);
  const auto x = random.normal(5000);
  mote::histogram parts, other, whole = histogram_of(x);
  parts.add(std::span(x).first(10));
  parts.add(std::vector<float>(7));
  parts.add(std::span(x).subspan(10, 1000));
  other.add(std::span(x).subspan(1010));
  parts.merge(other);
  whole.merge(histogram_of(std::vector<float>(7)));
  CHECK(parts.low() == whole.low());
  CHECK(parts.high() == whole.high());
  CHECK(std::vector<double>(parts.counts().begin(), parts.counts().end()) ==
        std::vector<double>(whole.counts().begin(), whole.counts().end()));
  double total = 0.0, mean = 0.0;
  for (std::size_t i = 0; i < mote::histogram::bins; ++i) {
    total += whole.counts()[i];
    mean += whole.counts()[i] * static_cast<double>(whole.center(i));
  }
  CHECK(total == 5007.0);
  CHECK(mean == Approx(std::accumulate(x.begin(), x.end(), 0.0)).margin(5.0));
  CHECK_THROWS_WITH(whole.add(std::vector<float>{1.0f, std::numeric_limits<float>::infinity()}), contains("finite"));
  mote::histogram empty;
  empty.merge(histogram_of(x));
  CHECK(empty.high() == histogram_of(x).high());
  empty.add(std::vector<float>{std::numeric_limits<float>::max(), std::numeric_limits<float>::denorm_min()});
  CHECK(empty.high() == std::numeric_limits<float>::max());
}
