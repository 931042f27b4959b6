#pragma once

#include <cstddef>

#include "../../core/backend.hpp"
#include "../../core/paged.hpp"
#include "../../quant/rows.hpp"

MOTE_BEGIN_NAMESPACE

template <class T>
void paged_load_impl(reference&, const paged_rows<const T>& cache, std::size_t element, view<float, 2> y) noexcept {
  for (std::size_t i = 0; i < y.extent(0); ++i) decode_row(cache.row(i) + element, y.extent(1), y.row(i));
}

MOTE_END_NAMESPACE
