#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "../../core/simd.hpp"
#include "../../quant/weight.hpp"

MOTE_BEGIN_NAMESPACE

// A few rows are copied or converted: the compiler's own vectors are enough.
template <class Arch, class Executor>
void embedding_impl(simd<Arch, Executor>& be, std::span<const std::int32_t> ids, const weight& table,
                    view<float, 2> y) noexcept {
  const std::size_t n = y.extent(1), grain = 1 + std::size_t{32768} / (n + 1);
  be.parallel_for(ids.size(), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      dequantize_row(table, static_cast<std::size_t>(ids[t]), y.row(t));
    }
  });
}

MOTE_END_NAMESPACE
