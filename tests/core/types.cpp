// Every conversion against golden data: the value of each code, and the codes of thousands of floats (ties, subnormals,
// overflow, infinities, NaN).
#include <mote/core/types.hpp>
#include <mote/io/safetensors.hpp>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"

namespace {

const mote::safetensors_file& golden() {
  static const mote::safetensors_file file(MOTE_GOLDEN_DIR "/ops/dtypes.safetensors");
  return file;
}

template <class T>
std::vector<T> load(const std::string& name) {
  const auto& t = golden().tensor(name);
  REQUIRE(mote::dtype_size(t.dtype) == sizeof(T));
  std::vector<T> values(t.size());
  std::memcpy(values.data(), t.bytes.data(), t.bytes.size());
  return values;
}

// Codes are equal, or both are NaN.
template <class T>
void check_codes(const std::vector<float>& x, const std::vector<std::uint32_t>& expected, T (*encode)(float)) {
  REQUIRE(x.size() == expected.size());
  using bits = decltype(T::bits);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const T y = encode(x[i]);
    const float e = static_cast<float>(T::from_bits(static_cast<bits>(expected[i])));
    if (std::isnan(e)) {
      CAPTURE(i, x[i]);
      REQUIRE(std::isnan(static_cast<float>(y)));
    } else if (y.bits != expected[i]) {
      CAPTURE(i, x[i]);
      REQUIRE(+y.bits == expected[i]);
    }
  }
}

std::vector<std::uint32_t> codes(const std::string& name) {
  std::vector<std::uint32_t> values;
  if (mote::dtype_size(golden().tensor(name).dtype) == 1) {
    for (const auto c : load<std::uint8_t>(name)) values.push_back(c);
  } else {
    for (const auto c : load<std::int32_t>(name)) values.push_back(static_cast<std::uint32_t>(c));
  }
  return values;
}

// Decoding gives the table's bits, and encoding a value gives its code back.
template <class T>
void check_table(const std::vector<float>& table) {
  using bits = decltype(T::bits);
  for (std::size_t code = 0; code < table.size(); ++code) {
    const float value = static_cast<float>(T::from_bits(static_cast<bits>(code)));
    CAPTURE(code);
    if (std::isnan(table[code])) {
      REQUIRE(std::isnan(value));
      continue;
    }
    if (std::bit_cast<std::uint32_t>(value) != std::bit_cast<std::uint32_t>(table[code])) REQUIRE(value == table[code]);
    if (!std::isinf(value) && T(value).bits != code) REQUIRE(+T(value).bits == code);
  }
}

}  // namespace

TEST_CASE("types: every code decodes to its published value") {
  check_table<mote::f16>(load<float>("fp16_table"));
  check_table<mote::f8_e4m3>(load<float>("e4m3_table"));
  check_table<mote::f8_e5m2>(load<float>("e5m2_table"));
  check_table<mote::f8_e8m0>(load<float>("e8m0_table"));
  check_table<mote::f4_e2m1>(load<float>("e2m1_table"));
}

TEST_CASE("types: bf16 decodes to the float with the same upper half") {
  for (std::uint32_t code = 0; code < 65536; ++code) {
    const float value = static_cast<float>(mote::bf16::from_bits(static_cast<std::uint16_t>(code)));
    if (std::bit_cast<std::uint32_t>(value) != code << 16) REQUIRE(std::bit_cast<std::uint32_t>(value) == code << 16);
    if (!std::isnan(value) && mote::bf16(value).bits != code) REQUIRE(+mote::bf16(value).bits == code);
  }
}

namespace {

// Every code of a small type against its neighbours: `largest` is the code of the largest number, `special` what stands
// for what lies beyond it when it does not saturate.
template <class T, class Encode>
void check_neighbours(unsigned largest, unsigned special, unsigned sign, const Encode& encode) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const auto value = [](unsigned code) { return static_cast<float>(T::from_bits(static_cast<std::uint8_t>(code))); };
  const auto expect = [&](float x, bool saturate, unsigned code) {
    CAPTURE(x, saturate);
    CHECK(+encode(x, saturate).bits == code);
    CHECK(+encode(-x, saturate).bits == (code | sign));
  };
  for (const bool saturate : {true, false}) {
    for (unsigned code = 0; code < largest; ++code) {
      const float below = value(code), above = value(code + 1), middle = (below + above) / 2.0f;
      expect(below, saturate, code);
      expect(std::nextafter(middle, 0.0f), saturate, code);
      expect(middle, saturate, code + code % 2);
      expect(std::nextafter(middle, infinity), saturate, code + 1);
    }
    // As if a number followed the largest one, as far from it as the one before.
    const float last = value(largest), middle = last + (last - value(largest - 1)) / 2.0f;
    const unsigned beyond = saturate ? largest : special;
    expect(last, saturate, largest);
    expect(std::nextafter(middle, 0.0f), saturate, largest);
    expect(middle, saturate, largest % 2 == 0 ? largest : beyond);
    for (const float x : {std::nextafter(middle, infinity), 2.0f * last, std::numeric_limits<float>::max(), infinity}) {
      expect(x, saturate, beyond);
    }
  }
}

}  // namespace

