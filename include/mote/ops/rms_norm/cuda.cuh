#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../../core/cuda.cuh"
#include "../../core/view.hpp"
#include "rms_norm.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// One block a row, four values a thread and step. Values are summed in the same order whether or not the row is aligned.
struct rms_norm_kernel {
  static constexpr unsigned threads = 128;
  struct shared_memory {
    float squares[threads / warp_size];
  };

  view<const float, 2> x;
  view<const float, 1> gain;
  float eps;
  view<float, 2> y;

  template <class Context>
  MOTE_DEVICE void operator()(const Context& ctx, shared_memory& memory) const {
    const float* in = x.row(ctx.block());
    float* out = y.row(ctx.block());
    const std::size_t n = x.extent(1), whole = n / 4 * 4, first = ctx.thread() * std::size_t{4};
    const bool aligned = reinterpret_cast<std::uintptr_t>(in) % 16 == 0;
    const auto quad = [&](std::size_t i) {
      return aligned ? ctx.load4(in + i) : float_quad{{in[i], in[i + 1], in[i + 2], in[i + 3]}};
    };

    float squares = 0.0f;
    for (std::size_t i = first; i < whole; i += 4 * threads) {
      const float_quad q = quad(i);
      for (const float v : q.values) squares += v * v;
    }
    if (const std::size_t i = whole + ctx.thread(); i < n) squares += in[i] * in[i];
    squares = block_reduce(ctx, squares, memory.squares, take_sum{});
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);

    const auto store = [&](std::size_t i, float v) { out[i] = v * scale * (gain.empty() ? 1.0f : gain(i)); };
    for (std::size_t i = first; i < whole; i += 4 * threads) {
      const float_quad q = quad(i);
      for (unsigned j = 0; j < 4; ++j) store(i + j, q.values[j]);
    }
    if (const std::size_t i = whole + ctx.thread(); i < n) store(i, in[i]);
  }
};

}  // namespace detail

template <launches_kernels Backend>
void rms_norm_impl(Backend& be, view<const float, 2> x, view<const float, 1> gain, float eps, view<float, 2> y) {
  be.launch("rms_norm", x.extent(0), detail::rms_norm_kernel{x, gain, eps, y});
}

MOTE_END_NAMESPACE
