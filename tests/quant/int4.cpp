#include <mote/ops/matmul/matmul.hpp>
#include <mote/quant/int4.hpp>

#include <limits>

#include "support/backends.hpp"
#include "support/golden.hpp"

namespace {

struct int4_matrix {
  std::size_t out, in, group;
  std::vector<mote::int4_pair> codes{out * in / 2};
  std::vector<float> scale{std::vector<float>(out * in / group)};
  std::vector<std::int8_t> zero{std::vector<std::int8_t>(out * in / group)};

  void quantize(const mote::view<const float, 2>& w, bool symmetric) {
    const mote::view<mote::int4_pair, 2> to(codes.data(), out, in / 2);
    const mote::view<float, 2> scales(scale.data(), out, in / group);
    if (symmetric) {
      mote::quantize_int4(w, group, to, scales);
    } else {
      mote::quantize_int4(w, group, to, scales, {zero.data(), out, in / group});
    }
  }
  mote::scaled_matrix view(bool symmetric) const {
    mote::scaled_matrix w{.codes = mote::view<const mote::int4_pair, 2>(codes.data(), out, in / 2),
                          .scale = {scale.data(), out, in / group},
                          .tile_columns = group};
    if (!symmetric) w.zero = {zero.data(), out, in / group};
    return w;
  }
  std::vector<float> values(bool symmetric) const {
    std::vector<float> y(out * in);
    for (std::size_t n = 0; n < out; ++n) mote::dequantize_row(view(symmetric), n, y.data() + n * in);
    return y;
  }
};

}  // namespace

TEST_CASE("int4: published codes, scales and values") {
  const test::golden golden("integer");
  const std::size_t out = golden.extent("w", 0), in = golden.extent("w", 1), group = golden.setting("group");
  const auto w = golden.floats("w");
  const mote::view<const float, 2> source(w.data(), out, in);
  int4_matrix q{out, in, group};

  q.quantize(source, true);
  test::check_close(q.scale, golden.floats("int4.scale"), 0.0f, 1e-6f);
  std::vector<std::int8_t> codes;
  std::vector<std::uint8_t> twos_complement;  // as the published file packs them
  for (const mote::int4_pair pair : q.codes) {
    codes.push_back(static_cast<std::int8_t>(pair.even()));
    codes.push_back(static_cast<std::int8_t>(pair.odd()));
    twos_complement.push_back(static_cast<std::uint8_t>(pair.bits ^ 0x88u));
  }
  CHECK(codes == golden.bytes("int4.codes"));
  CHECK(twos_complement == golden.unsigned_bytes("int4.packed"));
  test::check_close(q.values(true), golden.floats("int4.dequantized"), 0.0f, 1e-6f);

  q.quantize(source, false);
  test::check_close(q.scale, golden.floats("uint4.scale"), 0.0f, 1e-6f);
  std::vector<std::uint8_t> zeros, unsigned_codes;
  for (const int z : q.zero) zeros.push_back(static_cast<std::uint8_t>(z + 8));
  CHECK(zeros == golden.unsigned_bytes("uint4.zero"));
  for (const mote::int4_pair pair : q.codes) {
    unsigned_codes.push_back(static_cast<std::uint8_t>(pair.even() + 8));
    unsigned_codes.push_back(static_cast<std::uint8_t>(pair.odd() + 8));
  }
  CHECK(unsigned_codes == golden.unsigned_bytes("uint4.codes"));
  test::check_close(q.values(false), golden.floats("uint4.dequantized"), 1e-7f, 1e-6f);
}

TEST_CASE("int4: what is quantized is multiplied as it is") {
  const test::golden golden("integer");
  const std::size_t out = golden.extent("w", 0), in = golden.extent("w", 1);
  const auto w = golden.floats("w");
  int4_matrix q{out, in, golden.setting("group")};
  for (const bool symmetric : {true, false}) {
    q.quantize({w.data(), out, in}, symmetric);
    const auto values = q.values(symmetric);
    std::vector<float> got(out * out), want(out * out);
    mote::simd<> be;
    const mote::view<const float, 2> x(w.data(), out, in);
    mote::matmul(be, x, q.view(symmetric), {got.data(), out, out});
    mote::matmul(be, x, mote::view<const float, 2>(values.data(), out, in), {want.data(), out, out});
    CHECK(test::same_bits(got, want));
  }
}

TEST_CASE("int4: zero, one-sided, tiny and huge groups") {
  const float largest = std::numeric_limits<float>::max();
  const std::vector<std::vector<float>> groups = {
      {0, 0, 0, 0}, {1, 2, 3, 15}, {-1, -2, -3, -15}, {1e-45f, 0, 0, 0}, {largest, -largest, 0, 1}, {7, 7, 7, 7}};
  for (const auto& x : groups) {
    CAPTURE(x);
    int4_matrix q{1, 4, 4};
    q.quantize({x.data(), 1, 4}, true);
    const auto y = q.values(true);
    for (std::size_t i = 0; i < 4; ++i) {
      CHECK(std::isfinite(y[i]));
      CHECK(std::abs(y[i] - x[i]) <= 0.501f * q.scale[0]);
    }
    q.quantize({x.data(), 1, 4}, false);
    const auto z = q.values(false);
    for (std::size_t i = 0; i < 4; ++i) CHECK(std::isfinite(z[i]));
    if (x[0] != largest) test::check_close(z, x, 1e-6f + 0.501f * q.scale[0]);
  }
}

TEST_CASE("int4: wrong shapes and groups name the argument") {
  std::vector<float> w(2 * 12), scale(8);
  std::vector<mote::int4_pair> codes(12);
  std::vector<std::int8_t> zero(8);
  const mote::view<const float, 2> source(w.data(), 2, 12);
  for (const std::size_t group : {std::size_t{0}, std::size_t{3}, std::size_t{8}}) {
    CHECK_THROWS_WITH(
        mote::quantize_int4(source, group, {codes.data(), 2, 6}, {scale.data(), 2, 1}),
        "quantize_int4: group: expected an even number that divides the 12 columns, got " + std::to_string(group));
  }
  CHECK_THROWS_WITH(mote::quantize_int4(source, 4, {codes.data(), 2, 5}, {scale.data(), 2, 3}),
                    "quantize_int4: codes: expected shape [2, 6], got [2, 5]");
  CHECK_THROWS_WITH(mote::quantize_int4(source, 4, {codes.data(), 2, 6}, {scale.data(), 2, 3}, {zero.data(), 2, 2}),
                    "quantize_int4: zero: expected shape [2, 3], got [2, 2]");
}
