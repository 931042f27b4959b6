// Rows of numbers as caches store them, and `cache_rows`: rows of a paged cache in any of those forms but f16. The variant is
// visited once for each op, never for each row. Rows do not own their memory.
//
//   float, bf16, f16   one number an element of a row
//   F                  F::block_size numbers, for any block format F
//
// Of the formats, mxfp8 is the fp8 cache and q8_0 the int8 cache: both scale 32 numbers together.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

#include "../core/error.hpp"
#include "../core/paged.hpp"
#include "../core/types.hpp"
#include "../core/widen.hpp"
#include "formats.hpp"
#include "formats/mxfp8.hpp"

MOTE_BEGIN_NAMESPACE

template <class T>
concept row_element = std::same_as<T, float> || std::same_as<T, bf16> || std::same_as<T, f16> || block_format<T>;

// x[n] to a row; n is whole blocks. Values must be finite where T is a block format.
template <row_element T>
void encode_row(const float* x, std::size_t n, T* row) {
  if constexpr (block_format<T>) {
    for (std::size_t i = 0; i < n; i += T::block_size) *row++ = T::encode(x + i);
  } else {
    std::transform(x, x + n, row, [](float v) { return static_cast<T>(v); });
  }
}

// The first n numbers of a row to y.
template <row_element T>
void decode_row(const T* row, std::size_t n, float* y) {
  if constexpr (block_format<T>) {
    for (std::size_t i = 0; i < n; i += T::block_size) row++->decode(y + i);
  } else {
    std::transform(row, row + n, y, [](T v) { return static_cast<float>(v); });
  }
}

namespace detail {

// The same by vectors.
template <class Arch, row_element T>
void decode_row(const T* row, std::size_t n, float* y) noexcept {
  std::size_t i = 0;
  if constexpr (!block_format<T>) {
    constexpr std::size_t size = batch<float, Arch>::size;
    for (; i + size <= n; i += size) widen<Arch>(row + i).store_unaligned(y + i);
  }
  mote::decode_row(row + i, n - i, y + i);
}

}  // namespace detail

// The form of a row, known at run time.
struct row_format {
  std::string_view name = "f32";
  std::size_t block_size = 1;         // numbers an element
  std::size_t bytes = sizeof(float);  // of an element

  template <row_element T>
  static constexpr row_format of() {
    if constexpr (block_format<T>) {
      return {T::name, T::block_size, sizeof(T)};
    } else {
      return {std::same_as<T, float> ? "f32" : std::same_as<T, bf16> ? "bf16" : "f16", 1, sizeof(T)};
    }
  }

  // Bytes of a row of so many numbers, which are whole blocks.
  std::size_t row_bytes(std::size_t columns) const { return columns / block_size * bytes; }

  friend bool operator==(const row_format&, const row_format&) = default;
};

// Throws shape_error "op: argument: …" unless so many numbers are whole blocks.
inline void check_whole_blocks(std::string_view op, std::string_view argument, std::size_t columns,
                               const row_format& format) {
  if (columns % format.block_size == 0) return;
  raise<shape_error>(
      detail::concatenate({op, ": ", argument, ": expected whole blocks of ", std::to_string(format.block_size),
                           " for ", format.name, ", got ", std::to_string(columns)}));
}

// Numbers in a row.
template <class T>
std::size_t columns(const paged_rows<T>& rows) {
  return rows.width() * row_format::of<std::remove_const_t<T>>().block_size;
}

namespace detail {

template <class List>
struct row_elements_with;
template <class... F>
struct row_elements_with<type_list<F...>> {
  using elements = type_list<float, bf16, mxfp8, F...>;
  using rows = std::variant<paged_rows<float>, paged_rows<bf16>, paged_rows<mxfp8>, paged_rows<F>...>;
};

}  // namespace detail

// The forms that can be chosen at run time, one after another: for_each_format(f, row_elements{}).
using row_elements = detail::row_elements_with<formats>::elements;
using cache_rows = detail::row_elements_with<formats>::rows;

// Rows in use.
template <class T>
std::size_t length(const paged_rows<T>& rows) {
  return rows.length;
}
inline std::size_t length(const cache_rows& rows) {
  return std::visit([](const auto& r) { return r.length; }, rows);
}

MOTE_END_NAMESPACE
