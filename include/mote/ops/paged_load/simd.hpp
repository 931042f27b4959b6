#pragma once

#include <cstddef>

#include "../../core/paged.hpp"
#include "../../core/simd.hpp"
#include "../../quant/rows.hpp"

MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor, class T>
void paged_load_impl(simd<Arch, Executor>& be, const paged_rows<const T>& cache, std::size_t element,
                     view<float, 2> y) noexcept {
  const std::size_t n = y.extent(1), grain = 1 + std::size_t{32768} / (n + 1);
  be.parallel_for(y.extent(0), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) detail::decode_row<Arch>(cache.row(i) + element, n, y.row(i));
  });
}

MOTE_END_NAMESPACE
