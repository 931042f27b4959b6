#include <mote/ops/matmul/matmul.hpp>
#include <mote/quant/int8.hpp>

#include <cmath>
#include <limits>
#include <numeric>

#include "support/backends.hpp"
#include "support/golden.hpp"
#include "support/random.hpp"

TEST_CASE("quantize_int8_row: scale, ties to even, the largest value and a zero row") {
  std::vector<std::int8_t> codes(7);
  const std::vector<float> x = {-127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 127.0f};
  CHECK(mote::quantize_int8_row(x.data(), x.size(), codes.data()) == 1.0f);
  CHECK(codes == std::vector<std::int8_t>{-127, 0, 2, 2, 0, -2, 127});
  const std::vector<float> zero(7);
  CHECK(mote::quantize_int8_row(zero.data(), zero.size(), codes.data()) == 1.0f);
  CHECK(codes == std::vector<std::int8_t>(7));
  CHECK(mote::quantize_int8_row(nullptr, 0, nullptr) == 1.0f);
  const std::vector<float> least = {1e-45f, -1e-45f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};  // too small for a scale
  CHECK(mote::quantize_int8_row(least.data(), least.size(), codes.data()) == 1.0f);
  CHECK(codes == std::vector<std::int8_t>(7));
}

TEST_CASE("quantize_int8_row: half a step at most is lost") {
  const auto x = test::random_source(1).normal(1000, 5.0f);
  std::vector<std::int8_t> codes(x.size());
  const float scale = mote::quantize_int8_row(x.data(), x.size(), codes.data());
  for (std::size_t i = 0; i < x.size(); ++i) {
    CHECK(std::abs(scale * static_cast<float>(codes[i]) - x[i]) <= 0.5001f * scale);
  }
}

TEST_CASE("quantize_int8: rows lie apart; wrong shapes name the argument") {
  const auto values = test::random_source(2).normal(3 * 5);
  test::framed w(3, 5, values);
  std::vector<std::int8_t> codes(3 * 7, 99);
  std::vector<float> scale(3), row_scale(1);
  mote::quantize_int8(w.view(), {codes.data(), {3, 5}, {7, 1}}, scale);
  for (std::size_t n = 0; n < 3; ++n) {
    std::vector<std::int8_t> row(5);
    CHECK(mote::quantize_int8_row(values.data() + n * 5, 5, row.data()) == scale[n]);
    for (std::size_t k = 0; k < 5; ++k) CHECK(codes[n * 7 + k] == row[k]);
    CHECK((codes[n * 7 + 5] == 99 && codes[n * 7 + 6] == 99));
  }
  const mote::view<std::int8_t, 2> narrow(codes.data(), 3, 4), fits(codes.data(), 3, 5);
  CHECK_THROWS_WITH(mote::quantize_int8(w.view(), narrow, scale),
                    "quantize_int8: codes: expected shape [3, 5], got [3, 4]");
  CHECK_THROWS_WITH(mote::quantize_int8(w.view(), fits, row_scale),
                    "quantize_int8: scale: expected shape [3], got [1]");
  CHECK_THROWS_WITH(mote::quantize_int8({values.data(), {3, 5}, {1, 3}}, fits, scale), contains("quantize_int8: w"));
}

namespace {

// The vector back end's codes of a row, their scale and sum are the reference's.
void check_activation_codes(const std::vector<float>& x) {
  std::vector<std::int8_t> want(x.size()), got(x.size());
  std::int32_t sum = 0;
  const float scale = mote::quantize_int8_row(x.data(), x.size(), want.data());
  CHECK(mote::detail::quantize_activations<mote::default_arch>(x.data(), x.size(), got.data(), sum) == scale);
  CHECK(got == want);
  CHECK(sum == std::accumulate(want.begin(), want.end(), 0));
}

}  // namespace

TEST_CASE("int8: the vector back end's activation codes are the reference's") {
  test::random_source random(3);
  for (const std::size_t n : test::awkward_sizes) {
    for (const float scale : {1e-30f, 1e-3f, 1.0f, 1e20f}) {
      CAPTURE(n, scale);
      const auto x = random.normal(n, scale);
      check_activation_codes(x);
    }
  }
}

