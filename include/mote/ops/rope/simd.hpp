#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "../../core/simd.hpp"
#include "../../core/vector_math.hpp"
#include "../../core/view.hpp"
#include "pairing.hpp"
#include "reference.hpp"

MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor>
void rope_table_impl(simd<Arch, Executor>& be, std::span<const std::int32_t> positions, std::span<const float> inv_freq,
                     float attention_factor, view<float, 2> cos, view<float, 2> sin) noexcept {
  const std::size_t grain = 1 + std::size_t{512} / (inv_freq.size() + 1);
  be.parallel_for(positions.size(), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      rope_table_row(static_cast<float>(positions[t]), inv_freq, attention_factor, cos.row(t), sin.row(t));
    }
  });
}

namespace detail {

// The two elements of every pair (2i, 2i + 1) of lanes exchanged.
template <class Arch>
batch<float, Arch> swap_pairs(const batch<float, Arch>& x) {
  const auto pairs = bits_as<std::uint64_t>(x);
  return bits_as<float>((pairs << 32) | (pairs >> 32));
}

// One run of channels of all heads of a token: y = x · [c0 c0 c1 c1 …] + swapped x · [-s0 s0 -s1 s1 …].
template <class Arch>
void rope_interleaved(view<const float, 2> x, const float* cos, const float* sin, view<float, 2> y) {
  using vector = batch<float, Arch>;
  constexpr std::size_t run = 64;
  const std::size_t heads = x.extent(0), dim = x.extent(1);
  for (std::size_t first = 0; first < dim; first += run) {
    const std::size_t n = dim - first < run ? dim - first : run;
    float c[run] = {}, s[run] = {};
    for (std::size_t i = 0; i < n / 2; ++i) {
      c[2 * i] = c[2 * i + 1] = cos[first / 2 + i];
      s[2 * i + 1] = sin[first / 2 + i];
      s[2 * i] = -s[2 * i + 1];
    }
    for (std::size_t h = 0; h < heads; ++h) {
      const float* in = x.row(h) + first;
      float* out = y.row(h) + first;
      for_each_vector<Arch>(n, [&](std::size_t i, auto load, auto store) {
        const vector v = load(in + i);
        store(out + i, fused_multiply_add(v, load(c + i), swap_pairs<Arch>(v) * load(s + i)));
      });
    }
  }
}

template <class Arch>
void rope_half_split(view<const float, 2> x, const float* cos, const float* sin, view<float, 2> y) {
  using vector = batch<float, Arch>;
  const std::size_t half = x.extent(1) / 2;
  for (std::size_t h = 0; h < x.extent(0); ++h) {
    const float* in = x.row(h);
    float* out = y.row(h);
    for_each_vector<Arch>(half, [&](std::size_t i, auto load, auto store) {
      const vector a = load(in + i), b = load(in + half + i), c = load(cos + i), s = load(sin + i);
      store(out + i, fused_multiply_add(a, c, -(b * s)));
      store(out + half + i, fused_multiply_add(b, c, a * s));
    });
  }
}

}  // namespace detail

template <class Arch, class Executor>
void rope_impl(simd<Arch, Executor>& be, view<const float, 3> x, view<const float, 2> cos, view<const float, 2> sin,
               rope_pairing pairing, view<float, 3> y) {
  const std::size_t tokens = x.extent(0), heads = x.extent(1), dim = x.extent(2), half = dim / 2;
  const std::size_t grain = 1 + std::size_t{16384} / (heads * dim + 1);
  // A pair read interleaved and written half-split lands where other pairs have yet to be read.
  const bool reorder = pairing == rope_pairing::interleaved_to_half_split;
  auto scope = be.scope();
  const auto rotated = scope.template tensor<float>(reorder ? tokens : 0, dim);
  be.parallel_for(tokens, grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      if (pairing == rope_pairing::half_split) {
        detail::rope_half_split<Arch>(x[t], cos.row(t), sin.row(t), y[t]);
      } else if (!reorder) {
        detail::rope_interleaved<Arch>(x[t], cos.row(t), sin.row(t), y[t]);
      } else {
        float* head = rotated.row(t);
        for (std::size_t h = 0; h < heads; ++h) {
          detail::rope_interleaved<Arch>(x[t].slice(0, h, 1), cos.row(t), sin.row(t), view<float, 2>(head, 1, dim));
          float* out = y[t].row(h);
          for (std::size_t i = 0; i < half; ++i) {
            out[i] = head[2 * i];
            out[i + half] = head[2 * i + 1];
          }
        }
      }
    }
  });
}

MOTE_END_NAMESPACE
