#pragma once

#include <cmath>
#include <cstddef>

#include "../../core/simd.hpp"
#include "../../core/vector_math.hpp"
#include "../../core/view.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

template <class Arch>
float maximum(const float* x, std::size_t n) {
  using vector = batch<float, Arch>;
  vector best[4] = {vector(-INFINITY), vector(-INFINITY), vector(-INFINITY), vector(-INFINITY)};
  std::size_t i = 0;
  for (; i + 4 * vector::size <= n; i += 4 * vector::size) {
    for (std::size_t j = 0; j < 4; ++j) best[j] = xsimd::max(best[j], vector::load_unaligned(x + i + j * vector::size));
  }
  for_each_vector<Arch>(
      n - i, [&](std::size_t k, auto load, auto) { best[0] = xsimd::max(best[0], load(x + i + k)); }, -INFINITY);
  return largest<Arch>(xsimd::max(xsimd::max(best[0], best[1]), xsimd::max(best[2], best[3])));
}

}  // namespace detail

template <class Arch, class Executor>
void softmax_impl(simd<Arch, Executor>& be, view<const float, 2> x, view<float, 2> y) noexcept {
  using vector = batch<float, Arch>;
  const std::size_t n = x.extent(1), grain = 1 + std::size_t{8192} / (n + 1);
  const std::size_t ahead = detail::rows_ahead(n);
  be.parallel_for(x.extent(0), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      const float* in = x.row(r);
      float* out = y.row(r);
      const vector shift(detail::maximum<Arch>(in, n));
      vector total(0.0f);
      // All passes read from the cache: a later row comes in meanwhile.
      const float* later = r + ahead < end ? x.row(r + ahead) : in;
      const auto exponentiate = [&](std::size_t i, auto load, auto store) {
        detail::prefetch(later, i);
        const vector e = detail::exp_nonpositive<Arch>(load(in + i) - shift);
        store(out + i, e);
        total += e;
      };
      // Lanes past the row are exp(-infinity) = 0 in the sum.
      detail::for_each_vector<Arch>(n, exponentiate, -INFINITY);
      const vector scale(1.0f / sum(total));
      detail::for_each_vector<Arch>(
          n, [&](std::size_t i, auto load, auto store) { store(out + i, load(out + i) * scale); });
    }
  });
}

MOTE_END_NAMESPACE
