// One linear layer for each entry of a batch (in MLA: for each head).
//
//   y[b, t, n] = Σ_k x[b, t, k] · W[b · out + n, k]
//
// x: [batch, tokens, in], y: [batch, tokens, out], both with any strides but a contiguous last dimension;
// W: [batch · out, in] in any weight format; where it is packed and the batch is more than 1, `out` is a multiple of its
// panels' rows. Numbers as in matmul. Throws shape_error when the shapes differ.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <variant>

#include "../../core/error.hpp"
#include "../../quant/weight.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Throws shape_error unless w is cut at multiples of `rows` (slice_rows).
inline void check_cut(std::string_view op, std::string_view argument, const weight& w, std::size_t rows) {
  std::visit(
      [&]<class Matrix>(const Matrix&) {
        if constexpr (requires { Matrix::panel_rows; }) {
          if (rows % Matrix::panel_rows == 0) return;
          raise<shape_error>(concatenate({op, ": ", argument, ": is packed, expected a multiple of ",
                                          std::to_string(Matrix::panel_rows), " rows for each entry of the batch, got ",
                                          std::to_string(rows)}));
        }
      },
      w);
}

}  // namespace detail

template <backend Backend>
void batched_matmul(Backend& be, view<const float, 3> x, const weight& w, view<float, 3> y) {
  check_view("batched_matmul", "x", x, {x.extent(0), x.extent(1), in_features(w)});
  check_rows("batched_matmul", "w", w);
  check(x.extent(0) != 0 && out_features(w) % x.extent(0) == 0, "batched_matmul",
        "w: its rows must be a multiple of the batch");
  if (x.extent(0) > 1) detail::check_cut("batched_matmul", "w", w, out_features(w) / x.extent(0));
  check_view("batched_matmul", "y", y, {x.extent(0), x.extent(1), out_features(w) / x.extent(0)});
  batched_matmul_impl(be, x, w, y);
}

MOTE_END_NAMESPACE
