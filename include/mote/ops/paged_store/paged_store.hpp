// Writes rows into a paged cache: cache row (position + t), columns [column, column + n) = x[t, :].
//
// x: [tokens, n], rows may be strided. The cache must hold position + tokens rows of at least column + n columns.
// Throws shape_error otherwise, and where the block table does not cover the cache's length.
#pragma once

#include "../../core/error.hpp"
#include "../../core/paged.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend>
void paged_store(Backend& be, view<const float, 2> x, const paged_rows<float>& cache, std::size_t position,
                 std::size_t column) {
  check_pages("paged_store", "cache", cache);
  check(position <= cache.length && x.extent(0) <= cache.length - position, "paged_store",
        "cache: too few rows for position + tokens");
  check(column <= cache.width() && x.extent(1) <= cache.width() - column, "paged_store",
        "cache: too few columns for x at `column`");
  paged_store_impl(be, x, cache, position, column);
}

MOTE_END_NAMESPACE
