// Which products attention takes: matrix tiles' where the machine has them, else vectors'.
#pragma once

#include <cstddef>

#include "../../core/amx.hpp"
#include "../../core/simd.hpp"
#include "block.hpp"
#include "tile_products.hpp"
#include "vector_products.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// f.operator()<Products>() for blocks of one vector or tile of queries, or of two for more than that.
template <class Arch, class F>
void with_attention_products(std::size_t queries, F&& f) {
  if constexpr (has_tiles_beside<Arch>) {
    if (amx_tiles::available()) {
      if (queries > tile_height) {
        f.template operator()<tile_products<amx_tiles, Arch, 2>>();
      } else {
        f.template operator()<tile_products<amx_tiles, Arch, 1>>();
      }
      return;
    }
  }
  if (queries > batch<float, Arch>::size) {
    f.template operator()<vector_products<Arch, 2>>();
  } else {
    f.template operator()<vector_products<Arch, 1>>();
  }
}

// Floats, rounded up to whole lines of the cache.
constexpr std::size_t whole_lines(std::size_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace detail

MOTE_END_NAMESPACE
