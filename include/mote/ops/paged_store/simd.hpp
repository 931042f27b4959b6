#pragma once

#include <algorithm>
#include <cstddef>

#include "../../core/paged.hpp"
#include "../../core/simd.hpp"

MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor>
void paged_store_impl(simd<Arch, Executor>& be, view<const float, 2> x, const paged_rows<float>& cache,
                      std::size_t position, std::size_t column) noexcept {
  const std::size_t n = x.extent(1), grain = 1 + std::size_t{32768} / (n + 1);
  be.parallel_for(x.extent(0), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) std::copy_n(x.row(t), n, cache.row(position + t) + column);
  });
}

MOTE_END_NAMESPACE
