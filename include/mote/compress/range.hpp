// Ranges: the interval of numbers that integer codes are spread over. Every range holds 0.
//
//   min_max      from the smallest value to the largest
//   percentile   the values below (100 - p) % and above p % are clipped; symmetric: of |x| above p %
//   mse          the range of least Σ (x - x̂)², x̂ being x as its code stands for it, of shrunken min_max ranges
//   kl           the range whose codes' distribution is nearest to that of the values: least Σ P log(P / Q), P the
//                histogram with clipped values in its outermost bins, Q the same mass spread evenly over what each code
//                stands for (only bins that hold something)
//
//   symmetric    low = -high, s = high / (2^(bits-1) - 1),  q = clamp(round(x / s)),              x̂ = s q
//   asymmetric   s = (high - low) / (2^bits - 1),  z = round(-low / s),  q = clamp(round(x / s) + z), x̂ = s (q - z)
//
// A tile says which elements of a matrix share a range: whole tensors, rows (tokens of activations, output channels of
// weights), columns (channels of activations), groups of a row.
// Sources: Migacz, 8-bit inference with TensorRT (2017); Banner et al. (2019), arXiv:1810.05723.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "../core/error.hpp"
#include "../core/view.hpp"
#include "../quant/formats/bits.hpp"
#include "histogram.hpp"

MOTE_BEGIN_NAMESPACE

struct range {
  float low = 0.0f, high = 0.0f;
};

enum class range_method { min_max, percentile, mse, kl };

struct range_config {
  range_method method = range_method::min_max;
  int bits = 8;
  bool symmetric = true;
  double percentile = 99.99;
};

namespace detail {

// The integer q within [lowest, highest]; for NaN, which std::clamp would keep, `lowest`.
inline int clamped_integer(float q, int lowest, int highest) {
  return static_cast<int>(std::min(std::max(static_cast<float>(lowest), q), static_cast<float>(highest)));
}

}  // namespace detail

// The numbers that integer codes stand for.
class integer_grid {
 public:
  integer_grid() = default;
  // Symmetric codes of eight bits leave out -128, as quantize_int8 does; those of fewer bits have all 2^bits.
  integer_grid(const range& r, int bits, bool symmetric)
      : zero_(0),
        lowest_(symmetric ? -(1 << (bits - 1)) + (bits == 8 ? 1 : 0) : 0),
        highest_((1 << (symmetric ? bits - 1 : bits)) - 1) {
    const float width = symmetric ? r.high : std::min(r.high - r.low, std::numeric_limits<float>::max());
    const float step = width / static_cast<float>(highest_);
    if (step > 0.0f) scale_ = step;
    if (!symmetric) zero_ = detail::clamped_integer(std::nearbyint(-r.low / scale_), 0, highest_);
  }

  float scale() const { return scale_; }
  int zero() const { return zero_; }
  // The code of NaN is the lowest.
  int code(float x) const {
    return detail::clamped_integer(std::nearbyint(x / scale_) + static_cast<float>(zero_), lowest_, highest_);
  }
  float value(int code) const { return scale_ * static_cast<float>(code - zero_); }
  // The numbers beyond which x is clipped.
  range limits() const { return {value(lowest_), value(highest_)}; }

 private:
  float scale_ = 1.0f;
  int zero_ = 0, lowest_ = 0, highest_ = 0;
};

