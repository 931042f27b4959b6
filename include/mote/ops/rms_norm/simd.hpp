#pragma once

#include <cmath>
#include <cstddef>

#include "../../core/simd.hpp"
#include "../../core/vector_math.hpp"
#include "../../core/view.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Σ x². Four sums hide the latency of the additions.
template <class Arch>
float sum_of_squares(const float* x, std::size_t n) {
  using vector = batch<float, Arch>;
  vector sums[4] = {vector(0.0f), vector(0.0f), vector(0.0f), vector(0.0f)};
  std::size_t i = 0;
  for (; i + 4 * vector::size <= n; i += 4 * vector::size) {
    for (std::size_t j = 0; j < 4; ++j) {
      const vector v = vector::load_unaligned(x + i + j * vector::size);
      sums[j] = fused_multiply_add(v, v, sums[j]);
    }
  }
  for_each_vector<Arch>(n - i, [&](std::size_t k, auto load, auto) {
    const vector v = load(x + i + k);
    sums[0] = fused_multiply_add(v, v, sums[0]);
  });
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace detail

template <class Arch, class Executor>
void rms_norm_impl(simd<Arch, Executor>& be, view<const float, 2> x, view<const float, 1> gain, float eps,
                   view<float, 2> y) noexcept {
  using vector = batch<float, Arch>;
  const std::size_t n = x.extent(1), grain = 1 + std::size_t{16384} / (n + 1);
  const std::size_t ahead = detail::rows_ahead(n);
  const bool weighted = !gain.empty();
  be.parallel_for(x.extent(0), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      const float *in = x.row(t), *w = gain.data();
      float* out = y.row(t);
      const float squares = detail::sum_of_squares<Arch>(in, n);
      const vector scale(1.0f / std::sqrt(squares / static_cast<float>(n) + eps));
      // Both passes read from the cache: a later row comes in meanwhile.
      const float* later = t + ahead < end ? x.row(t + ahead) : in;
      detail::for_each_vector<Arch>(n, [&](std::size_t i, auto load, auto store) {
        detail::prefetch(later, i);
        const vector v = load(in + i) * scale;
        store(out + i, weighted ? v * load(w + i) : v);
      });
    }
  });
}

MOTE_END_NAMESPACE
