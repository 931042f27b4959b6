// Made-up formats, as users may add them, and loops over them and the library's.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include <mote/quant/formats.hpp>

namespace test {

// A made-up format of 3.5 bits an element: 32 integers in [-4, 3] and their scale. docs/formats.md shows it too.
struct int3 {
  static constexpr std::string_view name = "int3";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 3;
  static constexpr std::array<std::int8_t, 16> code_values = {-4, -3, -2, -1, 0, 1, 2, 3};
  using scale_type = mote::f16;

  mote::f16 d;
  std::uint8_t low[8], high[4];  // two bits of elements 4 i .. 4 i + 3; one bit of elements 8 i .. 8 i + 7

  std::uint8_t code(std::size_t i) const {
    return static_cast<std::uint8_t>((low[i / 4] >> (i % 4 * 2) & 3) | (high[i / 8] >> (i % 8) & 1) << 2);
  }
  mote::f16 scale(std::size_t) const { return d; }

  static int3 encode(const float* x) {
    int3 block{};
    block.d = mote::detail::saturated_f16(mote::detail::largest_element(x, block_size) / -4.0f);
    const float inverse = mote::detail::finite_inverse(static_cast<float>(block.d));
    for (std::size_t i = 0; i < block_size; ++i) {
      const auto bits = static_cast<unsigned>(std::clamp(x[i] * inverse + 4.5f, 0.0f, 7.0f));
      block.low[i / 4] |= static_cast<std::uint8_t>((bits & 3u) << (i % 4 * 2));
      block.high[i / 8] |= static_cast<std::uint8_t>((bits >> 2) << (i % 8));
    }
    return block;
  }
  void decode(float* y) const { mote::decode_codes(*this, y); }
};
static_assert(mote::integer_format<int3> && sizeof(int3) == 14);

// A format need not be made of integers.
struct two_halves {
  static constexpr std::string_view name = "two_halves";
  static constexpr std::size_t block_size = 2;
  mote::f16 values[2];
  static two_halves encode(const float* x) { return {mote::f16(x[0]), mote::f16(x[1])}; }
  void decode(float* y) const {
    for (std::size_t i = 0; i < 2; ++i) y[i] = static_cast<float>(values[i]);
  }
};

// f.template operator()<F>() for every format.
template <class Function>
void for_each_format(Function&& f) {
  mote::for_each_format(f);
  mote::for_each_format(f, mote::type_list<int3, two_halves>{});
}

// For every integer format.
template <class Function>
void for_each_integer_format(Function&& f) {
  for_each_format([&]<class F>() {
    if constexpr (mote::integer_format<F>) f.template operator()<F>();
  });
}

}  // namespace test