namespace detail {

inline range symmetrized(range r, bool symmetric) {
  if (!symmetric) return r;
  const float amax = std::max(-r.low, r.high);
  return {-amax, amax};
}

struct range_cost {
  double total = 0.0, growing = 0.0;  // `growing` is a part of `total` that only grows as the range shrinks
};

// The range of least cost: both ends of `full` shrunk alike by powers of 2^(-1/16), down to 1/64; of an asymmetric one
// then the farther end by itself, then the other.
template <class Cost>
range best_shrunken(const range& full, bool symmetric, const Cost& cost) {
  range best = full;
  double least = std::numeric_limits<double>::infinity();
  const auto search = [&](const auto& shrunken) {
    for (int step = 0; step <= 96; ++step) {
      const range candidate = shrunken(std::exp2(-static_cast<float>(step) / 16.0f));
      const range_cost c = cost(candidate);
      if (c.total < least) {
        least = c.total;
        best = candidate;
      }
      if (c.growing > least) break;
    }
  };
  search([&](float factor) { return range{full.low * factor, full.high * factor}; });
  if (symmetric) return best;
  const auto shrink_high = [&](float factor) { return range{best.low, full.high * factor}; };
  const auto shrink_low = [&](float factor) { return range{full.low * factor, best.high}; };
  if (full.high > -full.low) {
    search(shrink_high);
    search(shrink_low);
  } else {
    search(shrink_low);
    search(shrink_high);
  }
  return best;
}

// Σ count (x - x̂)², and what clipping costs of it.
inline void add_squared_error(float x, double count, const integer_grid& grid, const range& limits, range_cost& cost) {
  const double error = static_cast<double>(grid.value(grid.code(x)) - x);
  cost.total += count * error * error;
  if (x < limits.low || x > limits.high) cost.growing += count * error * error;
}

// Σ P log(P / Q) over the bins inside the range.
inline double kl_divergence(const histogram& values, const range& r, const integer_grid& grid) {
  const auto counts = values.counts();
  std::size_t first = 0, last = histogram::bins - 1;
  while (first < last && values.center(first) < r.low) ++first;
  while (last > first && values.center(last) > r.high) --last;
  double below = 0.0, above = 0.0, total = 0.0;
  for (std::size_t i = 0; i < histogram::bins; ++i) {
    total += counts[i];
    if (i < first) below += counts[i];
    if (i > last) above += counts[i];
  }
  const double inside = total - below - above;
  if (!(inside > 0.0)) return std::numeric_limits<double>::infinity();
  double divergence = 0.0;
  for (std::size_t begin = first; begin <= last;) {
    // The bins of one code, which share their mass evenly.
    const int code = grid.code(values.center(begin));
    double mass = 0.0, used = 0.0;
    std::size_t end = begin;
    for (; end <= last && grid.code(values.center(end)) == code; ++end) {
      mass += counts[end];
      used += counts[end] > 0.0 ? 1.0 : 0.0;
    }
    for (std::size_t i = begin; i < end; ++i) {
      const double p = (counts[i] + (i == first ? below : 0.0) + (i == last ? above : 0.0)) / total;
      if (p > 0.0) divergence += p * std::log(p / std::max(counts[i] > 0.0 ? mass / used / inside : 0.0, 1e-9));
    }
    begin = end;
  }
  return divergence;
}

inline void check_range_config(const range_config& config) {
  check(config.bits >= 2 && config.bits <= 8, "estimate_range", "bits: expected 2 to 8");
  check(config.percentile > 50.0 && config.percentile <= 100.0, "estimate_range",
        "percentile: expected a number above 50, up to 100");
}

}  // namespace detail

// The range of what a histogram saw. Throws shape_error when `config` is out of range.
inline range estimate_range(const histogram& values, const range_config& config) {
  detail::check_range_config(config);
  const range full = detail::symmetrized({values.low(), values.high()}, config.symmetric);
  if (!(full.high > full.low) || config.method == range_method::min_max) return full;
  const auto counts = values.counts();
  if (config.method == range_method::percentile) {
    double total = 0.0;
    for (const double count : counts) total += count;
    const double clipped = total * (1.0 - config.percentile / 100.0);
    range r = full;
    if (config.symmetric) {
      double seen = 0.0;
      std::size_t i = histogram::bins - 1;
      while (i > histogram::bins / 2 && (seen += counts[i] + counts[histogram::bins - 1 - i]) <= clipped) --i;
      r.high = std::min(full.high, values.center(i));
      r.low = -r.high;
    } else {
      std::size_t first = 0, last = histogram::bins - 1;
      double below = counts[first], above = counts[last];
      while (first < histogram::bins / 2 && below <= clipped) below += counts[++first];
      while (last > histogram::bins / 2 && above <= clipped) above += counts[--last];
      r.low = std::clamp(values.center(first), full.low, 0.0f);
      r.high = std::clamp(values.center(last), 0.0f, full.high);
    }
    return r;
  }
  return detail::best_shrunken(full, config.symmetric, [&](const range& r) {
    const integer_grid grid(r, config.bits, config.symmetric);
    detail::range_cost cost;
    if (config.method == range_method::kl) {
      cost.total = detail::kl_divergence(values, r, grid);
      return cost;
    }
    const range limits = grid.limits();
    for (std::size_t i = 0; i < histogram::bins; ++i) {
      if (counts[i] > 0.0) detail::add_squared_error(values.center(i), counts[i], grid, limits, cost);
    }
    return cost;
  });
}

