#include <mote/quant/fp8.hpp>

#include <algorithm>
#include <limits>

#include "support/backends.hpp"
#include "support/golden.hpp"
#include "support/random.hpp"

namespace {

// A division may land on a tie: then a code may be one off.
void check_codes(const std::vector<mote::f8_e4m3>& got, const std::vector<std::uint8_t>& want) {
  REQUIRE(got.size() == want.size());
  std::size_t off = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const int distance = std::abs(got[i].bits - want[i]);
    CHECK(distance <= 1);
    off += distance != 0;
  }
  CHECK(off <= got.size() / 100);
}

}  // namespace

TEST_CASE("fp8: weights and activations as published") {
  const test::golden golden("block_formats");
  const std::size_t out = golden.extent("fp8.w", 0), in = golden.extent("fp8.w", 1), tokens = golden.extent("fp8.x", 0);
  const auto w = golden.floats("fp8.w"), x = golden.floats("fp8.x");
  const std::size_t rows = mote::fp8_blocks(out), columns = mote::fp8_blocks(in);
  std::vector<mote::f8_e4m3> w_codes(out * in), x_codes(tokens * in);
  std::vector<float> w_scale(rows * columns), x_scale(tokens * columns), dequantized(out * in);
  mote::quantize_fp8({w.data(), out, in}, {w_codes.data(), out, in}, {w_scale.data(), rows, columns});
  CHECK(w_scale == golden.floats("fp8.weight_scale_inv"));
  check_codes(w_codes, golden.unsigned_bytes("fp8.w_codes"));
  mote::quantize_fp8_activations({x.data(), tokens, in}, {x_codes.data(), tokens, in},
                                 {x_scale.data(), tokens, columns});
  CHECK(x_scale == golden.floats("fp8.x_scale"));
  check_codes(x_codes, golden.unsigned_bytes("fp8.x_codes"));

  const auto golden_codes = golden.unsigned_bytes("fp8.w_codes");
  for (std::size_t i = 0; i < w_codes.size(); ++i) w_codes[i] = mote::f8_e4m3::from_bits(golden_codes[i]);
  mote::dequantize_fp8({w_codes.data(), out, in}, {w_scale.data(), rows, columns}, {dequantized.data(), out, in});
  test::check_close(dequantized, golden.floats("fp8.w_dequantized"), 0.0f, 1e-6f);

  // y = Σ_blocks s_x s_w (q_x · q_w)
  std::vector<float> y(tokens * out);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t n = 0; n < out; ++n) {
      float sum = 0.0f;
      for (std::size_t k = 0; k < in; ++k) {
        sum += x_scale[t * columns + k / 128] * static_cast<float>(x_codes[t * in + k]) * dequantized[n * in + k];
      }
      y[t * out + n] = sum;
    }
  }
  test::check_close(y, golden.floats("fp8.y"), 1e-4f, 1e-4f);
}

TEST_CASE("fp8: zero, tiny and huge blocks") {
  std::vector<float> w(130 * 130);
  std::vector<mote::f8_e4m3> codes(w.size());
  std::vector<float> scale(4), back(w.size());
  const auto round_trip = [&] {
    mote::quantize_fp8({w.data(), 130, 130}, {codes.data(), 130, 130}, {scale.data(), 2, 2});
    mote::dequantize_fp8({codes.data(), 130, 130}, {scale.data(), 2, 2}, {back.data(), 130, 130});
  };
  round_trip();
  CHECK(scale == std::vector<float>(4, 1.0f));
  CHECK(back == w);
  w[0] = 1e-45f;
  w[129] = std::numeric_limits<float>::max();
  w[130 * 130 - 1] = -448.0f;
  round_trip();
  CHECK((back[0] == 0.0f && back[129] == Approx(w[129]) && back[130 * 130 - 1] == -448.0f));
  CHECK(std::all_of(back.begin(), back.end(), [](float v) { return std::isfinite(v); }));

  std::vector<float> x = {0.0f, 1e-5f, -1e-4f};
  mote::quantize_fp8_row(x.data(), 3, codes.data(), scale.data());
  CHECK(scale[0] == 1e-4f / 448.0f);
  CHECK((static_cast<float>(codes[0]) == 0.0f && static_cast<float>(codes[2]) == -448.0f));
  x[2] = -2e-5f;  // below the least scale
  mote::quantize_fp8_row(x.data(), 3, codes.data(), scale.data());
  CHECK(scale[0] == 1e-4f / 448.0f);
  CHECK((static_cast<float>(codes[0]) == 0.0f && static_cast<float>(codes[2]) == -88.0f));  // -89.6, rounded
  mote::quantize_fp8_row(nullptr, 0, nullptr, nullptr);
}

TEST_CASE("fp8: a code is off by at most half of its last place") {
  const auto x = test::random_source(1).normal(300);
  std::vector<mote::f8_e4m3> codes(300);
  std::vector<float> scale(3);
  mote::quantize_fp8_row(x.data(), 300, codes.data(), scale.data());
  for (std::size_t i = 0; i < 300; ++i) {
    const float s = scale[i / 128];
    CHECK(std::abs(s * static_cast<float>(codes[i]) - x[i]) <= std::max(std::abs(x[i]) / 16.0f, s / 1024.0f) * 1.0001f);
  }
}

TEST_CASE("fp8: wrong shapes name the argument") {
  std::vector<float> w(130 * 4), scale(4);
  std::vector<mote::f8_e4m3> codes(w.size());
  CHECK_THROWS_WITH(mote::quantize_fp8({w.data(), 130, 4}, {codes.data(), 4, 130}, {scale.data(), 2, 1}),
                    "quantize_fp8: codes: expected shape [130, 4], got [4, 130]");
  CHECK_THROWS_WITH(mote::quantize_fp8({w.data(), 130, 4}, {codes.data(), 130, 4}, {scale.data(), 1, 1}),
                    "quantize_fp8: scale: expected shape [2, 1], got [1, 1]");
  CHECK_THROWS_WITH(mote::dequantize_fp8({codes.data(), 130, 4}, {scale.data(), 2, 2}, {w.data(), 130, 4}),
                    "dequantize_fp8: scale: expected shape [2, 1], got [2, 2]");
  CHECK_THROWS_WITH(mote::quantize_fp8_activations({w.data(), 4, 130}, {codes.data(), 4, 130}, {scale.data(), 4, 1}),
                    "quantize_fp8_activations: scale: expected shape [4, 2], got [4, 1]");
}
