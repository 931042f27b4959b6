#include <mote/quant/int4.hpp>

#include <limits>

#include "support/backends.hpp"
#include "support/golden.hpp"

TEST_CASE("int4: published codes, scales and values") {
  const test::golden golden("integer");
  const std::size_t out = golden.extent("w", 0), in = golden.extent("w", 1), group = golden.setting("group");
  const std::size_t groups = in / group;
  const auto w = golden.floats("w");
  const mote::view<const float, 2> source(w.data(), out, in);
  std::vector<std::uint8_t> packed(out * in / 2), zero(out * groups);
  std::vector<float> scale(out * groups), back(out * in);
  const mote::view<std::uint8_t, 2> codes(packed.data(), out, in / 2), zeros(zero.data(), out, groups);
  const mote::view<float, 2> scales(scale.data(), out, groups), values(back.data(), out, in);

  mote::quantize_int4(source, group, codes, scales);
  test::check_close(scale, golden.floats("int4.scale"), 0.0f, 1e-6f);
  CHECK(packed == golden.unsigned_bytes("int4.packed"));
  std::vector<std::int8_t> unpacked;
  for (std::size_t i = 0; i < out * in; ++i)
    unpacked.push_back(static_cast<std::int8_t>(mote::int4_code(packed.data(), i)));
  CHECK(unpacked == golden.bytes("int4.codes"));
  mote::dequantize_int4(codes, group, scales, values);
  test::check_close(back, golden.floats("int4.dequantized"), 0.0f, 1e-6f);

  mote::quantize_uint4(source, group, codes, scales, zeros);
  test::check_close(scale, golden.floats("uint4.scale"), 0.0f, 1e-6f);
  CHECK(zero == golden.unsigned_bytes("uint4.zero"));
  std::vector<std::uint8_t> unsigned_codes;
  for (std::size_t i = 0; i < out * in; ++i) {
    unsigned_codes.push_back(static_cast<std::uint8_t>(mote::uint4_code(packed.data(), i)));
  }
  CHECK(unsigned_codes == golden.unsigned_bytes("uint4.codes"));
  mote::dequantize_uint4(codes, group, scales, zeros, values);
  test::check_close(back, golden.floats("uint4.dequantized"), 1e-7f, 1e-6f);
}

TEST_CASE("int4: zero, one-sided, tiny and huge groups") {
  const float largest = std::numeric_limits<float>::max();
  const std::vector<std::vector<float>> groups = {
      {0, 0, 0, 0}, {1, 2, 3, 15}, {-1, -2, -3, -15}, {1e-45f, 0, 0, 0}, {largest, -largest, 0, 1}, {7, 7, 7, 7}};
  for (const auto& x : groups) {
    CAPTURE(x);
    std::vector<std::uint8_t> packed(2), zero(1);
    std::vector<float> scale(1), y(4);
    const mote::view<const float, 2> source(x.data(), 1, 4);
    mote::quantize_int4(source, 4, {packed.data(), 1, 2}, {scale.data(), 1, 1});
    mote::dequantize_int4({packed.data(), 1, 2}, 4, {scale.data(), 1, 1}, {y.data(), 1, 4});
    for (std::size_t i = 0; i < 4; ++i) {
      CHECK(std::isfinite(y[i]));
      CHECK(std::abs(y[i] - x[i]) <= 0.501f * scale[0]);
    }
    mote::quantize_uint4(source, 4, {packed.data(), 1, 2}, {scale.data(), 1, 1}, {zero.data(), 1, 1});
    mote::dequantize_uint4({packed.data(), 1, 2}, 4, {scale.data(), 1, 1}, {zero.data(), 1, 1}, {y.data(), 1, 4});
    for (std::size_t i = 0; i < 4; ++i) CHECK(std::isfinite(y[i]));
    if (x[0] != largest) test::check_close(y, x, 1e-6f + 0.501f * scale[0]);
  }
}

TEST_CASE("int4: wrong shapes and groups name the argument") {
  std::vector<float> w(2 * 12), scale(8);
  std::vector<std::uint8_t> packed(12), zero(8);
  const mote::view<const float, 2> source(w.data(), 2, 12);
  for (const std::size_t group : {std::size_t{0}, std::size_t{3}, std::size_t{8}}) {
    CHECK_THROWS_WITH(
        mote::quantize_int4(source, group, {packed.data(), 2, 6}, {scale.data(), 2, 1}),
        "quantize_int4: group: expected an even number that divides the 12 columns, got " + std::to_string(group));
  }
  CHECK_THROWS_WITH(mote::quantize_int4(source, 4, {packed.data(), 2, 5}, {scale.data(), 2, 3}),
                    "quantize_int4: packed: expected shape [2, 6], got [2, 5]");
  CHECK_THROWS_WITH(mote::quantize_uint4(source, 4, {packed.data(), 2, 6}, {scale.data(), 2, 3}, {zero.data(), 2, 2}),
                    "quantize_uint4: zero: expected shape [2, 3], got [2, 2]");
  CHECK_THROWS_WITH(mote::dequantize_int4({packed.data(), 2, 6}, 4, {scale.data(), 2, 2}, {w.data(), 2, 12}),
                    "dequantize_int4: scale: expected shape [2, 3], got [2, 2]");
}
