// Activations as matrix tiles (core/amx.hpp) read them: sixteen tokens side by side, made once for all the units that
// multiply them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../../core/amx.hpp"
#include "../../quant/activation_block.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Blocks of the same columns.
struct tiled_blocks {
  alignas(64) std::int8_t q[tile_height][activation_block::size] = {};
  alignas(64) float d[tile_height] = {};
  float minus_sum[tile_height] = {}, minus_half_sum[2][tile_height] = {};  // -d Σ q

  void put(const activation_block& block, std::size_t place) {
    std::memcpy(q[place], block.q, sizeof block.q);
    d[place] = block.d;
    minus_sum[place] = -block.sum;
    minus_half_sum[0][place] = -block.half_sum[0];
    minus_half_sum[1][place] = -block.half_sum[1];
  }
  template <std::size_t Group>
  const float* minus(std::size_t half) const {
    return Group == activation_block::size ? minus_sum : minus_half_sum[half];
  }
};

struct activation_tile {
  const std::uint8_t *codes = nullptr, *halves = nullptr;  // int8, bf16: [bytes of a row / 64, 16, 64]
  const tiled_blocks* blocks = nullptr;                    // [columns / 32]
};

// Bytes of sixteen rows of `bytes` each, padded to whole tiles.
constexpr std::size_t tiled_size(std::size_t bytes) {
  return (bytes + tile_bytes - 1) / tile_bytes * tile_bytes * tile_height;
}

inline void put_in_tiles(const void* row, std::size_t bytes, std::size_t place, std::uint8_t* tiles) {
  const auto* const from = static_cast<const std::uint8_t*>(row);
  const std::size_t whole = bytes / tile_bytes * tile_bytes;
  std::uint8_t* to = tiles + place * tile_bytes;
  for (std::size_t i = 0; i < whole; i += tile_bytes, to += tile_height * tile_bytes) {
    std::memcpy(to, from + i, tile_bytes);
  }
  if (whole < bytes) {
    std::memcpy(to, from + whole, bytes - whole);
    std::memset(to + (bytes - whole), 0, tile_bytes - (bytes - whole));
  }
}

}  // namespace detail

MOTE_END_NAMESPACE
