// Writes rows into a paged cache: cache row (position + t), columns [column, column + n) = x[t, :].
//
// x: [tokens, n], rows may be strided. The cache must hold position + tokens rows of at least column + n columns; where
// its rows are of another form than float32 (quant/rows.hpp), x is rounded to that, and both columns are whole blocks.
// Throws shape_error otherwise, and where the block table does not cover the cache's length.
#pragma once

#include <variant>

#include "../../core/error.hpp"
#include "../../core/paged.hpp"
#include "../../quant/rows.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend, row_element T>
void paged_store(Backend& be, view<const float, 2> x, const paged_rows<T>& cache, std::size_t position,
                 std::size_t column) {
  constexpr row_format format = row_format::of<T>();
  check_view("paged_store", "x", x, {x.extent(0), x.extent(1)});
  check_pages("paged_store", "cache", cache);
  check(position <= cache.length && x.extent(0) <= cache.length - position, "paged_store",
        "cache: too few rows for position + tokens");
  check(column <= columns(cache) && x.extent(1) <= columns(cache) - column, "paged_store",
        "cache: too few columns for x at `column`");
  check_whole_blocks("paged_store", "column", column, format);
  check_whole_blocks("paged_store", "x", x.extent(1), format);
  paged_store_impl(be, x, cache, position, column / format.block_size);
}

template <backend Backend>
void paged_store(Backend& be, view<const float, 2> x, const cache_rows& cache, std::size_t position,
                 std::size_t column) {
  std::visit([&](const auto& rows) { paged_store(be, x, rows, position, column); }, cache);
}

MOTE_END_NAMESPACE
