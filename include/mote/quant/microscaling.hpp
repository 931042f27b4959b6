// The safetensors layouts of MXFP4 and NVFP4, to and from the blocks that GGUF stores and matmul reads.
//
// In safetensors e2m1 codes stand two a byte, the even element low, with the scales in a tensor of their own:
//
//   MXFP4 (gpt-oss)  bytes [rows, columns / 2], e8m0 scales [rows, columns / 32]         x = e2m1 · 2^(scale - 127)
//   NVFP4            bytes [rows, columns / 2], e4m3 scales [rows, columns / 16], a
//                    float32 scale g of the whole tensor                                 x = e2m1 · e4m3 · g
//
// An nvfp4 block knows nothing of g: who multiplies by the blocks multiplies the result by g.
// Source: OCP Microscaling Formats (MX) v1.0; gpt-oss and NVIDIA ModelOpt checkpoints.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../core/error.hpp"
#include "../core/types.hpp"
#include "../core/view.hpp"
#include "formats/mxfp4.hpp"
#include "formats/nvfp4.hpp"

MOTE_BEGIN_NAMESPACE

// The published MX rounding of 32 finite values: as mxfp4::encode, which follows GGUF, but ties go to the even code and
// zeros keep their sign.
inline mxfp4 encode_mx(const float* x) {
  mxfp4 block = mxfp4::encode(x);
  const float unit = static_cast<float>(block.e);
  std::uint8_t codes[mxfp4::block_size];
  for (std::size_t i = 0; i < mxfp4::block_size; ++i) codes[i] = f4_e2m1(x[i] / unit).bits;
  detail::pack_nibbles(codes, block.q);
  return block;
}

// 64 finite values for the tensor's scale g: block scale e4m3(amax / 6 / g), codes e2m1(x / (scale g)), ties to even.
inline nvfp4 encode_nvfp4(const float* x, float g) {
  nvfp4 block{};
  for (std::size_t group = 0; group < 4; ++group) {
    const float* v = x + group * nvfp4::group_size;
    const f8_e4m3 scale(detail::largest_magnitude(v, nvfp4::group_size) / 6.0f / g);
    block.scales[group] = scale.bits;
    const float unit = static_cast<float>(scale) * g;
    if (!(unit > 0.0f)) continue;
    for (std::size_t i = 0; i < nvfp4::group_size; ++i) {
      block.q[group * 8 + i % 8] |= static_cast<std::uint8_t>(f4_e2m1(v[i] / unit).bits << (i / 8 * 4));
    }
  }
  return block;
}

// The tensor's scale that lets the largest element take the largest code: amax / (448 · 6); 1 for a zero tensor.
inline float nvfp4_tensor_scale(const view<const float, 2>& w) {
  float amax = 0.0f;
  for (std::size_t n = 0; n < w.extent(0); ++n) amax = std::max(amax, detail::largest_magnitude(w.row(n), w.extent(1)));
  const float g = amax / (448.0f * 6.0f);
  return g > 0.0f ? g : 1.0f;
}

namespace detail {

template <class F, class Bytes, class Scales, class Blocks>
void check_microscaling(std::string_view op, const Bytes& bytes, const Scales& scales, const Blocks& blocks) {
  const std::size_t rows = blocks.extent(0), columns = blocks.extent(1) * F::block_size;
  check_view(op, "bytes", bytes, {rows, columns / 2});
  check_view(op, "scales", scales, {rows, columns / F::group_size});
  check_view(op, "blocks", blocks, {rows, blocks.extent(1)});
}

// N codes, the even element low, to nibbles of which the first half of the elements is low; and back.
template <std::size_t N>
void halves_of_pairs(const std::uint8_t* pairs, std::uint8_t* halves) {
  const auto code = [&](std::size_t i) { return static_cast<unsigned>(pairs[i / 2] >> (i % 2 * 4)) & 15u; };
  for (std::size_t i = 0; i < N / 2; ++i) halves[i] = static_cast<std::uint8_t>(code(i) | code(i + N / 2) << 4);
}
template <std::size_t N>
void pairs_of_halves(const std::uint8_t* halves, std::uint8_t* pairs) {
  const auto code = [&](std::size_t i) {
    return static_cast<unsigned>(halves[i % (N / 2)] >> (i / (N / 2) * 4)) & 15u;
  };
  for (std::size_t i = 0; i < N / 2; ++i) pairs[i] = static_cast<std::uint8_t>(code(2 * i) | code(2 * i + 1) << 4);
}

}  // namespace detail

// bytes [rows, columns / 2] and scales [rows, columns / 32] to blocks [rows, columns / 32], and back. Throws shape_error.
inline void load_mxfp4(const view<const std::uint8_t, 2>& bytes, const view<const f8_e8m0, 2>& scales,
                       const view<mxfp4, 2>& blocks) {
  detail::check_microscaling<mxfp4>("load_mxfp4", bytes, scales, blocks);
  for (std::size_t r = 0; r < blocks.extent(0); ++r) {
    for (std::size_t b = 0; b < blocks.extent(1); ++b) {
      blocks(r, b).e = scales(r, b);
      detail::halves_of_pairs<32>(bytes.row(r) + 16 * b, blocks(r, b).q);
    }
  }
}
inline void store_mxfp4(const view<const mxfp4, 2>& blocks, const view<std::uint8_t, 2>& bytes,
                        const view<f8_e8m0, 2>& scales) {
  detail::check_microscaling<mxfp4>("store_mxfp4", bytes, scales, blocks);
  for (std::size_t r = 0; r < blocks.extent(0); ++r) {
    for (std::size_t b = 0; b < blocks.extent(1); ++b) {
      scales(r, b) = blocks(r, b).e;
      detail::pairs_of_halves<32>(blocks(r, b).q, bytes.row(r) + 16 * b);
    }
  }
}

// bytes [rows, columns / 2] and scales [rows, columns / 16] to blocks [rows, columns / 64], and back; the tensor's scale
// stays outside. Throws shape_error.
inline void load_nvfp4(const view<const std::uint8_t, 2>& bytes, const view<const f8_e4m3, 2>& scales,
                       const view<nvfp4, 2>& blocks) {
  detail::check_microscaling<nvfp4>("load_nvfp4", bytes, scales, blocks);
  for (std::size_t r = 0; r < blocks.extent(0); ++r) {
    for (std::size_t g = 0; g < scales.extent(1); ++g) {
      blocks(r, g / 4).scales[g % 4] = scales(r, g).bits;
      detail::halves_of_pairs<16>(bytes.row(r) + 8 * g, blocks(r, g / 4).q + 8 * (g % 4));
    }
  }
}
inline void store_nvfp4(const view<const nvfp4, 2>& blocks, const view<std::uint8_t, 2>& bytes,
                        const view<f8_e4m3, 2>& scales) {
  detail::check_microscaling<nvfp4>("store_nvfp4", bytes, scales, blocks);
  for (std::size_t r = 0; r < blocks.extent(0); ++r) {
    for (std::size_t g = 0; g < scales.extent(1); ++g) {
      scales(r, g) = f8_e4m3::from_bits(blocks(r, g / 4).scales[g % 4]);
      detail::pairs_of_halves<16>(blocks(r, g / 4).q + 8 * (g % 4), bytes.row(r) + 8 * g);
    }
  }
}

MOTE_END_NAMESPACE
