// Rows of activations in the forms that weights multiply, made once for all matrices and units that read them.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <variant>

#include "../../core/int8_dot.hpp"
#include "../../core/simd.hpp"
#include "../../core/view.hpp"
#include "../../quant/activation_block.hpp"
#include "../../quant/packed.hpp"
#include "../../quant/weight.hpp"
#include "activation_tile.hpp"
#include "element_kernel.hpp"
#include "int8_kernel.hpp"
#include "tile_sum_kernel.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Whether packed bf16 is multiplied as such, not as float32.
template <class Arch>
inline constexpr bool bf16_products = element_dot<Arch, bf16>::dot_products;

// Whether matrix tiles multiply packed matrices; whether they do those of this form.
template <class Arch>
inline constexpr bool uses_tiles = has_tiles_beside<Arch>&& bf16_products<Arch>;
template <class Arch, class Matrix>
inline constexpr bool multiplied_by_tiles = false;
template <class Arch, class T>
inline constexpr bool multiplied_by_tiles<Arch, packed_matrix<T>> = uses_tiles<Arch>;

// Tokens from which on they do: tiles take as long for a few of their rows as for all.
template <class Arch, class Matrix>
inline constexpr std::size_t tile_tokens_min = tile_height / 2;
template <class Arch>
inline constexpr std::size_t tile_tokens_min<Arch, packed_matrix<bf16>> = tile_sum_kernel<Arch>::tokens + 1;

// Whole blocks of quantize_activation_blocks by vectors, so many at once that none waits for the one before, nor reads codes
// that were only just written; the same bits where d is finite.
inline constexpr std::size_t blocks_at_once = 16;

template <class Arch>
void quantize_whole_blocks(const float* x, std::size_t count, activation_block* blocks) noexcept {
  using dot = int8_dot<Arch>;
  using floats = typename dot::floats;
  using ints = batch<std::int32_t, Arch>;
  constexpr std::size_t lanes = floats::size, size = activation_block::size;
  float inverse[blocks_at_once];
  for (std::size_t b = 0; b < count; ++b) {
    ints magnitudes(0);
    for (std::size_t i = 0; i < size; i += lanes) {
      const floats values = floats::load_unaligned(x + b * size + i);
      magnitudes = xsimd::max(magnitudes, bits_as<std::int32_t>(xsimd::abs(values)));
    }
    typename dot::ints all;
    static_assert(sizeof all == sizeof magnitudes);
    std::memcpy(&all, &magnitudes, sizeof all);
    inverse[b] = blocks[b].set_scale(dot::largest(all));
  }
  for (std::size_t b = 0; b < count; ++b) {
    for (std::size_t i = 0; i < size; i += lanes) {
      dot::store_codes(blocks[b].q + i, floats::load_unaligned(x + b * size + i) * floats(inverse[b]));
    }
  }
  for (std::size_t b = 0; b < count; ++b) {
    blocks[b].set_sums(sum_of_codes(blocks[b].q), sum_of_codes(blocks[b].q + size / 2));
  }
}

template <class Arch>
void quantize_blocks(const float* x, std::size_t n, activation_block* blocks) noexcept {
  constexpr std::size_t size = activation_block::size;
  const std::size_t whole = n / size, rest = n % size;
  for (std::size_t b = 0; b < whole; b += blocks_at_once) {
    quantize_whole_blocks<Arch>(x + b * size, std::min(blocks_at_once, whole - b), blocks + b);
  }
  if (rest == 0) return;
  float padded[size] = {};
  std::copy_n(x + whole * size, rest, padded);
  quantize_whole_blocks<Arch>(padded, 1, blocks + whole);
}

// A row of activations, in the forms that the weights at hand multiply: float32, int8 codes with one scale, bf16 or
// rounded to it, int8 blocks.
struct activation {
  const float* values = nullptr;
  const std::int8_t* codes = nullptr;
  std::int32_t code_sum = 0;
  float scale = 1.0f;
  const bf16* halves = nullptr;
  const float* rounded = nullptr;
  const activation_block* blocks = nullptr;
  const activation_tile* tile = nullptr;  // in which this row is one of sixteen, where tiles may multiply them
};

// The forms of activations that matrices read.
struct activation_forms {
  bool codes = false, halves = false, blocks = false;
  bool tiles = false;  // whether matrix tiles may read them

  friend activation_forms operator|(const activation_forms& a, const activation_forms& b) {
    return {a.codes || b.codes, a.halves || b.halves, a.blocks || b.blocks, a.tiles || b.tiles};
  }
};

template <class Matrix>
inline constexpr activation_forms forms_of{};
template <>
inline constexpr activation_forms forms_of<int8_matrix>{.codes = true};
template <>
inline constexpr activation_forms forms_of<packed_matrix<std::int8_t>>{.codes = true, .tiles = true};
template <>
inline constexpr activation_forms forms_of<packed_matrix<bf16>>{.halves = true, .tiles = true};
template <integer_format F>
inline constexpr activation_forms forms_of<view<const F, 2>>{.blocks = true};
template <integer_format F>
inline constexpr activation_forms forms_of<packed_matrix<F>>{.blocks = true, .tiles = true};

template <class Matrix>
activation_forms forms(const Matrix&) {
  return forms_of<Matrix>;
}
template <std::same_as<weight> W>
activation_forms forms(const W& w) {
  return std::visit([](const auto& m) { return forms_of<std::remove_cvref_t<decltype(m)>>; }, w);
}

