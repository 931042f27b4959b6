// `weight`: a matrix [out, in] in one of the forms that matmul reads. A model's layers may carry different forms; the
// variant is visited once for each matmul, never for each element. A weight does not own its memory.
//
//   view<const T, 2>                               rows of float, bf16 or f16 as checkpoints store them
//   int8_matrix                                    int8 with one scale for each row
//   scaled_matrix                                  fp8, int8 or int4 with a scale for each tile, and zero points
//   view<const F, 2>                               blocks of a format F as files store them, [out, in / F::block_size]
//   packed_matrix<F>                               the same numbers in the order of the vector kernels: faster
//   packed_matrix<std::int8_t>                     an int8_matrix in that order
//   packed_matrix<bf16>                            bf16 in that order, for activations rounded to bf16
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

#include "../core/error.hpp"
#include "../core/types.hpp"
#include "../core/view.hpp"
#include "formats.hpp"
#include "packed.hpp"
#include "scaled_matrix.hpp"

MOTE_BEGIN_NAMESPACE

// int8 symmetric per output channel: W[n, k] = scale[n] · codes[n, k], codes in [-127, 127]. Made by quantize_int8
// (quant/int8.hpp).
struct int8_matrix {
  view<const std::int8_t, 2> codes;  // [out, in]
  view<const float, 1> scale;        // [out]
};

namespace detail {

// The forms of a format's matrices: only integer formats are packed.
template <class F>
struct forms_of_format {
  using type = std::variant<view<const F, 2>>;
};
template <integer_format F>
struct forms_of_format<F> {
  using type = std::variant<view<const F, 2>, packed_matrix<F>>;
};

template <class... Lists>
struct joined;
template <class... T>
struct joined<std::variant<T...>> {
  using type = std::variant<T...>;
};
template <class... T, class... U, class... Lists>
struct joined<std::variant<T...>, std::variant<U...>, Lists...> : joined<std::variant<T..., U...>, Lists...> {};

template <class List>
struct weight_of;
template <class... F>
struct weight_of<type_list<F...>> {
  using plain = std::variant<view<const float, 2>, view<const bf16, 2>, view<const f16, 2>, int8_matrix, scaled_matrix,
                             packed_matrix<std::int8_t>, packed_matrix<bf16>>;
  using type = typename joined<plain, typename forms_of_format<F>::type...>::type;
};

// Columns that one element of a row stands for.
template <class T>
inline constexpr std::size_t columns_of = 1;
template <block_format F>
inline constexpr std::size_t columns_of<F> = F::block_size;

}  // namespace detail

using weight = detail::weight_of<formats>::type;

namespace detail {

template <class M>
inline constexpr bool is_matrix = std::is_same_v<M, int8_matrix> || std::is_same_v<M, scaled_matrix>;
template <class T>
inline constexpr bool is_matrix<view<const T, 2>> = true;
template <class F>
inline constexpr bool is_matrix<packed_matrix<F>> = true;

}  // namespace detail

// One of the forms above, for a format of the list or any other.
template <class M>
concept matrix = detail::is_matrix<M>;

// A weight, or what becomes one, as a view of rows that may be written does.
template <class W>
concept any_weight = !matrix<W> && std::convertible_to<const W&, weight>;

namespace detail {

template <class Visitor>
decltype(auto) visit_form(const weight& w, Visitor&& visitor) {
  return std::visit(visitor, w);
}

}  // namespace detail

// --- Shape -----------------------------------------------------------------------------------------------------------

// What is asked of a weight is asked of the form it holds. The overloads for `weight` are templates, so that a file that uses
// one form does not compile visits of all of them.

template <class T>
std::size_t out_features(const view<const T, 2>& w) {
  return w.extent(0);
}
inline std::size_t out_features(const int8_matrix& w) { return w.codes.extent(0); }
template <class F>
std::size_t out_features(const packed_matrix<F>& w) {
  return w.out_features();
}
template <any_weight W>
std::size_t out_features(const W& w) {
  return detail::visit_form(w, [](const auto& m) { return out_features(m); });
}

template <class T>
std::size_t in_features(const view<const T, 2>& w) {
  return w.extent(1) * detail::columns_of<T>;
}
inline std::size_t in_features(const int8_matrix& w) { return w.codes.extent(1); }
template <class F>
std::size_t in_features(const packed_matrix<F>& w) {
  return w.in_features();
}
template <any_weight W>
std::size_t in_features(const W& w) {
  return detail::visit_form(w, [](const auto& m) { return in_features(m); });
}

// Throws shape_error unless the matrix's rows are contiguous.
template <class T>
void check_rows(std::string_view op, std::string_view argument, const view<const T, 2>& w) {
  check_view(op, argument, w, {w.extent(0), w.extent(1)});
}
// Rows of int8 are limited in length, so that their sums fit into int32.
inline constexpr std::size_t most_int8_columns = 131072;
inline void check_int8_columns(std::string_view op, std::string_view argument, std::size_t columns) {
  if (columns > most_int8_columns) {
    raise<shape_error>(
        detail::concatenate({op, ": ", argument, ": expected at most ", std::to_string(most_int8_columns),
                             " columns of int8, got ", std::to_string(columns)}));
  }
}
inline void check_rows(std::string_view op, std::string_view argument, const int8_matrix& w) {
  check_rows(op, argument, w.codes);
  check_view(op, argument, w.scale, {w.codes.extent(0)});
  check_int8_columns(op, argument, w.codes.extent(1));
}
template <class T>
void check_rows(std::string_view op, std::string_view argument, const packed_matrix<T>& w) {
  if constexpr (std::is_same_v<T, std::int8_t>) check_int8_columns(op, argument, w.in_features());
}
template <any_weight W>
void check_rows(std::string_view op, std::string_view argument, const W& w) {
  detail::visit_form(w, [&](const auto& m) { check_rows(op, argument, m); });
}

