// Rounding grids: which numbers an element of W [out, in] may become, and where its code is kept. The methods of this
// folder (round_to_nearest, gptq, awq) know formats only through this interface:
//
//   grid.rows(), grid.columns()     the matrix that it stores
//   grid.group()                    so many consecutive columns of a row are fitted together
//   grid.fit(row, column, x)        chooses scales of the group x[group()], finite values, that begins at `column`
//   grid.round(row, column, x)      keeps the code nearest to x, any float, and returns the number that it stands for
//
// A format that cannot change one code by itself has, instead of fit and round,
//
//   grid.encode(row, column, x, y)  keeps the group x[group()], finite values, and writes what it stands for to y
//
// Rows are independent: a grid may be used for different rows at once.
#pragma once

#include <atomic>
#include <concepts>
#include <cstddef>
#include <string_view>

#include "../core/backend.hpp"
#include "../core/error.hpp"
#include "../core/view.hpp"
#include "../quant/formats/bits.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

template <class G>
concept element_grid = requires(G& grid, std::size_t i, const float* x) {
  grid.fit(i, i, x);
  { grid.round(i, i, 0.0f) } -> std::same_as<float>;
};

template <class G>
concept group_grid = requires(G& grid, std::size_t i, const float* x, float* y) {
  grid.encode(i, i, x, y);
};

}  // namespace detail

template <class G>
concept rounding_grid = (detail::element_grid<G> || detail::group_grid<G>)&&requires(const G& grid) {
  { grid.rows() } -> std::convertible_to<std::size_t>;
  { grid.columns() } -> std::convertible_to<std::size_t>;
  { grid.group() } -> std::convertible_to<std::size_t>;
};

namespace detail {

// Throws shape_error unless shapes fit and the values of w are finite.
template <host Backend, rounding_grid Grid>
void check_grid(Backend& be, std::string_view op, const view<const float, 2>& w, const Grid& grid,
                const view<float, 2>& quantized) {
  check_view(op, "w", w, {grid.rows(), grid.columns()});
  check_view(op, "quantized", quantized, {grid.rows(), grid.columns()});
  std::atomic<bool> finite{true};
  be.parallel_for(w.extent(0), 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t n = begin; n < end; ++n) {
      if (!all_finite(w.row(n), w.extent(1))) finite = false;
    }
  });
  check(finite.load(), op, "w: expected finite values");
}

}  // namespace detail

// Every element to the nearest number of its group's grid: w [out, in] to codes in `grid`, and what they stand for to
// quantized [out, in], which may be w. Rows are shared out among the threads of `be`. Throws shape_error, also when a value
// is not finite.
template <host Backend, rounding_grid Grid>
void round_to_nearest(Backend& be, const view<const float, 2>& w, Grid& grid, const view<float, 2>& quantized) {
  detail::check_grid(be, "round_to_nearest", w, grid, quantized);
  be.parallel_for(w.extent(0), 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t n = begin; n < end; ++n) {
      for (std::size_t c = 0; c < w.extent(1); c += grid.group()) {
        if constexpr (detail::element_grid<Grid>) {
          grid.fit(n, c, w.row(n) + c);
          for (std::size_t i = c; i < c + grid.group(); ++i) quantized(n, i) = grid.round(n, i, w(n, i));
        } else {
          grid.encode(n, c, w.row(n) + c, quantized.row(n) + c);
        }
      }
    }
  });
}

MOTE_END_NAMESPACE
