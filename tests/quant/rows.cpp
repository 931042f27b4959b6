#include <mote/quant/rows.hpp>

#include <cmath>
#include <vector>

#include "support/backends.hpp"
#include "support/formats.hpp"
#include "support/random.hpp"

TEST_CASE("mxfp8: every code decodes to its number times the scale, NaN to NaN") {
  for (const int exponent : {0, 1, 100, 127, 140, 246}) {
    for (unsigned code = 0; code < 256; ++code) {
      mote::mxfp8 block{};
      block.e = mote::f8_e8m0::from_bits(static_cast<std::uint8_t>(exponent));
      block.q[7] = mote::f8_e4m3::from_bits(static_cast<std::uint8_t>(code));
      float y[32];
      block.decode(y);
      const float want = static_cast<float>(block.q[7]) * static_cast<float>(block.e);
      CAPTURE(exponent, code);
      CHECK(((std::isnan(y[7]) && std::isnan(want)) || test::same_bits({&y[7], 1}, {&want, 1})));
    }
  }
}

TEST_CASE("mxfp8: codes are the nearest ones under the least scale that saturates none") {
  test::random_source random(8);
  for (int exponent = -130; exponent <= 120; exponent += 5) {
    auto x = random.normal(32);
    for (std::size_t i = 0; i < 32; ++i) x[i] = std::ldexp(x[i], exponent - static_cast<int>(random.below(12)));
    x[3] = 0.0f;
    x[4] = std::ldexp(448.0f, exponent - 8);  // often the largest, and then exactly the largest code
    const auto block = mote::mxfp8::encode(x.data());
    const float scale = static_cast<float>(block.e);
    float amax = 0.0f;
    for (const float v : x) amax = std::fmax(amax, std::abs(v));
    CAPTURE(exponent, amax, scale);
    CHECK(amax / scale <= 448.0f);
    if (block.e.bits > 0) CHECK(amax / scale > 224.0f);
    for (std::size_t i = 0; i < 32; ++i) CHECK(block.q[i].bits == mote::f8_e4m3(x[i] / scale).bits);
  }
  const float zeros[32] = {};
  float y[32];
  mote::mxfp8::encode(zeros).decode(y);
  CHECK(test::same_bits(y, zeros));
}

TEST_CASE("rows: every form is as near as its bits allow, and read by vectors to the same bits") {
  struct bound {
    std::string_view name;
    float relative;  // of the error's root mean square to the numbers'
  };
  constexpr bound bounds[] = {{"f32", 0.0f},    {"bf16", 0.002f}, {"f16", 0.0003f}, {"mxfp8", 0.03f}, {"q8_0", 0.007f},
                              {"q4_0", 0.12f},  {"q5_0", 0.06f},  {"q4_k", 0.08f},  {"q6_k", 0.02f},  {"iq4_nl", 0.09f},
                              {"mxfp4", 0.13f}, {"nvfp4", 0.11f}, {"q4_1", 0.09f},  {"q5_1", 0.05f},  {"q5_k", 0.05f},
                              {"q3_k", 0.16f},  {"q2_k", 0.3f},   {"iq4_xs", 0.09f}};
  const std::size_t n = 2 * 256;
  const auto x = test::random_source(9).normal(n);
  std::size_t known = 0;
  const auto check = [&]<class T>() {
    constexpr auto format = mote::row_format::of<T>();
    INFO(format.name);
    CHECK(format.row_bytes(n) == n / format.block_size * sizeof(T));
    std::vector<T> row(n / format.block_size);
    std::vector<float> y(n), z(n);
    mote::encode_row(x.data(), n, row.data());
    mote::decode_row(row.data(), n, y.data());
    mote::detail::decode_row<mote::default_arch>(row.data(), n, z.data());
    CHECK(test::same_bits(z, y));
    double error = 0.0, power = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
      error += std::pow(static_cast<double>(y[i]) - static_cast<double>(x[i]), 2);
      power += std::pow(static_cast<double>(x[i]), 2);
    }
    for (const bound& b : bounds) {
      if (b.name != format.name) continue;
      ++known;
      CHECK(std::sqrt(error / power) <= static_cast<double>(b.relative));
    }
  };
  mote::for_each_format(check, mote::row_elements{});
  mote::for_each_format(check, mote::type_list<mote::f16, test::int3, test::two_halves>{});
  CHECK(known == std::size(bounds));
}

TEST_CASE("rows: a row's last numbers need not fill a vector") {
  const auto x = test::random_source(10).normal(70);
  for (const std::size_t n : test::awkward_sizes) {
    if (n > 70) continue;
    std::vector<mote::bf16> row(n);
    std::vector<float> y(n + 1, -1.0f);
    mote::encode_row(x.data(), n, row.data());
    mote::detail::decode_row<mote::default_arch>(row.data(), n, y.data());
    for (std::size_t i = 0; i < n; ++i) CHECK(y[i] == static_cast<float>(mote::bf16(x[i])));
    CHECK(y[n] == -1.0f);
  }
}