// The range of a few values: exact where the histogram rounds to its bins. Throws shape_error, also when a value is not
// finite.
inline range estimate_range(std::span<const float> values, const range_config& config) {
  detail::check_range_config(config);
  check(detail::all_finite(values.data(), values.size()), "estimate_range", "expected finite values");
  if (config.method == range_method::kl) {
    histogram h;
    h.add(values);
    return estimate_range(h, config);
  }
  range full;
  for (const float x : values) full = {std::min(full.low, x), std::max(full.high, x)};
  full = detail::symmetrized(full, config.symmetric);
  if (!(full.high > full.low) || config.method == range_method::min_max) return full;
  if (config.method == range_method::percentile) {
    std::vector<float> sorted(values.begin(), values.end());
    if (config.symmetric) {
      for (float& x : sorted) x = std::fabs(x);
    }
    std::sort(sorted.begin(), sorted.end());
    const auto clipped =
        static_cast<std::size_t>(static_cast<double>(sorted.size()) * (100.0 - config.percentile) / 100.0 + 1e-6);
    const float high = std::max(sorted[sorted.size() - 1 - clipped], 0.0f);
    return {config.symmetric ? -high : std::min(sorted[clipped], 0.0f), high};
  }
  return detail::best_shrunken(full, config.symmetric, [&](const range& r) {
    const integer_grid grid(r, config.bits, config.symmetric);
    const range limits = grid.limits();
    detail::range_cost cost;
    for (const float x : values) detail::add_squared_error(x, 1.0, grid, limits, cost);
    return cost;
  });
}

// Which elements of a matrix share a range: `rows` by `columns` of them, fewer at the edges.
struct tile {
  std::size_t rows, columns;

  static constexpr std::size_t all = std::numeric_limits<std::size_t>::max();
  static constexpr tile tensor() { return {all, all}; }
  static constexpr tile row() { return {1, all}; }     // a token of activations, an output channel of weights
  static constexpr tile column() { return {all, 1}; }  // a channel of activations
  static constexpr tile group(std::size_t columns) { return {1, columns}; }
};

// The ranges of x's tiles, row by row. Throws shape_error, also when a value is not finite.
inline std::vector<range> estimate_ranges(const view<const float, 2>& x, const tile& t, const range_config& config) {
  check_view("estimate_ranges", "x", x, {x.extent(0), x.extent(1)});
  check(t.rows > 0 && t.columns > 0, "estimate_ranges", "tile: expected at least one row and column");
  std::vector<range> ranges;
  std::vector<float> values;
  for (std::size_t r = 0; r < x.extent(0); r += std::min(t.rows, x.extent(0) - r)) {
    const std::size_t rows = std::min(t.rows, x.extent(0) - r);
    for (std::size_t c = 0; c < x.extent(1); c += std::min(t.columns, x.extent(1) - c)) {
      const std::size_t columns = std::min(t.columns, x.extent(1) - c);
      values.clear();
      for (std::size_t n = r; n < r + rows; ++n) values.insert(values.end(), x.row(n) + c, x.row(n) + c + columns);
      ranges.push_back(estimate_range(values, config));
    }
  }
  return ranges;
}

MOTE_END_NAMESPACE