TEST_CASE("types: fp8 and fp4 round to the nearer of two codes, of a tie to the even one, and saturate or not") {
  const auto mode = [](bool saturate) { return saturate ? mote::overflow::saturate : mote::overflow::to_special; };
  check_neighbours<mote::f8_e4m3>(0x7E, 0x7F, 0x80, [&](float x, bool s) { return mote::f8_e4m3(x, mode(s)); });
  check_neighbours<mote::f8_e5m2>(0x7B, 0x7C, 0x80, [&](float x, bool s) { return mote::f8_e5m2(x, mode(s)); });
  check_neighbours<mote::f4_e2m1>(0x7, 0x7, 0x8, [](float x, bool) { return mote::f4_e2m1(x); });
}

TEST_CASE("types: NaN of any sign and payload stays NaN where the type has one") {
  for (const std::uint32_t bits : {0x7FC00000u, 0xFFC00000u, 0x7F800001u, 0xFF800001u, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
    const auto nan = std::bit_cast<float>(bits);
    CAPTURE(bits);
    for (const auto mode : {mote::overflow::saturate, mote::overflow::to_special}) {
      CHECK(std::isnan(static_cast<float>(mote::f8_e4m3(nan, mode))));
      CHECK(std::isnan(static_cast<float>(mote::f8_e5m2(nan, mode))));
    }
    CHECK(std::isnan(static_cast<float>(mote::bf16(nan))));
    CHECK(std::isnan(static_cast<float>(mote::f16(nan))));
    CHECK(std::isnan(static_cast<float>(mote::f8_e8m0(nan))));
    CHECK(std::fabs(static_cast<float>(mote::f4_e2m1(nan))) == 6.0f);
  }
}

TEST_CASE("types: encoding rounds as the golden data says") {
  const auto x = load<float>("x");
  REQUIRE(x.size() > 1000);
  check_codes<mote::bf16>(x, codes("bf16_codes"), [](float v) { return mote::bf16(v); });
  check_codes<mote::f16>(x, codes("fp16_codes"), [](float v) { return mote::f16(v); });
  check_codes<mote::f8_e4m3>(x, codes("e4m3_codes_saturating"), [](float v) { return mote::f8_e4m3(v); });
  check_codes<mote::f8_e4m3>(x, codes("e4m3_codes_overflow_to_nan"),
                             [](float v) { return mote::f8_e4m3(v, mote::overflow::to_special); });
  check_codes<mote::f8_e5m2>(x, codes("e5m2_codes_saturating"), [](float v) { return mote::f8_e5m2(v); });
  check_codes<mote::f8_e5m2>(x, codes("e5m2_codes_overflow_to_inf"),
                             [](float v) { return mote::f8_e5m2(v, mote::overflow::to_special); });
  check_codes<mote::f4_e2m1>(x, codes("e2m1_codes_saturating"), [](float v) { return mote::f4_e2m1(v); });
  const auto scales = load<float>("e8m0_x");
  check_codes<mote::f8_e8m0>(scales, codes("e8m0_codes_floor"), [](float v) { return mote::f8_e8m0(v); });
  check_codes<mote::f8_e8m0>(scales, codes("e8m0_codes_ceil"),
                             [](float v) { return mote::f8_e8m0(v, mote::exponent_rounding::ceil); });
}

TEMPLATE_TEST_CASE("types: encoding picks the nearest code for any float", "", mote::bf16, mote::f16, mote::f8_e4m3,
                   mote::f8_e5m2) {
  // A pass over the float32 bit patterns: the error may not exceed that of the neighbouring codes.
  std::uint32_t u = 1;
  for (int i = 0; i < 200000; ++i) {
    u = u * 1664525u + 1013904223u;
    const float x = std::bit_cast<float>(u);
    if (!std::isfinite(x)) continue;
    const TestType y(x);
    const double value = static_cast<double>(static_cast<float>(y));
    if (!std::isfinite(value)) continue;
    const double error = std::abs(value - static_cast<double>(x));
    for (const int step : {-1, 1}) {
      using bits = decltype(TestType::bits);
      const auto other = static_cast<float>(TestType::from_bits(static_cast<bits>(y.bits + step)));
      if (!std::isfinite(other)) continue;
      const double other_error = std::abs(static_cast<double>(other) - static_cast<double>(x));
      if (other_error < error) {
        CAPTURE(x, value, other);
        REQUIRE(other_error >= error);
      }
    }
  }
}

TEST_CASE("types: conversions are constant expressions and types hold nothing but their bits") {
  static_assert(static_cast<float>(mote::bf16(1.5f)) == 1.5f);
  static_assert(static_cast<float>(mote::f16(65504.0f)) == 65504.0f);
  static_assert(static_cast<float>(mote::f8_e4m3(1000.0f)) == 448.0f);
  static_assert(static_cast<float>(mote::f8_e5m2(-0.5f)) == -0.5f);
  static_assert(static_cast<float>(mote::f8_e8m0(0.75f)) == 0.5f);
  static_assert(static_cast<float>(mote::f4_e2m1(-6.0f)) == -6.0f);
  static_assert(sizeof(mote::bf16) == 2 && sizeof(mote::f16) == 2 && sizeof(mote::f8_e4m3) == 1);
  static_assert(std::is_trivially_copyable_v<mote::bf16> && std::is_trivially_copyable_v<mote::f4_e2m1>);
  static_assert(!std::is_convertible_v<float, mote::bf16> && !std::is_convertible_v<mote::bf16, float>);
  CHECK(std::isinf(static_cast<float>(mote::f16(std::numeric_limits<float>::infinity()))));
  CHECK(std::isnan(static_cast<float>(mote::f8_e4m3(std::numeric_limits<float>::quiet_NaN()))));
}
