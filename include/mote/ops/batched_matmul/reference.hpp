#pragma once

#include <cstddef>

#include "../matmul/reference.hpp"

MOTE_BEGIN_NAMESPACE

inline void batched_matmul_impl(reference& be, view<const float, 3> x, const weight& w, view<float, 3> y) {
  for (std::size_t b = 0; b < x.extent(0); ++b) {
    matmul_impl(be, x[b], slice_rows(w, b * y.extent(2), y.extent(2)), y[b], output::overwrite);
  }
}

MOTE_END_NAMESPACE
