#pragma once

#include <cstddef>

#include "../../core/backend.hpp"
#include "../../core/paged.hpp"

MOTE_BEGIN_NAMESPACE

inline void paged_load_impl(reference&, const paged_rows<const float>& cache, std::size_t column,
                            view<float, 2> y) noexcept {
  for (std::size_t i = 0; i < y.extent(0); ++i) {
    const float* row = cache.row(i) + column;
    for (std::size_t j = 0; j < y.extent(1); ++j) y(i, j) = row[j];
  }
}

MOTE_END_NAMESPACE
