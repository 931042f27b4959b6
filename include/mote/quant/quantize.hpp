// Matrices to blocks and back, row by row.
#pragma once

#include <cstddef>
#include <string>

#include "../core/backend.hpp"
#include "../core/error.hpp"
#include "../core/view.hpp"
#include "format.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

template <block_format F, class T, class Blocks>
void check_blocks(std::string_view op, const view<T, 2>& values, const Blocks& blocks) {
  if (values.extent(1) % F::block_size != 0) {
    raise<shape_error>(concatenate({op, ": ", F::name, ": expected columns in multiples of ",
                                    std::to_string(F::block_size), ", got ", std::to_string(values.extent(1))}));
  }
  check_view(op, "values", values, {values.extent(0), values.extent(1)});
  check_view(op, "blocks", blocks, {values.extent(0), values.extent(1) / F::block_size});
}

}  // namespace detail

// values [rows, columns] to blocks [rows, columns / F::block_size]; the rows are shared out among the threads of `be`.
// Values must be finite. Throws shape_error.
template <block_format F, host Backend>
void quantize(Backend& be, const view<const float, 2>& values, const view<F, 2>& blocks) {
  detail::check_blocks<F>("quantize", values, blocks);
  be.parallel_for(values.extent(0), 1 + 4096 / (values.extent(1) + 1), [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      for (std::size_t b = 0; b < blocks.extent(1); ++b) {
        blocks.row(r)[b] = F::encode(values.row(r) + b * F::block_size);
      }
    }
  });
}

// The same by the calling thread.
template <block_format F>
void quantize(const view<const float, 2>& values, const view<F, 2>& blocks) {
  reference be;
  quantize<F>(be, values, blocks);
}

// blocks [rows, columns / F::block_size] to values [rows, columns]. Throws shape_error.
template <block_format F, host Backend>
void dequantize(Backend& be, const view<const F, 2>& blocks, const view<float, 2>& values) {
  detail::check_blocks<F>("dequantize", values, blocks);
  be.parallel_for(values.extent(0), 1 + 4096 / (values.extent(1) + 1), [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      for (std::size_t b = 0; b < blocks.extent(1); ++b) {
        blocks.row(r)[b].decode(values.row(r) + b * F::block_size);
      }
    }
  });
}

template <block_format F>
void dequantize(const view<const F, 2>& blocks, const view<float, 2>& values) {
  reference be;
  dequantize<F>(be, blocks, values);
}

MOTE_END_NAMESPACE