namespace detail {

template <class Arch>
void check_packing(std::string_view op, const weight& w) {
  detail::visit_form(w, [&](const auto& m) { check_packing<Arch>(op, m); });
}

}  // namespace detail

// --- Rows ------------------------------------------------------------------------------------------------------------

// Output rows [begin, begin + count). Packed matrices are cut at multiples of 32; other beginnings throw shape_error.
template <class T>
view<const T, 2> slice_rows(const view<const T, 2>& w, std::size_t begin, std::size_t count) {
  return w.slice(0, begin, count);
}
inline int8_matrix slice_rows(const int8_matrix& w, std::size_t begin, std::size_t count) {
  return {w.codes.slice(0, begin, count), w.scale.slice(0, begin, count)};
}
template <class F>
packed_matrix<F> slice_rows(const packed_matrix<F>& w, std::size_t begin, std::size_t count) {
  const std::size_t rows = packed_matrix<F>::panel_rows, in = w.in_features();
  if (begin % rows != 0) {
    raise<shape_error>("slice_rows: packed matrices are cut at multiples of " + std::to_string(rows) + ", got " +
                       std::to_string(begin));
  }
  check(begin <= w.out_features() && count <= w.out_features() - begin, "slice_rows", "rows: outside the matrix");
  const auto bytes = w.bytes().slice(0, begin / rows * w.panel_bytes(in), packed_matrix<F>::size(count, in));
  return {bytes, count, in, w.order()};
}
template <any_weight W>
weight slice_rows(const W& w, std::size_t begin, std::size_t count) {
  return detail::visit_form(w, [&](const auto& m) -> weight { return slice_rows(m, begin, count); });
}

// One row as float32, y[in_features(w)].
template <class T>
void dequantize_row(const view<const T, 2>& w, std::size_t row, float* y) {
  for (std::size_t i = 0; i < w.extent(1); ++i) {
    if constexpr (block_format<T>) {
      w.row(row)[i].decode(y + i * T::block_size);
    } else {
      y[i] = static_cast<float>(w.row(row)[i]);
    }
  }
}
inline void dequantize_row(const int8_matrix& w, std::size_t row, float* y) {
  for (std::size_t k = 0; k < w.codes.extent(1); ++k) y[k] = w.scale(row) * static_cast<float>(w.codes(row, k));
}
template <integer_format F>
void dequantize_row(const packed_matrix<F>& w, std::size_t row, float* y) {
  for (std::size_t g = 0; g < w.in_features() / F::group_size; ++g) {
    const code_group<F> group = read_group(w, row, g);
    for (const int q : group.q) *y++ = group.scale * static_cast<float>(q) - group.min;
  }
}
template <packable_element T>
void dequantize_row(const packed_matrix<T>& w, std::size_t row, float* y) {
  float scale = 1.0f;
  if constexpr (std::is_same_v<T, std::int8_t>) scale = read_scale(w, row);
  for (std::size_t k = 0; k < w.in_features(); ++k) y[k] = scale * read_element(w, row, k);
}
template <any_weight W>
void dequantize_row(const W& w, std::size_t row, float* y) {
  detail::visit_form(w, [&](const auto& m) { dequantize_row(m, row, y); });
}

// --- Memory ----------------------------------------------------------------------------------------------------------

// Bytes that one pass over the matrix reads.
template <class T>
std::size_t bytes(const view<const T, 2>& w) {
  return w.size() * sizeof(T);
}
inline std::size_t bytes(const int8_matrix& w) { return w.codes.size() + w.scale.size() * sizeof(float); }
template <class F>
std::size_t bytes(const packed_matrix<F>& w) {
  return w.bytes().size();
}
template <any_weight W>
std::size_t bytes(const W& w) {
  return detail::visit_form(w, [](const auto& m) { return bytes(m); });
}

// --- Packing ---------------------------------------------------------------------------------------------------------

// w into `bytes`, packed_matrix<std::int8_t>::size(out, in) of them; the panels are shared out among the threads of `be`.
// Throws shape_error.
template <host Backend>
packed_matrix<std::int8_t> pack(Backend& be, const int8_matrix& w, const view<std::uint8_t, 1>& bytes) {
  check_rows("pack", "w", w);
  const packed_matrix<std::int8_t> packed(bytes, out_features(w), in_features(w));
  return detail::pack_panels(be, packed, bytes, [&](std::uint8_t* panel, std::size_t first, std::size_t count) {
    detail::pack_elements(w.codes, first, count, panel);
    std::uint8_t* scales = panel + detail::packed_layout<std::int8_t>::scales(in_features(w));
    std::memcpy(scales, w.scale.data() + first, count * sizeof(float));
  });
}

// --- Feed-forward networks -------------------------------------------------------------------------------------------

// The three projections of a SwiGLU feed-forward network: gate and up [intermediate, hidden], down [hidden, intermediate].
struct ffn_weights {
  weight gate, up, down;
};

MOTE_END_NAMESPACE
