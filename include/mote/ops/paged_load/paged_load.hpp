// Reads rows of a paged cache into one matrix: y[i, :] = cache row i, columns [column, column + n), i < length.
//
// y: [length, n], rows may be strided; both column and n are whole blocks of the form of the cache's rows (quant/rows.hpp).
// Throws shape_error when they are not, when the cache's length or width does not fit or its block table does not cover
// its length.
#pragma once

#include <variant>

#include "../../core/error.hpp"
#include "../../core/paged.hpp"
#include "../../quant/rows.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend, class T>
  requires row_element<std::remove_const_t<T>>
void paged_load(Backend& be, const paged_rows<T>& cache, std::size_t column, view<float, 2> y) {
  constexpr row_format format = row_format::of<std::remove_const_t<T>>();
  check_view("paged_load", "y", y, {cache.length, y.extent(1)});
  check_pages("paged_load", "cache", cache);
  check(column <= columns(cache) && y.extent(1) <= columns(cache) - column, "paged_load",
        "cache: too few columns for y at `column`");
  check_whole_blocks("paged_load", "column", column, format);
  check_whole_blocks("paged_load", "y", y.extent(1), format);
  const paged_rows<const T> rows = cache;
  paged_load_impl(be, rows, column / format.block_size, y);
}

template <backend Backend>
void paged_load(Backend& be, const cache_rows& cache, std::size_t column, view<float, 2> y) {
  std::visit([&](const auto& rows) { paged_load(be, rows, column, y); }, cache);
}

MOTE_END_NAMESPACE
