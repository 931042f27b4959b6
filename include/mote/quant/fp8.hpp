// fp8 as DeepSeek-V3 stores it: e4m3 with a float32 scale for each 128×128 block of a weight, and for each run of 128
// channels of an activation. Blocks at the edges are partial.
//
//   weight      s = amax / 448,             q = e4m3(w / s)      W[n, k] = q[n, k] · scale[n / 128, k / 128]
//   activation  s = max(amax, 1e-4) / 448,  q = e4m3(x / s)      x[t, k] = q[t, k] · scale[t, k / 128]
//
// A zero block of a weight uses s = 1. Checkpoints call the scale `weight_scale_inv`; it is multiplied nevertheless.
// Source: DeepSeek-V3 technical report (2024), section 3.3, and its inference code.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "../core/error.hpp"
#include "../core/types.hpp"
#include "../core/view.hpp"

MOTE_BEGIN_NAMESPACE

inline constexpr std::size_t fp8_block = 128;

inline std::size_t fp8_blocks(std::size_t n) { return (n + fp8_block - 1) / fp8_block; }

// w [out, in] to codes [out, in] and scale [⌈out / 128⌉, ⌈in / 128⌉]. Values must be finite. Throws shape_error.
inline void quantize_fp8(const view<const float, 2>& w, const view<f8_e4m3, 2>& codes, const view<float, 2>& scale) {
  check_view("quantize_fp8", "codes", codes, {w.extent(0), w.extent(1)});
  check_view("quantize_fp8", "scale", scale, {fp8_blocks(w.extent(0)), fp8_blocks(w.extent(1))});
  for (std::size_t block_row = 0; block_row < scale.extent(0); ++block_row) {
    const std::size_t n_end = std::min((block_row + 1) * fp8_block, w.extent(0));
    for (std::size_t block = 0; block < scale.extent(1); ++block) {
      const std::size_t k_end = std::min((block + 1) * fp8_block, w.extent(1));
      float amax = 0.0f;
      for (std::size_t n = block_row * fp8_block; n < n_end; ++n) {
        for (std::size_t k = block * fp8_block; k < k_end; ++k) amax = std::fmax(amax, std::fabs(w(n, k)));
      }
      const float s = amax / 448.0f > 0.0f ? amax / 448.0f : 1.0f;
      scale(block_row, block) = s;
      for (std::size_t n = block_row * fp8_block; n < n_end; ++n) {
        for (std::size_t k = block * fp8_block; k < k_end; ++k) codes(n, k) = f8_e4m3(w(n, k) / s);
      }
    }
  }
}

// codes [out, in] and scale [⌈out / 128⌉, ⌈in / 128⌉] to w [out, in]. Throws shape_error.
inline void dequantize_fp8(const view<const f8_e4m3, 2>& codes, const view<const float, 2>& scale,
                           const view<float, 2>& w) {
  check_view("dequantize_fp8", "codes", codes, {w.extent(0), w.extent(1)});
  check_view("dequantize_fp8", "scale", scale, {fp8_blocks(w.extent(0)), fp8_blocks(w.extent(1))});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t k = 0; k < w.extent(1); ++k) {
      w(n, k) = static_cast<float>(codes(n, k)) * scale(n / fp8_block, k / fp8_block);
    }
  }
}

// One row of n activations to codes [n] and scale [⌈n / 128⌉].
inline void quantize_fp8_row(const float* x, std::size_t n, f8_e4m3* codes, float* scale) {
  for (std::size_t begin = 0; begin < n; begin += fp8_block) {
    const std::size_t end = std::min(begin + fp8_block, n);
    float amax = 1e-4f;
    for (std::size_t i = begin; i < end; ++i) amax = std::fmax(amax, std::fabs(x[i]));
    const float s = amax / 448.0f;
    scale[begin / fp8_block] = s;
    for (std::size_t i = begin; i < end; ++i) codes[i] = f8_e4m3(x[i] / s);
  }
}

// x [tokens, channels] to codes [tokens, channels] and scale [tokens, ⌈channels / 128⌉]. Throws shape_error.
inline void quantize_fp8_activations(const view<const float, 2>& x, const view<f8_e4m3, 2>& codes,
                                     const view<float, 2>& scale) {
  check_view("quantize_fp8_activations", "x", x, {x.extent(0), x.extent(1)});
  check_view("quantize_fp8_activations", "codes", codes, {x.extent(0), x.extent(1)});
  check_view("quantize_fp8_activations", "scale", scale, {x.extent(0), fp8_blocks(x.extent(1))});
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    quantize_fp8_row(x.row(t), x.extent(1), codes.row(t), scale.row(t));
  }
}

MOTE_END_NAMESPACE