// Rows i < count of n values at row(i) in the wanted forms, made once for all the units that read them; they live in
// `scope`, codes, halves and rounded padded with zeros to whole quads.
template <class Arch, class Backend, class Scope, class Row>
view<activation, 1> prepare_rows(Backend& be, Scope& scope, const activation_forms& wanted, std::size_t count,
                                 std::size_t n, Row&& row) {
  const std::size_t blocks_each = activation_block::count(n), padded = (n + 3) / 4 * 4;
  const auto rows = scope.template tensor<activation>(count);
  const auto codes = scope.template tensor<std::int8_t>(wanted.codes ? count : 0, padded);
  const auto halves = scope.template tensor<bf16>(wanted.halves && bf16_products<Arch> ? count : 0, padded);
  const auto rounded = scope.template tensor<float>(wanted.halves && !bf16_products<Arch> ? count : 0, padded);
  const auto blocks = scope.template tensor<activation_block>(wanted.blocks ? count : 0, blocks_each);
  const bool converts = wanted.codes || wanted.halves || wanted.blocks;
  be.parallel_for(count, converts ? 1 + 4096 / (n + 1) : 4096, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      activation x{.values = row(i)};
      if (wanted.codes) {
        x.scale = quantize_activations<Arch>(x.values, n, codes.row(i), x.code_sum);
        std::fill(codes.row(i) + n, codes.row(i) + padded, std::int8_t{0});
        x.codes = codes.row(i);
      }
      if (wanted.halves && bf16_products<Arch>) {
        std::transform(x.values, x.values + n, halves.row(i), [](float v) { return bf16(v); });
        std::fill(halves.row(i) + n, halves.row(i) + padded, bf16(0.0f));
        x.halves = halves.row(i);
      } else if (wanted.halves) {
        std::transform(x.values, x.values + n, rounded.row(i), [](float v) { return static_cast<float>(bf16(v)); });
        std::fill(rounded.row(i) + n, rounded.row(i) + padded, 0.0f);
        x.rounded = rounded.row(i);
      }
      if (wanted.blocks) {
        quantize_blocks<Arch>(x.values, n, blocks.row(i));
        x.blocks = blocks.row(i);
      }
      rows(i) = x;
    }
  });
  return rows;
}

// Lays rows of n values out for matrix tiles, in all wanted forms, where the machine has tiles: run r, the rows [first(r),
// first(r + 1)), are those that are multiplied together, sixteen at a time.
template <class Arch, class Backend, class Scope, class First>
void lay_out_tiles([[maybe_unused]] Backend& be, [[maybe_unused]] Scope& scope,
                   [[maybe_unused]] const activation_forms& wanted, [[maybe_unused]] std::size_t n,
                   [[maybe_unused]] const view<activation, 1>& rows, [[maybe_unused]] std::size_t runs,
                   [[maybe_unused]] First&& first) {
  if constexpr (uses_tiles<Arch>) {
    const std::size_t least =
        wanted.halves ? tile_tokens_min<Arch, packed_matrix<bf16>> : tile_tokens_min<Arch, packed_matrix<std::int8_t>>;
    std::size_t longest = 0;
    for (std::size_t r = 0; r < runs; ++r) longest = std::max(longest, first(r + 1) - first(r));
    if (!wanted.tiles || longest < least || !amx_tiles::available()) return;
    // Run r's first tile: no two runs of `least` rows share one.
    const auto first_tile = [&](std::size_t r) { return first(r) / tile_height + std::min(r, first(r) / least); };
    const std::size_t tiles = first_tile(runs), blocks_each = activation_block::count(n);
    const std::size_t codes_each = tiled_size(n), halves_each = tiled_size(n * sizeof(bf16));
    const auto tile = scope.template tensor<activation_tile>(tiles);
    const auto codes = scope.template tensor<std::uint8_t>(wanted.codes ? tiles : 0, codes_each);
    const auto halves = scope.template tensor<std::uint8_t>(wanted.halves ? tiles : 0, halves_each);
    const auto blocks = scope.template tensor<tiled_blocks>(wanted.blocks ? tiles : 0, blocks_each);
    be.parallel_for(tiles, 1 + 256 / (n + 1), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        // The last run that begins at this tile or before.
        std::size_t r = 0;
        for (std::size_t more = runs; more > 1;) {
          const std::size_t half = more / 2;
          if (first_tile(r + half) <= i) r += half;
          more -= half;
        }
        const std::size_t row = first(r) + (i - first_tile(r)) * tile_height, last = first(r + 1);
        if (row >= last || last - first(r) < least) continue;
        const std::size_t some = std::min(tile_height, last - row);
        tile(i) = {wanted.codes ? codes.row(i) : nullptr, wanted.halves ? halves.row(i) : nullptr,
                   wanted.blocks ? blocks.row(i) : nullptr};
        if (wanted.blocks && some < tile_height) std::fill_n(blocks.row(i), blocks_each, tiled_blocks{});
        for (std::size_t c = 0; c < some; ++c) {
          activation& x = rows(row + c);
          if (wanted.codes) put_in_tiles(x.codes, n, c, codes.row(i));
          if (wanted.halves) put_in_tiles(x.halves, n * sizeof(bf16), c, halves.row(i));
          x.tile = &tile(i);
        }
        for (std::size_t b = 0; b < blocks_each && wanted.blocks; ++b) {
          for (std::size_t c = 0; c < some; ++c) blocks.row(i)[b].put(rows(row + c).blocks[b], c);
        }
      }
    });
  }
}

}  // namespace detail

MOTE_END_NAMESPACE
