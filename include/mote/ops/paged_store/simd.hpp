#pragma once

#include <cstddef>

#include "../../core/paged.hpp"
#include "../../core/simd.hpp"
#include "../../quant/rows.hpp"

MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor, class T>
void paged_store_impl(simd<Arch, Executor>& be, view<const float, 2> x, const paged_rows<T>& cache,
                      std::size_t position, std::size_t element) noexcept {
  const std::size_t n = x.extent(1), grain = 1 + std::size_t{32768} / (n + 1);
  be.parallel_for(x.extent(0), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) encode_row(x.row(t), n, cache.row(position + t) + element);
  });
}

MOTE_END_NAMESPACE
