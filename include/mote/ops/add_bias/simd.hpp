#pragma once

#include <cstddef>

#include "../../core/simd.hpp"
#include "../../core/view.hpp"

MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor>
void add_bias_impl(simd<Arch, Executor>& be, view<const float, 1> bias, view<float, 2> y) noexcept {
  using vector = batch<float, Arch>;
  const std::size_t n = y.extent(1), whole = n / vector::size * vector::size;
  const std::size_t grain = 1 + std::size_t{16384} / (n + 1);
  be.parallel_for(y.extent(0), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      float* row = y.row(t);
      for (std::size_t i = 0; i < whole; i += vector::size) {
        (vector::load_unaligned(row + i) + vector::load_unaligned(bias.data() + i)).store_unaligned(row + i);
      }
      for (std::size_t i = whole; i < n; ++i) row[i] += bias.data()[i];
    }
  });
}

MOTE_END_NAMESPACE