TEST_CASE("int8: rows with infinities and NaN have codes 0 and the scale NaN in either back end") {
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    for (const std::size_t n : {5u, 16u, 64u, 200u, 331u}) {
      for (std::size_t at = 0; at < n; at += 7) {
        CAPTURE(bad, n, at);
        auto x = test::random_source(static_cast<std::uint32_t>(n + at)).normal(n, 1.0f);
        x[at] = bad;
        std::vector<std::int8_t> want(n), got(n);
        std::int32_t sum = 0;
        CHECK(std::isnan(mote::quantize_int8_row(x.data(), n, want.data())));
        CHECK(std::isnan(mote::detail::quantize_activations<mote::default_arch>(x.data(), n, got.data(), sum)));
        CHECK(want == std::vector<std::int8_t>(n));
        CHECK(got == want);
        CHECK(sum == 0);
      }
    }
  }
}

TEST_CASE("int8: the vector back end rounds quotients at ties and beside them as the reference does") {
  for (const float largest : {127.0f, 12.7f, 1.0f, 0.3f, 1e-3f, 1e-36f, 1e-43f, 1e-45f, 1e37f, 3e38f}) {
    CAPTURE(largest);
    std::vector<float> x = {largest};
    for (int code = -127; code < 127; ++code) {
      const float tie = largest / 127.0f * (static_cast<float>(code) + 0.5f);
      x.insert(x.end(), {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 2.0f * tie)});
    }
    check_activation_codes(x);
  }
}

TEST_CASE("quantize_int8: published codes and scales") {
  const test::golden golden("integer");
  const auto quantized = [&](const std::string& name, auto&& check) {
    const auto x = golden.floats(name);
    const std::size_t rows = golden.extent(name.c_str(), 0), columns = golden.extent(name.c_str(), 1);
    check(mote::view<const float, 2>(x.data(), rows, columns));
  };
  for (const std::string name : {"x", "w"}) {
    quantized(name, [&](const mote::view<const float, 2>& x) {
      std::vector<std::int8_t> codes(x.size());
      std::vector<float> scale(x.extent(0));
      mote::quantize_int8(x, {codes.data(), x.extent(0), x.extent(1)}, scale);
      CHECK(codes == golden.bytes(name + "_int8"));
      test::check_close(scale, golden.floats(name + "_scale"), 0.0f, 1e-6f);
    });
  }
  quantized("x", [&](const mote::view<const float, 2>& x) {
    std::vector<std::int8_t> codes(x.size()), zero(x.extent(0));
    std::vector<float> scale(x.extent(0)), back;
    mote::quantize_int8(x, {codes.data(), x.extent(0), x.extent(1)}, scale, zero);
    const auto plus_128 = [](const std::vector<std::int8_t>& from) {
      std::vector<std::uint8_t> to;
      for (const int c : from) to.push_back(static_cast<std::uint8_t>(c + 128));
      return to;
    };
    CHECK(plus_128(codes) == golden.unsigned_bytes("asym.x_uint8"));
    CHECK(plus_128(zero) == golden.unsigned_bytes("asym.zero"));
    test::check_close(scale, golden.floats("asym.scale"), 0.0f, 1e-6f);
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const std::size_t r = i / x.extent(1);
      back.push_back(scale[r] * static_cast<float>(codes[i] - zero[r]));
    }
    test::check_close(back, golden.floats("asym.dequantized"), 1e-7f, 1e-6f);
  });
}

TEST_CASE("quantize_int8: asymmetric: zero is exact; zero, one-sided and huge rows") {
  const float largest = std::numeric_limits<float>::max();
  std::vector<std::int8_t> codes(3), zero(1);
  std::vector<float> scale(1);
  const auto quantize = [&](const std::vector<float>& x) {
    mote::quantize_int8({x.data(), 1, 3}, {codes.data(), 1, 3}, scale, zero);
  };
  const std::vector<std::vector<float>> rows = {{0, 0, 0}, {1, 2, 255}, {-255, -1, 0}, {-1, 0, 254}, {1e-45f, 0, 0}};
  for (const auto& x : rows) {
    CAPTURE(x);
    quantize(x);
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(std::abs(scale[0] * static_cast<float>(codes[i] - zero[0]) - x[i]) <= 1e-44f);
    }
  }
  const std::vector<float> huge = {largest, -largest, 0.0f};
  quantize(huge);
  CHECK(std::isfinite(scale[0]));
  CHECK(codes[2] == zero[0]);
  zero.resize(2);
  CHECK_THROWS_WITH(quantize(huge), "quantize_int8: zero: expected shape [1], got [2]");
}
