// `scaled_matrix`: a matrix [out, in] of small codes with float32 scales and, where codes are asymmetric, zero points, one for
// each tile of tile_rows by tile_columns of its numbers; tiles at the edges are partial.
//
//   W[n, k] = scale[n / tile_rows, k / tile_columns] · (code[n, k] - zero[n / tile_rows, k / tile_columns])
//
// as float32, rounded once; scales are below 2^119, where numbers of e4m3 become infinite. Codes lie as checkpoints store
// them, so that those of a mapped file are used in place:
//
//   f8_e4m3, f8_e5m2   one scale for the matrix, one a row, or DeepSeek's 128×128 blocks; no zero points
//   std::int8_t        one for the matrix, one a row, or one for each group of a row
//   int4_pair          the same, two codes a byte
//
// Source: DeepSeek-V3 (fp8); the package compressed-tensors (integers).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <variant>

#include "../core/error.hpp"
#include "../core/types.hpp"
#include "../core/view.hpp"

MOTE_BEGIN_NAMESPACE

// Two integers in [-8, 7], the even element in the low four bits, each stored as itself plus 8.
struct int4_pair {
  std::uint8_t bits = 0;

  static int4_pair of(int even, int odd) { return {static_cast<std::uint8_t>((even + 8) | (odd + 8) << 4)}; }
  int even() const { return (bits & 15) - 8; }
  int odd() const { return (bits >> 4) - 8; }
};

// Does not own its memory.
struct scaled_matrix {
  std::variant<view<const f8_e4m3, 2>, view<const f8_e5m2, 2>, view<const std::int8_t, 2>, view<const int4_pair, 2>>
      codes;                                    // [out, in]; pairs [out, in / 2]
  view<const float, 2> scale;                   // [⌈(first_row + out) / tile_rows⌉, ⌈in / tile_columns⌉]
  view<const std::int8_t, 2> zero = {};         // the same, or empty
  std::size_t tile_rows = 1, tile_columns = 1;  // for pairs tile_columns is even
  std::size_t first_row = 0;                    // of the rows, in the first tile
};

namespace detail {

template <class Code>
inline constexpr std::size_t codes_each = std::is_same_v<Code, int4_pair> ? 2 : 1;
template <class Code>
inline constexpr bool has_zero = std::is_same_v<Code, std::int8_t> || std::is_same_v<Code, int4_pair>;

// Element i of a row of codes, and the number it stands for.
template <class Code>
float code_value(const Code* row, std::size_t i) {
  if constexpr (std::is_same_v<Code, int4_pair>) {
    return static_cast<float>(i % 2 == 0 ? row[i / 2].even() : row[i / 2].odd());
  } else {
    return static_cast<float>(row[i]);
  }
}
template <class Code>
float code_number(const Code* row, std::size_t i, float scale, float zero) {
  return scale * (has_zero<Code> ? code_value(row, i) - zero : code_value(row, i));
}

// f(row of codes, first element, last, scale, zero) for every tile's part of the elements [begin, end) of a row.
template <class F>
void for_each_part(const scaled_matrix& w, std::size_t row, std::size_t begin, std::size_t end, F&& f) {
  const std::size_t tile_row = (w.first_row + row) / w.tile_rows;
  std::visit(
      [&](const auto& codes) {
        for (std::size_t k = begin, next = begin; k < end; k = next) {
          const std::size_t tile = k / w.tile_columns;
          next = std::min(end, (tile + 1) * w.tile_columns);
          f(codes.row(row), k, next, w.scale(tile_row, tile),
            w.zero.empty() ? 0.0f : static_cast<float>(w.zero(tile_row, tile)));
        }
      },
      w.codes);
}

}  // namespace detail

inline std::size_t out_features(const scaled_matrix& w) {
  return std::visit([](const auto& codes) { return codes.extent(0); }, w.codes);
}
inline std::size_t in_features(const scaled_matrix& w) {
  return std::visit(
      []<class Code>(const view<const Code, 2>& codes) { return codes.extent(1) * detail::codes_each<Code>; }, w.codes);
}

inline std::size_t bytes(const scaled_matrix& w) {
  return std::visit([](const auto& codes) { return codes.size(); }, w.codes) + w.scale.size() * sizeof(float) +
         w.zero.size();
}

inline void check_rows(std::string_view op, std::string_view argument, const scaled_matrix& w) {
  // Messages are put together for errors only: a decode step allocates nothing.
  const auto expect = [&](bool condition, const char* what) {
    if (!condition) raise<shape_error>(detail::concatenate({op, ": ", argument, ": ", what}));
  };
  const std::size_t out = out_features(w), in = in_features(w);
  expect(w.tile_rows > 0 && w.tile_columns > 0, "tiles must not be empty");
  std::visit(
      [&]<class Code>(const view<const Code, 2>& codes) {
        check_view(op, argument, codes, {out, codes.extent(1)});
        expect(detail::codes_each<Code> == 1 || w.tile_columns % 2 == 0 || w.tile_columns >= in,
               "tiles of int4 must have an even number of columns");
        expect(detail::has_zero<Code> || w.zero.empty(), "fp8 has no zero points");
      },
      w.codes);
  const std::size_t rows = out == 0 ? 0 : (w.first_row + out - 1) / w.tile_rows + 1,
                    columns = in == 0 ? 0 : (in - 1) / w.tile_columns + 1;
  const auto check_tiles = [&](const char* what, const auto& tiles) {
    if (tiles.extent(0) == rows && tiles.extent(1) == columns) return;
    check_view(op, detail::concatenate({argument, ": ", what}), tiles, {rows, columns});
  };
  check_tiles("scale", w.scale);
  if (!w.zero.empty()) check_tiles("zero", w.zero);
}

inline scaled_matrix slice_rows(const scaled_matrix& w, std::size_t begin, std::size_t count) {
  scaled_matrix part = w;
  const std::size_t first = (w.first_row + begin) / w.tile_rows;
  part.first_row = (w.first_row + begin) % w.tile_rows;
  const std::size_t rows = count == 0 ? 0 : (part.first_row + count - 1) / w.tile_rows + 1;
  std::visit([&](auto& codes) { codes = codes.slice(0, begin, count); }, part.codes);
  part.scale = w.scale.slice(0, first, rows);
  if (!w.zero.empty()) part.zero = w.zero.slice(0, first, rows);
  return part;
}

inline void dequantize_row(const scaled_matrix& w, std::size_t row, float* y) {
  detail::for_each_part(w, row, 0, in_features(w),
                        [y](const auto* codes, std::size_t k, std::size_t end, float scale, float zero) {
                          for (; k < end; ++k) y[k] = detail::code_number(codes, k, scale, zero);
                        });
}

MOTE_END_NAMESPACE
