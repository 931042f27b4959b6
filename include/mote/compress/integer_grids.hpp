// Rounding grids of plain integers and of fp8: int8 per row, int4 in groups of a row, e4m3 in DeepSeek's blocks of 128 × 128.
// Scales of integers come from a range estimator (range.hpp): with range_method::min_max codes are those of quantize_int8 and
// quantize_int4.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "../core/error.hpp"
#include "../core/types.hpp"
#include "../core/view.hpp"
#include "../quant/fp8.hpp"
#include "../quant/int4.hpp"
#include "grid.hpp"
#include "range.hpp"

MOTE_BEGIN_NAMESPACE

// int8 symmetric: codes [out, in], scale [out].
class int8_grid {
 public:
  int8_grid(const view<std::int8_t, 2>& codes, const view<float, 1>& scale, range_method method = range_method::min_max)
      : codes_(codes), scale_(scale), method_(method), grids_(codes.extent(0)) {
    check_view("int8_grid", "codes", codes, {codes.extent(0), codes.extent(1)});
    check_view("int8_grid", "scale", scale, {codes.extent(0)});
  }

  std::size_t rows() const { return codes_.extent(0); }
  std::size_t columns() const { return codes_.extent(1); }
  std::size_t group() const { return std::max(columns(), std::size_t{1}); }

  void fit(std::size_t row, std::size_t, const float* x) {
    const range r = estimate_range(std::span(x, columns()), {.method = method_, .bits = 8, .symmetric = true});
    grids_[row] = integer_grid(r, 8, true);
    scale_(row) = grids_[row].scale();
  }
  float round(std::size_t row, std::size_t column, float x) {
    const int code = grids_[row].code(x);
    codes_(row, column) = static_cast<std::int8_t>(code);
    return grids_[row].value(code);
  }

 private:
  view<std::int8_t, 2> codes_;
  view<float, 1> scale_;
  range_method method_;
  std::vector<integer_grid> grids_;
};

// int4 in groups, codes of a scaled_matrix: codes [out, in / 2], scale [out, in / group]; symmetric, or with zero
// [out, in / group] asymmetric.
class int4_grid {
 public:
  int4_grid(std::size_t group, const view<int4_pair, 2>& codes, const view<float, 2>& scale,
            range_method method = range_method::mse)
      : int4_grid(group, codes, scale, {}, true, method) {}
  int4_grid(std::size_t group, const view<int4_pair, 2>& codes, const view<float, 2>& scale,
            const view<std::int8_t, 2>& zero, range_method method = range_method::mse)
      : int4_grid(group, codes, scale, zero, false, method) {
    check_view("int4_grid", "zero", zero, {scale.extent(0), scale.extent(1)});
  }

  std::size_t rows() const { return codes_.extent(0); }
  std::size_t columns() const { return codes_.extent(1) * 2; }
  std::size_t group() const { return group_; }

  void fit(std::size_t row, std::size_t column, const float* x) {
    const range r = estimate_range(std::span(x, group_), {.method = method_, .bits = 4, .symmetric = symmetric_});
    const integer_grid grid = grid_of(row, column) = integer_grid(r, 4, symmetric_);
    scale_(row, column / group_) = grid.scale();
    if (!symmetric_) zero_(row, column / group_) = static_cast<std::int8_t>(grid.zero() - 8);
  }
  float round(std::size_t row, std::size_t column, float x) {
    const integer_grid& grid = grid_of(row, column);
    const int code = grid.code(x), stored = symmetric_ ? code : code - 8;
    int4_pair& pair = codes_(row, column / 2);
    pair = column % 2 == 0 ? int4_pair::of(stored, pair.odd()) : int4_pair::of(pair.even(), stored);
    return grid.value(code);
  }

 private:
  int4_grid(std::size_t group, const view<int4_pair, 2>& codes, const view<float, 2>& scale,
            const view<std::int8_t, 2>& zero, bool symmetric, range_method method)
      : group_(group), codes_(codes), scale_(scale), zero_(zero), symmetric_(symmetric), method_(method) {
    check(group > 0 && group % 2 == 0 && columns() % group == 0, "int4_grid",
          "group: expected an even number that divides the columns");
    check_view("int4_grid", "codes", codes, {codes.extent(0), codes.extent(1)});
    check_view("int4_grid", "scale", scale, {rows(), columns() / group});
    grids_.resize(scale.size());
  }
  integer_grid& grid_of(std::size_t row, std::size_t column) {
    return grids_[row * scale_.extent(1) + column / group_];
  }

  std::size_t group_;
  view<int4_pair, 2> codes_;
  view<float, 2> scale_;
  view<std::int8_t, 2> zero_;
  bool symmetric_;
  range_method method_;
  std::vector<integer_grid> grids_;
};

// e4m3 codes [out, in] with scale [⌈out / 128⌉, ⌈in / 128⌉]. The scales span rows, so they are those of the matrix `w` that
// the grid is made for, and are not fitted again.
class fp8_grid {
 public:
  fp8_grid(const view<const float, 2>& w, const view<f8_e4m3, 2>& codes, const view<float, 2>& scale)
      : codes_(codes), scale_(scale) {
    quantize_fp8(w, codes, scale);
  }

  std::size_t rows() const { return codes_.extent(0); }
  std::size_t columns() const { return codes_.extent(1); }
  static constexpr std::size_t group() { return 1; }

  void fit(std::size_t, std::size_t, const float*) const {}
  float round(std::size_t row, std::size_t column, float x) const {
    const float scale = scale_(row / fp8_block, column / fp8_block);
    const f8_e4m3 code = codes_(row, column) = f8_e4m3(std::clamp(x / scale, -448.0f, 448.0f));
    return scale * static_cast<float>(code);
  }

 private:
  view<f8_e4m3, 2> codes_;
  view<float, 2> scale_;
};

MOTE_END_NAMESPACE
