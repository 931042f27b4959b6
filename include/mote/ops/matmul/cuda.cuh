#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../../core/cuda.cuh"
#include "../../core/output.hpp"
#include "../../core/types.hpp"
#include "../../core/view.hpp"
#include "../../quant/weight.hpp"
#include "matmul.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

MOTE_DEVICE inline float multiply_add(float x, float w, float sum) { return std::fma(x, w, sum); }
MOTE_DEVICE inline float multiply_add(float x, bf16 w, float sum) { return std::fma(x, static_cast<float>(w), sum); }
MOTE_DEVICE inline std::int32_t multiply_add(std::int8_t x, std::int8_t w, std::int32_t sum) { return sum + x * w; }

// Each warp makes R outputs for C tokens; its lanes lie along k and share a strip of the C tokens in shared memory with
// the block's other warps. An output's sum over k has one order whatever R and C are: a token's result has the same bits
// alone (C = 1, a warp for each weight row) and in a batch.
//
//   y[t, n] (+)= scale_x[t] · scale_w[n] · Σ_k x[t, k] · w[n, k]      the scales of integer codes only
template <class X, class W, unsigned R, unsigned C>
struct matmul_kernel {
  static constexpr unsigned threads = 128, rows_of_block = threads / warp_size * R, strip = 256;
  static constexpr bool scaled = std::is_same_v<W, std::int8_t>;
  using sum_type = std::conditional_t<scaled, std::int32_t, float>;
  struct shared_memory {
    X x[C][strip];
  };

  view<const X, 2> x;
  view<const W, 2> w;
  view<float, 2> y;
  bool accumulate;
  view<const float, 1> scale_x, scale_w;

  MOTE_HD std::size_t token_tiles() const { return (x.extent(0) + C - 1) / C; }
  MOTE_HD std::size_t blocks() const { return token_tiles() * ((w.extent(0) + rows_of_block - 1) / rows_of_block); }

  template <class Context>
  MOTE_DEVICE void operator()(const Context& ctx, shared_memory& memory) const {
    // Neighbouring blocks read the same weights, which the second finds in the cache.
    const std::size_t token = ctx.block() % token_tiles() * C;
    const std::size_t row = ctx.block() / token_tiles() * rows_of_block + ctx.warp() * R;
    const std::size_t in = x.extent(1);

    sum_type sums[R][C] = {};
    for (std::size_t begin = 0; begin < in; begin += strip) {
      const unsigned count = static_cast<unsigned>(in - begin < strip ? in - begin : strip);
      MOTE_UNROLL
      for (unsigned c = 0; c < C; ++c) {
        for (unsigned k = ctx.thread(); k < count; k += threads) {
          memory.x[c][k] = token + c < x.extent(0) ? x.row(token + c)[begin + k] : X{};
        }
      }
      ctx.sync();
      for (unsigned k = ctx.lane(); k < count; k += warp_size) {
        W weights[R];
        MOTE_UNROLL
        for (unsigned r = 0; r < R; ++r) weights[r] = row + r < w.extent(0) ? w.row(row + r)[begin + k] : W{};
        MOTE_UNROLL
        for (unsigned c = 0; c < C; ++c) {
          MOTE_UNROLL
          for (unsigned r = 0; r < R; ++r) sums[r][c] = multiply_add(memory.x[c][k], weights[r], sums[r][c]);
        }
      }
      ctx.sync();
    }

    MOTE_UNROLL
    for (unsigned r = 0; r < R; ++r) {
      MOTE_UNROLL
      for (unsigned c = 0; c < C; ++c) {
        const sum_type sum = warp_reduce(ctx, sums[r][c], take_sum{});
        const std::size_t t = token + c, n = row + r;
        if (ctx.lane() != (r * C + c) % warp_size || t >= x.extent(0) || n >= w.extent(0)) continue;
        float value = static_cast<float>(sum);
        if constexpr (scaled) value = scale_x(t) * scale_w(n) * value;
        y(t, n) = accumulate ? y(t, n) + value : value;
      }
    }
  }
};

// One block a token: the codes of quantize_int8_row.
struct quantize_tokens_kernel {
  static constexpr unsigned threads = 128;
  struct shared_memory {
    float largest[threads / warp_size];
  };

  view<const float, 2> x;
  view<std::int8_t, 2> codes;
  view<float, 1> scale;

  template <class Context>
  MOTE_DEVICE void operator()(const Context& ctx, shared_memory& memory) const {
    const float* in = x.row(ctx.block());
    float largest = 0.0f;
    for (std::size_t i = ctx.thread(); i < x.extent(1); i += threads) {
      largest = std::isfinite(in[i]) ? std::fmax(largest, std::fabs(in[i])) : INFINITY;
    }
    largest = block_reduce(ctx, largest, memory.largest, take_larger{});
    const bool finite = std::isfinite(largest);
    const float s = !finite ? NAN : largest / 127.0f > 0.0f ? largest / 127.0f : 1.0f;
    if (ctx.thread() == 0) scale(ctx.block()) = s;
    for (std::size_t i = ctx.thread(); i < x.extent(1); i += threads) {
      codes(ctx.block(), i) =
          finite ? static_cast<std::int8_t>(std::fmin(std::fmax(std::nearbyint(in[i] / s), -127.0f), 127.0f))
                 : std::int8_t{0};
    }
  }
};

template <launches_kernels Backend, class X, class W>
void launch_matmul(Backend& be, view<const X, 2> x, view<const W, 2> w, view<float, 2> y, output mode,
                   view<const float, 1> scale_x = {}, view<const float, 1> scale_w = {}) {
  const auto launch = [&](const auto& kernel) { be.launch("matmul", kernel.blocks(), kernel); };
  const bool accumulate = mode == output::accumulate;
  if (x.extent(0) == 1) {
    launch(matmul_kernel<X, W, 1, 1>{x, w, y, accumulate, scale_x, scale_w});
  } else {
    launch(matmul_kernel<X, W, 4, 8>{x, w, y, accumulate, scale_x, scale_w});
  }
}

}  // namespace detail

template <launches_kernels Backend, class T>
void matmul_impl(Backend& be, view<const float, 2> x, const view<const T, 2>& w, view<float, 2> y, output mode) {
  detail::launch_matmul(be, x, w, y, mode);
}

template <launches_kernels Backend>
void matmul_impl(Backend& be, view<const float, 2> x, const int8_matrix& w, view<float, 2> y, output mode) {
  auto scope = be.scope();
  const auto codes = scope.template tensor<std::int8_t>(x.extent(0), x.extent(1));
  const auto scale = scope.template tensor<float>(x.extent(0));
  be.launch("matmul", x.extent(0), detail::quantize_tokens_kernel{x, codes, scale});
  detail::launch_matmul<Backend, std::int8_t, std::int8_t>(be, codes, w.codes, y, mode, scale, w.scale);
}

MOTE_END_NAMESPACE
