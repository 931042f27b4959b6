// A block format: how a run of `block_size` numbers is stored. The struct of one block is the format, byte for byte; a
// matrix [out, in] in format F is a view<const F, 2> of shape [out, in / block_size].
//
//   struct q8_0 {
//     static constexpr std::string_view name = "q8_0";
//     static constexpr std::size_t block_size = 32;
//     f16 d;                                     // the stored fields, in the published order
//     std::int8_t q[32];
//     static q8_0 encode(const float* x);        // x[block_size], finite; so is what it decodes to
//     void decode(float* y) const;               // y[block_size]
//   };
//
// From that alone matmul, caches and quantization work, and from its place in the list of formats.hpp every op; docs/formats.md
// shows it with a made-up format.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "../core/config.hpp"
#include "../core/types.hpp"

MOTE_BEGIN_NAMESPACE

template <class F>
concept block_format = std::is_trivially_copyable_v<F> && alignof(F) <= 2 &&
                       requires(const F block, const float* x, float* y) {
  { F::name } -> std::convertible_to<std::string_view>;
  { F::block_size } -> std::convertible_to<std::size_t>;
  { F::encode(x) } -> std::same_as<F>;
  { block.decode(y) } -> std::same_as<void>;
};

namespace detail {

// Codes of at most four bits, looked up: q[i] = code_values[code(i)].
template <class F>
concept table_codes = requires(const F block, std::size_t i) {
  requires(F::code_bits >= 1 && F::code_bits <= 4);
  { F::code_values } -> std::convertible_to<const std::array<std::int8_t, 16>&>;
  { block.code(i) } -> std::same_as<std::uint8_t>;
};

// Wider codes are the integers themselves: q[i] = code(i), with a sign as std::int8_t, without as std::uint8_t.
template <class F>
concept wide_codes = requires(const F block, std::size_t i) {
  requires(F::code_bits > 4 && F::code_bits <= 8);
  requires std::same_as<decltype(block.code(i)), std::int8_t> ||
      (std::same_as<decltype(block.code(i)), std::uint8_t> && F::code_bits < 8);
};
template <class F>
concept unsigned_wide_codes = wide_codes<F> && requires(const F block, std::size_t i) {
  { block.code(i) } -> std::same_as<std::uint8_t>;
};

}  // namespace detail

// A format whose elements are small integers times a scale shared by `group_size` of them, which integer dot products
// can use without decoding:
//
//   value[i] = scale(i / group_size) · q[i] - min(i / group_size),    q[i] = code_values[code(i)], or code(i) if wider
//
// `scale_type` holds every scale exactly in the fewest bytes; a format without `min` has none to subtract. Where
// code_values holds multiples of the numbers meant, a constant `F::unit` says what to multiply scales by.
template <class F>
concept integer_format = block_format<F> &&
    (detail::table_codes<F> || detail::wide_codes<F>)&&requires(const F block, std::size_t group) {
  { F::group_size } -> std::convertible_to<std::size_t>;
  requires(F::group_size == 16 || F::group_size == 32);
  requires(F::block_size % F::group_size == 0);
  { block.scale(group) } -> std::same_as<typename F::scale_type>;
  static_cast<float>(block.scale(group));
};

// Integer formats that subtract a minimum.
template <class F>
concept format_with_min = integer_format<F> && requires(const F block, std::size_t group) {
  { block.min(group) } -> std::same_as<float>;
};

// Integer formats whose scales are integers themselves: scale(g) = super_scale() · sub_scale(g), and with a minimum
// min(g) = super_min() · sub_min(g). Sub-scales and sub-minimums are from -128 to 127.
template <class F>
concept two_level_format = integer_format<F> && requires(const F block, std::size_t group) {
  { block.super_scale() } -> std::same_as<f16>;
  { block.sub_scale(group) } -> std::same_as<int>;
};

// Integer formats whose matrices may have one more scale, of the whole matrix: value = tensor scale · (what the blocks hold). It
// is kept beside the blocks, and in packed matrices behind each panel.
template <class F>
concept format_with_tensor_scale = integer_format<F> && F::has_tensor_scale;

// The integer q[i] of an element.
template <integer_format F>
int integer_value(const F& block, std::size_t i) {
  if constexpr (detail::table_codes<F>) {
    return F::code_values[block.code(i)];
  } else {
    return block.code(i);
  }
}

// code(i) to code(i + 3) as the bytes of a word, the first in the lowest, i a multiple of four. A format may have a shorter
// way, for packing: `four_codes`.
template <integer_format F>
std::uint32_t four_codes(const F& block, std::size_t i) {
  if constexpr (requires {
                  { block.four_codes(i) } -> std::same_as<std::uint32_t>;
                }) {
    return block.four_codes(i);
  } else {
    const auto byte = [&](std::size_t j) { return std::uint32_t{static_cast<std::uint8_t>(block.code(i + j))}; };
    return byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
  }
}

// The scale of a group as float32.
template <integer_format F>
float group_scale(const F& block, std::size_t g) {
  const auto scale = static_cast<float>(block.scale(g));
  if constexpr (requires { F::unit; }) {
    return F::unit * scale;
  } else {
    return scale;
  }
}

// decode() spelled out by the formula above.
template <integer_format F>
void decode_codes(const F& block, float* y) {
  for (std::size_t g = 0; g < F::block_size / F::group_size; ++g) {
    const float scale = group_scale(block, g);
    float min = 0.0f;
    if constexpr (format_with_min<F>) min = block.min(g);
    for (std::size_t i = g * F::group_size; i < (g + 1) * F::group_size; ++i) {
      y[i] = scale * static_cast<float>(integer_value(block, i)) - min;
    }
  }
}

MOTE_END_NAMESPACE
