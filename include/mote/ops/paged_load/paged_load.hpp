// Reads rows of a paged cache into one matrix: y[i, :] = cache row i, columns [column, column + n), i < length.
//
// y: [length, n], rows may be strided. Throws shape_error when the cache's length or width does not fit or
// its block table does not cover its length.
#pragma once

#include "../../core/error.hpp"
#include "../../core/paged.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend>
void paged_load(Backend& be, const paged_rows<const float>& cache, std::size_t column, view<float, 2> y) {
  check_view("paged_load", "y", y, {cache.length, y.extent(1)});
  check_pages("paged_load", "cache", cache);
  check(column <= cache.width() && y.extent(1) <= cache.width() - column, "paged_load",
        "cache: too few columns for y at `column`");
  paged_load_impl(be, cache, column, y);
}

MOTE_END_NAMESPACE
