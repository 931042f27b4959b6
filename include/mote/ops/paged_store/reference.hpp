#pragma once

#include <cstddef>

#include "../../core/backend.hpp"
#include "../../core/paged.hpp"
#include "../../quant/rows.hpp"

MOTE_BEGIN_NAMESPACE

template <class T>
void paged_store_impl(reference&, view<const float, 2> x, const paged_rows<T>& cache, std::size_t position,
                      std::size_t element) noexcept {
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    encode_row(x.row(t), x.extent(1), cache.row(position + t) + element);
  }
}

MOTE_END_NAMESPACE
