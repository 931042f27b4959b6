#pragma once

#include <cstddef>

#include "../../core/simd.hpp"
#include "../../core/vector_math.hpp"
#include "../../core/view.hpp"

MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor>
void swiglu_impl(simd<Arch, Executor>& be, view<const float, 2> gate, view<const float, 2> up,
                 view<float, 2> y) noexcept {
  using vector = batch<float, Arch>;
  const std::size_t n = y.extent(1), grain = 1 + std::size_t{16384} / (n + 1);
  be.parallel_for(y.extent(0), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      const float *g = gate.row(t), *u = up.row(t);
      float* out = y.row(t);
      detail::for_each_vector<Arch>(n, [&](std::size_t i, auto load, auto store) {
        const vector a = load(g + i);
        store(out + i, a / (vector(1.0f) + detail::exp_vector<Arch>(-a)) * load(u + i));
      });
    }
  });
}

MOTE_END_NAMESPACE
