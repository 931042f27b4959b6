#pragma once

#include <cstddef>

#include "../../core/backend.hpp"
#include "../../core/paged.hpp"

MOTE_BEGIN_NAMESPACE

inline void paged_store_impl(reference&, view<const float, 2> x, const paged_rows<float>& cache, std::size_t position,
                             std::size_t column) noexcept {
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    float* row = cache.row(position + t) + column;
    for (std::size_t i = 0; i < x.extent(1); ++i) row[i] = x(t, i);
  }
}

MOTE_END_NAMESPACE
