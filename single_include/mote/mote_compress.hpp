// mote 0.1.0: calibration and quantization of models, in one file. Written by scripts/single_include from include/mote.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "mote.hpp"

// ---- mote/compress/awq.hpp
// AWQ: activation-aware weight quantization. Channels with large activations matter most; multiplied by s > 1 before the
// weight is rounded, and divided after, they lose less. For channel c
//
//   s_c = (mean|x_c|)^α / sqrt(max s · min s),    α ∈ {0, 1/20, …, 1} of least ‖(W - Q(W diag(s)) diag(1/s)) X‖
//
// α = 0 is no scaling. Channels never seen keep s_c = 1.
// Source: Lin et al., AWQ (2023), arXiv:2306.00978.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

// ---- mote/compress/channel_scale.hpp
// Scaling channels between a layer and what comes before it: for positive s [in],
//
//   W x = (W diag(s)) (diag(1/s) x)
//
// W diag(s) is what gets quantized; diag(1/s) goes into the norm's weight before the layer, or into the rows of the linear
// layer before it (up_proj before down_proj), or stays as a scale of its own. Every layer that reads x must be scaled.
// Used by SmoothQuant (smoothquant.hpp) and AWQ (awq.hpp).

MOTE_BEGIN_NAMESPACE

// scaled[n, c] = w[n, c] s[c]; scaled may be w. Throws shape_error.
inline void scale_columns(const view<const float, 2>& w, const view<const float, 1>& s, const view<float, 2>& scaled) {
  check_view("scale_columns", "s", s, {w.extent(1)});
  check_view("scale_columns", "scaled", scaled, {w.extent(0), w.extent(1)});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t c = 0; c < w.extent(1); ++c) scaled(n, c) = w(n, c) * s(c);
  }
}

// Divides columns by s: undoes scale_columns. Throws shape_error.
inline void divide_columns(const view<float, 2>& w, const view<const float, 1>& s) {
  check_view("divide_columns", "s", s, {w.extent(1)});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t c = 0; c < w.extent(1); ++c) w(n, c) /= s(c);
  }
}

// Folds diag(1/s) into the weight of a norm, norm [in]. Throws shape_error.
inline void divide_norm(const view<float, 1>& norm, const view<const float, 1>& s) {
  check_view("divide_norm", "s", s, {norm.extent(0)});
  for (std::size_t c = 0; c < norm.extent(0); ++c) norm(c) /= s(c);
}

// Folds diag(1/s) into the linear layer before, w [in of the next, …]. Throws shape_error.
inline void divide_rows(const view<float, 2>& w, const view<const float, 1>& s) {
  check_view("divide_rows", "s", s, {w.extent(0)});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t c = 0; c < w.extent(1); ++c) w(n, c) /= s(n);
  }
}

// absmax[c] = max(absmax[c], max_n |w[n, c]|): call it for each of the weights that read the same inputs.
inline void update_column_absmax(const view<const float, 2>& w, const view<float, 1>& absmax) {
  check_view("update_column_absmax", "absmax", absmax, {w.extent(1)});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t c = 0; c < w.extent(1); ++c) absmax(c) = std::max(absmax(c), std::fabs(w(n, c)));
  }
}

MOTE_END_NAMESPACE

// ---- mote/compress/grid.hpp
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

#include <atomic>
#include <concepts>
#include <string_view>

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

// ---- mote/compress/output_error.hpp
// How much a layer's output changes when its weight W [out, in] becomes Ŵ, from the second moment G of its inputs:
//
//   relative output error = ‖(W - Ŵ) X‖ / ‖W X‖ = sqrt( Σ_n d_n G d_nᵀ / Σ_n w_n G w_nᵀ ),    d_n row n of W - Ŵ
//
// Without a single token G is taken as the identity: the error of the weight itself.

// ---- mote/compress/statistics.hpp
// What calibration keeps of the inputs of a linear layer. For activations x_t [in] of n tokens, channel c:
//
//   absmax[c] = max_t |x_tc|       mean_abs[c] = 1/n Σ_t |x_tc|       second moment G = Σ_t x_t x_tᵀ
//
// G is what second-order methods need: the squared error of the layer's output when W [out, in] becomes Ŵ is
//
//   Σ_t ‖(W - Ŵ) x_t‖² = Σ_n d_n G d_nᵀ,    d_n row n of W - Ŵ
//
// so 2 G is the Hessian of every row. G [in, in] is kept on its diagonal blocks of `block` channels only, in float32:
// block = in keeps all of it, block = 1 the diagonal Σ_t x_tc². Memory is activation_statistics::bytes(in, block), about
// 4 · in · (block + 4), and does not grow with tokens. Statistics of parts of a text, or of several experts, merge.

#include <string>

MOTE_BEGIN_NAMESPACE

class activation_statistics {
 public:
  // Nothing seen yet of a layer with `in` channels. Throws shape_error unless 1 <= block.
  activation_statistics(std::size_t in, std::size_t block)
      : in_(in), block_(std::min(block, std::max(in, std::size_t{1}))), absmax_(in), sum_abs_(in) {
    check(block >= 1, "activation_statistics", "block: expected at least 1");
    moments_.resize(moment_size(in, block_));
  }

  // Memory of statistics of `in` channels in bytes.
  static std::size_t bytes(std::size_t in, std::size_t block) {
    return in * (sizeof(float) + sizeof(double)) + moment_size(in, std::min(block, in)) * sizeof(float);
  }

  // x [tokens, in]. Throws shape_error, also when a value is not finite or a sum of squares leaves float32; then nothing
  // is added.
  template <host Backend>
  void add(Backend& be, const view<const float, 2>& x) {
    check_view("activation_statistics", "x", x, {x.extent(0), in_});
    // A tile of tokens at a time: its transpose is the scratch memory.
    constexpr std::size_t tile = 512;
    check_range(x);
    for (std::size_t begin = 0; begin < x.extent(0); begin += tile) {
      add_tile(be, x.slice(0, begin, std::min(tile, x.extent(0) - begin)));
    }
  }

  // Adds what `other` saw. Throws shape_error unless channels and blocks agree.
  void merge(const activation_statistics& other) {
    check(other.in_ == in_ && other.block_ == block_, "activation_statistics",
          "merge: expected " + std::to_string(in_) + " channels in blocks of " + std::to_string(block_) + ", got " +
              std::to_string(other.in_) + " in blocks of " + std::to_string(other.block_));
    tokens_ += other.tokens_;
    for (std::size_t c = 0; c < in_; ++c) {
      absmax_[c] = std::max(absmax_[c], other.absmax_[c]);
      sum_abs_[c] += other.sum_abs_[c];
    }
    for (std::size_t i = 0; i < moments_.size(); ++i) moments_[i] += other.moments_[i];
  }

  // The statistics of x diag(1 / scale): what a layer sees whose weight became W diag(scale).
  activation_statistics divided_by(const view<const float, 1>& scale) const {
    check_view("activation_statistics", "scale", scale, {in_});
    activation_statistics other = *this;
    for (std::size_t c = 0; c < in_; ++c) {
      check(std::isfinite(scale(c)) && scale(c) > 0.0f, "activation_statistics",
            "scale: expected a positive number in channel " + std::to_string(c));
      other.absmax_[c] /= scale(c);
      other.sum_abs_[c] /= static_cast<double>(scale(c));
    }
    for (std::size_t b = 0; b < blocks(); ++b) {
      const std::size_t n = block_size(b);
      for (std::size_t i = 0; i < n * n; ++i) {
        float& g = other.moment_data(b)[i];
        g = g / scale(b * block_ + i / n) / scale(b * block_ + i % n);
      }
    }
    return other;
  }

  std::size_t in_features() const { return in_; }
  std::size_t tokens() const { return tokens_; }
  view<const float, 1> absmax() const { return absmax_; }
  std::vector<float> mean_abs() const {
    std::vector<float> mean(in_);
    for (std::size_t c = 0; c < in_; ++c) {
      mean[c] = tokens_ == 0 ? 0.0f : static_cast<float>(sum_abs_[c] / static_cast<double>(tokens_));
    }
    return mean;
  }

  // Block b of G: channels [b · block, b · block + n), [n, n]. Zero before the first token.
  std::size_t blocks() const { return (in_ + block_ - 1) / block_; }
  std::size_t block() const { return block_; }
  std::size_t block_size(std::size_t b) const { return std::min(block_, in_ - b * block_); }
  view<const float, 2> moment(std::size_t b) const {
    return {moments_.data() + b * block_ * block_, block_size(b), block_size(b)};
  }

 private:
  static std::size_t moment_size(std::size_t in, std::size_t block) {
    const std::size_t rest = block == 0 ? 0 : in % block;
    return (in - rest) * block + rest * rest;
  }
  float* moment_data(std::size_t b) { return moments_.data() + b * block_ * block_; }

  // Squares of what was seen and of x must sum to float32s.
  void check_range(const view<const float, 2>& x) const {
    for (std::size_t t = 0; t < x.extent(0); ++t) {
      for (std::size_t c = 0; c < in_; ++c) {
        if (std::fabs(x(t, c)) <= largest) continue;
        raise<shape_error>("activation_statistics: x: expected finite activations below 2^48, got " +
                           std::to_string(x(t, c)) + " in channel " + std::to_string(c));
      }
    }
  }

  template <host Backend>
  void add_tile(Backend& be, const view<const float, 2>& x) {
    tokens_ += x.extent(0);
    auto scratch = be.scope();
    const auto transposed = scratch.template tensor<float>(in_, x.extent(0));
    for (std::size_t t = 0; t < x.extent(0); ++t) {
      for (std::size_t c = 0; c < in_; ++c) {
        transposed(c, t) = x(t, c);
        absmax_[c] = std::max(absmax_[c], std::fabs(x(t, c)));
        sum_abs_[c] += static_cast<double>(std::fabs(x(t, c)));
      }
    }
    for (std::size_t b = 0; b < blocks(); ++b) {
      const view<const float, 2> channels = transposed.slice(0, b * block_, block_size(b));
      if (block_ == 1) {
        for (std::size_t t = 0; t < x.extent(0); ++t) moments_[b] += channels(0, t) * channels(0, t);
      } else {
        matmul(be, channels, channels, view<float, 2>(moment_data(b), block_size(b), block_size(b)),
               output::accumulate);
      }
    }
  }

  static constexpr float largest = 0x1p48f;  // 2^31 tokens of such squares are below the largest float32

  std::size_t in_, block_, tokens_ = 0;
  std::vector<float> absmax_, moments_;
  std::vector<double> sum_abs_;
};

MOTE_END_NAMESPACE

// ---- mote/compress/output_error.hpp
MOTE_BEGIN_NAMESPACE

// Σ_n a_n G a_nᵀ over the rows of a [rows, in], summed in float64. Throws shape_error.
template <host Backend>
double output_energy(Backend& be, const view<const float, 2>& a, const activation_statistics& statistics) {
  check_view("output_energy", "a", a, {a.extent(0), statistics.in_features()});
  const bool reached = statistics.tokens() != 0;
  double total = 0.0;
  if (!reached || statistics.block() == 1) {
    for (std::size_t n = 0; n < a.extent(0); ++n) {
      for (std::size_t c = 0; c < a.extent(1); ++c) {
        const double moment = reached ? static_cast<double>(statistics.moment(c)(0, 0)) : 1.0;
        total += moment * static_cast<double>(a(n, c)) * static_cast<double>(a(n, c));
      }
    }
    return total;
  }
  constexpr std::size_t tile = 64;
  for (std::size_t begin = 0; begin < a.extent(0); begin += tile) {
    const auto rows = a.slice(0, begin, std::min(tile, a.extent(0) - begin));
    for (std::size_t b = 0; b < statistics.blocks(); ++b) {
      const auto part = rows.slice(1, b * statistics.block(), statistics.block_size(b));
      auto scratch = be.scope();
      const auto product = scratch.template tensor<float>(part.extent(0), part.extent(1));
      matmul(be, part, statistics.moment(b), product);  // a G: G is symmetric
      for (std::size_t n = 0; n < part.extent(0); ++n) {
        for (std::size_t c = 0; c < part.extent(1); ++c) {
          total += static_cast<double>(part(n, c)) * static_cast<double>(product(n, c));
        }
      }
    }
  }
  return std::max(total, 0.0);  // rounding
}

struct output_error {
  double error;   // Σ_t ‖(W - Ŵ) x_t‖²
  double signal;  // Σ_t ‖W x_t‖²

  // ‖(W - Ŵ) X‖ / ‖W X‖; 0 when both are 0.
  double relative() const { return error > 0.0 ? std::sqrt(error / signal) : 0.0; }
};

// w and quantized [out, in]. Throws shape_error.
template <host Backend>
output_error measure_output_error(Backend& be, const view<const float, 2>& w, const view<const float, 2>& quantized,
                                  const activation_statistics& statistics) {
  check_view("measure_output_error", "quantized", quantized, {w.extent(0), w.extent(1)});
  auto scratch = be.scope();
  const auto difference = scratch.template tensor<float>(w.extent(0), w.extent(1));
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t c = 0; c < w.extent(1); ++c) difference(n, c) = w(n, c) - quantized(n, c);
  }
  return {output_energy<Backend>(be, difference, statistics), output_energy(be, w, statistics)};
}

MOTE_END_NAMESPACE

// ---- mote/compress/awq.hpp
MOTE_BEGIN_NAMESPACE

struct awq_scale {
  float alpha = 0.0f;
  std::vector<float> scale;  // [in]
  double error = 0.0;        // what `error` returned for it
  double plain_error = 0.0;  // … and for no scaling
};

// The s that awq rounds with at one α.
inline std::vector<float> awq_scale_of(const view<const float, 1>& mean_abs, float alpha) {
  std::vector<float> s(mean_abs.extent(0), 1.0f);
  float low = std::numeric_limits<float>::max(), high = 0.0f;
  for (std::size_t c = 0; c < s.size(); ++c) {
    if (!(mean_abs(c) > 0.0f)) continue;
    s[c] = std::max(std::pow(mean_abs(c), alpha), 1e-4f);
    low = std::min(low, s[c]);
    high = std::max(high, s[c]);
  }
  const float middle = std::sqrt(low) * std::sqrt(high);
  for (std::size_t c = 0; c < s.size(); ++c) {
    if (mean_abs(c) > 0.0f) s[c] /= middle;
  }
  return s;
}

// The best s for any error(view<const float, 1> s) -> double: that of several weights that read the same inputs, or of a
// whole block. Equal errors take the smaller α.
template <class Error>
awq_scale search_awq_scale(const view<const float, 1>& mean_abs, Error&& error) {
  constexpr int steps = 20;
  awq_scale best;
  for (int step = 0; step <= steps; ++step) {
    const float alpha = static_cast<float>(step) / steps;
    std::vector<float> s = awq_scale_of(mean_abs, alpha);
    const double e = error(view<const float, 1>(s));
    if (step == 0) best.plain_error = e;
    if (step == 0 || e < best.error) best = {alpha, std::move(s), e, best.plain_error};
  }
  return best;
}

// One weight w [out, in]: codes of W diag(s) in `grid`, and Q(W diag(s)) diag(1/s) in quantized [out, in], which must not
// overlap w. Throws shape_error, also when a value is not finite.
template <host Backend, rounding_grid Grid>
awq_scale awq(Backend& be, const view<const float, 2>& w, const activation_statistics& statistics, Grid& grid,
              const view<float, 2>& quantized) {
  detail::check_grid(be, "awq", w, grid, quantized);
  check(statistics.in_features() == w.extent(1), "awq", "statistics: their channels differ from the columns");
  const auto round = [&](const view<const float, 1>& s) {
    scale_columns(w, s, quantized);
    round_to_nearest(be, quantized, grid, quantized);
    divide_columns(quantized, s);
  };
  const awq_scale best = search_awq_scale(statistics.mean_abs(), [&](const view<const float, 1>& s) {
    round(s);
    return measure_output_error(be, w, quantized, statistics).error;
  });
  round(best.scale);
  return best;
}

MOTE_END_NAMESPACE

// ---- mote/compress/block_grid.hpp
// The rounding grid of a block format: view<F, 2> of shape [out, in / F::block_size].
//
// Integer formats keep their scales while single codes change, so second-order rounding goes column by column; others are
// encoded a block at a time. Every bit of an integer format's codes has a place of its own in the block: shape_error says
// where it has not.

#include <array>
#include <cstring>

// ---- mote/compress/range.hpp
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

#include <span>

// ---- mote/compress/histogram.hpp
// A histogram of a stream of numbers whose range is not known beforehand: bins over [-limit, limit), the limit a power of
// two that doubles, merging bins in pairs, when a larger number comes. Its memory is fixed.

MOTE_BEGIN_NAMESPACE

class histogram {
 public:
  static constexpr std::size_t bins = 8192;

  // Throws shape_error when a value is not finite; then nothing is added.
  void add(std::span<const float> values) {
    float low = low_, high = high_, largest = 0.0f;
    for (const float x : values) {
      check(std::isfinite(x), "histogram", "expected finite values");
      largest = std::max(largest, std::fabs(x));
      low = std::min(low, x);
      high = std::max(high, x);
    }
    low_ = low;
    high_ = high;
    if (largest == 0.0f) {
      counts_[bins / 2] += static_cast<double>(values.size());
      return;
    }
    grow_to(std::ilogb(largest) + 1);
    for (const float x : values) counts_[bin_of(x)] += 1.0;
  }

  void merge(const histogram& other) {
    histogram aligned = other;
    if (exponent_ == unset) {
      exponent_ = aligned.exponent_;
    } else if (aligned.exponent_ == unset) {
      aligned.exponent_ = exponent_;
    }
    grow_to(aligned.exponent_);
    aligned.grow_to(exponent_);
    for (std::size_t i = 0; i < bins; ++i) counts_[i] += aligned.counts_[i];
    low_ = std::min(low_, other.low_);
    high_ = std::max(high_, other.high_);
  }

  // Of all values and 0.
  float low() const { return low_; }
  float high() const { return high_; }

  // Bin i holds counts()[i] values near center(i).
  std::span<const double> counts() const { return counts_; }
  float center(std::size_t i) const {
    return std::ldexp((static_cast<float>(i) + 0.5f) / (bins / 2) - 1.0f, exponent_ == unset ? 0 : exponent_);
  }

 private:
  static constexpr int unset = -1000;

  std::size_t bin_of(float x) const {
    const double place = (std::ldexp(static_cast<double>(x), -exponent_) + 1.0) * (bins / 2);
    return std::min(static_cast<std::size_t>(place), bins - 1);
  }

  // Makes the limit at least 2^exponent.
  void grow_to(int exponent) {
    if (exponent_ == unset) exponent_ = exponent;
    for (; exponent_ < exponent; ++exponent_) {
      std::vector<double> wider(bins);
      for (std::size_t i = 0; i < bins; ++i) wider[bins / 4 + i / 2] += counts_[i];
      counts_ = std::move(wider);
    }
  }

  int exponent_ = unset;  // the limit is 2^exponent
  float low_ = 0.0f, high_ = 0.0f;
  std::vector<double> counts_ = std::vector<double>(bins);
};

MOTE_END_NAMESPACE

// ---- mote/compress/range.hpp
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

// ---- mote/compress/block_grid.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

// Where a block of F keeps the bits of its codes, learnt by flipping each bit and looking which code it changes: so a
// format need not say how to set a code.
template <integer_format F>
class code_layout {
 public:
  code_layout() {
    const std::array<unsigned char, sizeof(F)> zero{};
    for (std::size_t bit = 0; bit < 8 * sizeof(F); ++bit) {
      auto bytes = zero;
      bytes[bit / 8] = static_cast<unsigned char>(1u << bit % 8);
      for (std::size_t i = 0; i < F::block_size; ++i) {
        const int change = read(bytes, i) - read(zero, i);
        for (std::size_t b = 0; b < bits; ++b) {
          if (change == 1 << b || change == -(1 << b)) position_[i][b] = bit;
          if (change == -(1 << b)) lowest_ = change;  // the sign of two's complement
        }
      }
    }
    base_ = read(zero, 0);
    lowest_ += base_;
    for (std::size_t i = 0; i < F::block_size; ++i) {
      for (const int pattern : {0, 0x55, 0xAA, 0xFF}) {
        const int code = lowest_ + (pattern & ((1 << bits) - 1));
        F block{};
        set(block, i, code);
        check(block.code(i) == code, "block_grid",
              std::string(std::string_view(F::name)) + ": its codes are not bits of their own");
      }
    }
  }

  // Codes are lowest() … lowest() + 2^code_bits - 1.
  int lowest() const { return lowest_; }

  // Makes `code` the code of element i.
  void set(F& block, std::size_t i, int code) const {
    std::array<unsigned char, sizeof(F)> bytes;
    std::memcpy(bytes.data(), &block, sizeof(F));
    const auto value = static_cast<unsigned>(code - base_);
    for (std::size_t b = 0; b < bits; ++b) {
      const std::size_t byte = position_[i][b] / 8, shift = position_[i][b] % 8;
      bytes[byte] = static_cast<unsigned char>((bytes[byte] & ~(1u << shift)) | (value >> b & 1u) << shift);
    }
    std::memcpy(static_cast<void*>(&block), bytes.data(), sizeof(F));
  }

 private:
  static constexpr std::size_t bits = F::code_bits;

  static int read(const std::array<unsigned char, sizeof(F)>& bytes, std::size_t i) {
    F block;
    std::memcpy(static_cast<void*>(&block), bytes.data(), sizeof(F));
    return block.code(i);
  }

  std::array<std::array<std::size_t, bits>, F::block_size> position_{};
  int base_ = 0, lowest_ = 0;  // the code of zero bits, the smallest of all
};

template <block_format F>
class blocks_of {
 public:
  explicit blocks_of(const view<F, 2>& blocks) : blocks_(blocks) {
    check_view("block_grid", "blocks", blocks, {blocks.extent(0), blocks.extent(1)});
  }
  std::size_t rows() const { return blocks_.extent(0); }
  std::size_t columns() const { return blocks_.extent(1) * F::block_size; }
  static constexpr std::size_t group() { return F::block_size; }

 protected:
  F& block(std::size_t row, std::size_t column) const { return blocks_(row, column / F::block_size); }
  static F encoded(const float* x) {
    check(all_finite(x, F::block_size), "block_grid", "expected finite values");
    return F::encode(x);
  }

 private:
  view<F, 2> blocks_;
};

}  // namespace detail

template <block_format F>
class block_grid : public detail::blocks_of<F> {
 public:
  using detail::blocks_of<F>::blocks_of;

  void encode(std::size_t row, std::size_t column, const float* x, float* y) const {
    this->block(row, column) = this->encoded(x);
    this->block(row, column).decode(y);
  }
};

template <integer_format F>
class block_grid<F> : public detail::blocks_of<F> {
 public:
  using detail::blocks_of<F>::blocks_of;

  void fit(std::size_t row, std::size_t column, const float* x) const { this->block(row, column) = this->encoded(x); }

  float round(std::size_t row, std::size_t column, float x) const {
    F& block = this->block(row, column);
    const std::size_t i = column % F::block_size, group = i / F::group_size;
    const float scale = group_scale(block, group);
    float min = 0.0f;
    if constexpr (format_with_min<F>) min = block.min(group);
    layout_.set(block, i, nearest(scale, x + min));
    return scale * static_cast<float>(integer_value(block, i)) - min;
  }

 private:
  // The code whose integer times `scale` is nearest to x.
  int nearest(float scale, float x) const {
    if constexpr (detail::table_codes<F>) {
      int best = 0;
      float distance = std::numeric_limits<float>::infinity();
      for (int code = 0; code < 1 << F::code_bits; ++code) {
        const float d = std::fabs(scale * static_cast<float>(F::code_values[static_cast<std::size_t>(code)]) - x);
        if (d < distance) {
          best = code;
          distance = d;
        }
      }
      return best;
    } else {
      if (scale == 0.0f) return 0;
      // Of eight bits, -128 is not used: its negative would not fit.
      const int lowest = std::max(layout_.lowest(), -127), highest = layout_.lowest() + (1 << F::code_bits) - 1;
      const float q = std::nearbyint(x / scale);
      return detail::clamped_integer(q, lowest, highest);
    }
  }

  detail::code_layout<F> layout_;
};

template <block_format F>
block_grid(const view<F, 2>&) -> block_grid<F>;

MOTE_END_NAMESPACE

// ---- mote/compress/calibration.hpp
// Statistics of every linear layer of a model, by name, and which of them the calibration text never reached.

#include <functional>
#include <map>

MOTE_BEGIN_NAMESPACE

class calibration {
 public:
  // Registers a layer with `in` channels whose second moments are kept in blocks of `block`. Throws shape_error when the
  // name is taken.
  void add_layer(const std::string& name, std::size_t in, std::size_t block) {
    check(layers_.emplace(name, activation_statistics(in, block)).second, "calibration", name + ": registered twice");
  }

  // x [tokens, in] entered layer `name`. Throws shape_error when there is no such layer or x does not fit it.
  template <host Backend>
  void observe(Backend& be, std::string_view name, const view<const float, 2>& x) {
    layers_.at(find(name)->first).add(be, x);
  }

  bool contains(std::string_view name) const { return layers_.find(name) != layers_.end(); }
  const activation_statistics& of(std::string_view name) const { return find(name)->second; }

  // Layers that no token entered, in the order of names: experts that the router never chose. They have no second moment;
  // inverse_hessian and output_error take the identity for it, so they are rounded to nearest.
  std::vector<std::string> unreached() const {
    std::vector<std::string> names;
    for (const auto& [name, statistics] : layers_) {
      if (statistics.tokens() == 0) names.push_back(name);
    }
    return names;
  }

 private:
  using layer_map = std::map<std::string, activation_statistics, std::less<>>;

  layer_map::const_iterator find(std::string_view name) const {
    const auto found = layers_.find(name);
    check(found != layers_.end(), "calibration", std::string(name) + ": no such layer");
    return found;
  }

  layer_map layers_;
};

MOTE_END_NAMESPACE

// ---- mote/compress/gptq.hpp
// GPTQ: rounding that makes up for itself. Columns of W [out, in] are rounded one after another; what a column loses is
// taken over by those that follow, as far as the inputs' second moment G lets them:
//
//   H = G + λ I,  λ = damping · mean diag G;    U upper triangular with Uᵀ U = H⁻¹
//   for i = 0 … in - 1, every row alike:   q_i = round(w_i),   w_j -= (w_i - q_i) U_ij / U_ii  for j > i
//
// U is found without inverting H: in reverse order of channels H = R Rᵀ, R upper triangular, and U = R⁻¹. Where G is kept
// in diagonal blocks, so is U. Channels without input, and few tokens, leave H singular but for λ.
//
// act_order rounds the channels of largest G_cc first, while many others can still take over; scales are then those of the
// weights as they were. Without it a group's scales are fitted when its turn comes, to the weights as corrected by then.
//
// Without a token, or with nothing but zeros, H = I: plain rounding to nearest.
// Source: Frantar et al., GPTQ (2022), arXiv:2210.17323.

// g++ 12 takes intrinsics of AVX-512 that Eigen uses for uninitialised (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <Eigen/Cholesky>
#include <Eigen/Core>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <numeric>

MOTE_BEGIN_NAMESPACE

struct gptq_options {
  float damping = 0.01f;
  bool act_order = false;
};

// The ratios U_ij / U_ii of one layer's inputs: all weights that read the same inputs share them. They take 4 · in · block
// bytes, and 16 · block² more while they are made.
class inverse_hessian {
 public:
  // Throws shape_error unless 0 < damping < ∞ and the second moment is finite.
  explicit inverse_hessian(const activation_statistics& statistics, const gptq_options& options = {})
      : in_(statistics.in_features()), block_(statistics.block()), act_order_(options.act_order), order_(in_) {
    check(options.damping > 0.0f && std::isfinite(options.damping), "gptq", "damping: expected a positive number");
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    double trace = 0.0;
    for (std::size_t c = 0; c < in_; ++c) trace += diagonal(statistics, c);
    check(std::isfinite(trace), "gptq", "statistics: the second moment is not finite");
    identity_ = !(trace > 0.0);
    if (identity_) return;
    const double lambda = static_cast<double>(options.damping) * trace / static_cast<double>(in_);
    for (std::size_t b = 0; b < statistics.blocks(); ++b) {
      const std::size_t begin = b * block_, size = statistics.block_size(b);
      if (act_order_) {
        std::stable_sort(order_.begin() + static_cast<std::ptrdiff_t>(begin),
                         order_.begin() + static_cast<std::ptrdiff_t>(begin + size), [&](std::size_t i, std::size_t j) {
                           return diagonal(statistics, i) > diagonal(statistics, j);
                         });
      }
      ratios_.push_back(factorize(statistics.moment(b), order_.data() + begin, begin, lambda));
    }
  }

  std::size_t in_features() const { return in_; }
  // Whether H is the identity: no token came, or only zeros.
  bool identity() const { return identity_; }
  bool act_order() const { return act_order_; }
  // The channel at each place in the order of rounding.
  view<const std::size_t, 1> order() const { return order_; }

  std::size_t block() const { return block_; }
  // U_ij / U_ii at (j, i) of block b: lower triangular; rows and columns in the order of rounding.
  view<const float, 2> ratios(std::size_t b) const {
    const std::size_t n = std::min(block_, in_ - b * block_);
    return {ratios_[b].data(), n, n};
  }

 private:
  static double diagonal(const activation_statistics& statistics, std::size_t c) {
    const std::size_t i = c % statistics.block();
    return static_cast<double>(statistics.moment(c / statistics.block())(i, i));
  }

  static std::vector<float> factorize(const view<const float, 2>& moment, const std::size_t* order, std::size_t begin,
                                      double lambda) {
    const std::size_t n = moment.extent(0);
    const auto size = static_cast<Eigen::Index>(n);
    const auto channel = [&](Eigen::Index reversed) {
      return order[n - 1 - static_cast<std::size_t>(reversed)] - begin;
    };
    Eigen::MatrixXd h(size, size);
    // Rounding may leave a matrix that is positive definite only in exact arithmetic: then λ grows.
    for (;; lambda *= 10.0) {
      for (Eigen::Index j = 0; j < size; ++j) {
        for (Eigen::Index i = j; i < size; ++i) h(i, j) = static_cast<double>(moment(channel(i), channel(j)));
        h(j, j) += lambda;
      }
      if (Eigen::LLT<Eigen::Ref<Eigen::MatrixXd>>(h).info() == Eigen::Success) break;
    }
    Eigen::MatrixXd inverse = Eigen::MatrixXd::Identity(size, size);
    h.triangularView<Eigen::Lower>().solveInPlace(inverse);
    // With J the reversal, J H J = L Lᵀ, R = J L J and U = J L⁻¹ J.
    std::vector<float> ratios(n * n);
    for (Eigen::Index i = 0; i < size; ++i) {
      const Eigen::Index row = size - 1 - i;
      for (Eigen::Index j = i; j < size; ++j) {
        ratios[static_cast<std::size_t>(j * size + i)] =
            static_cast<float>(inverse(row, size - 1 - j) / inverse(row, row));
      }
    }
    return ratios;
  }

  std::size_t in_, block_;
  bool act_order_, identity_ = false;
  std::vector<std::size_t> order_;
  std::vector<std::vector<float>> ratios_;
};

namespace detail {

// What losses of huge weights add up to may be no float.
inline void saturate(float* x, std::size_t n) {
  constexpr float largest = std::numeric_limits<float>::max();
  for (std::size_t i = 0; i < n; ++i) x[i] = std::min(std::max(-largest, x[i]), largest);
}

}  // namespace detail

// w [out, in] to codes in `grid`, and what they stand for to quantized [out, in], which must not overlap w. Rows are shared
// out among the threads of `be`; results do not depend on their number. Throws shape_error when shapes differ, when a
// value is not finite, when a grid's groups straddle the blocks of the second moment, and when act_order is asked of a format
// whose codes cannot be set one by one.
template <host Backend, rounding_grid Grid>
void gptq(Backend& be, const view<const float, 2>& w, const inverse_hessian& inverse, Grid& grid,
          const view<float, 2>& quantized) {
  constexpr std::size_t step_target = 128;  // columns between two updates of all that follow
  constexpr bool by_element = detail::element_grid<Grid>;
  const std::size_t out = w.extent(0), in = w.extent(1), group = grid.group();
  detail::check_grid(be, "gptq", w, grid, quantized);
  check(inverse.in_features() == in, "gptq",
        "inverse_hessian: expected " + std::to_string(in) + " channels, got " + std::to_string(inverse.in_features()));
  if (inverse.identity()) return round_to_nearest(be, w, grid, quantized);
  check(by_element || !inverse.act_order(), "gptq", "act_order: the format's codes cannot be set one by one");
  const bool fit_first = by_element && (inverse.act_order() || group >= in || group > 2 * step_target);
  check(fit_first || inverse.block() >= in || inverse.block() % group == 0, "gptq",
        "the second moment's blocks of " + std::to_string(inverse.block()) + " cut groups of " + std::to_string(group));
  const std::size_t step = fit_first ? step_target : group * std::max(step_target / group, std::size_t{1});

  const auto order = inverse.order();
  be.parallel_for(out, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t n = first; n < last; ++n) {
      for (std::size_t i = 0; i < in; ++i) quantized(n, i) = w(n, order(i));
      if constexpr (by_element) {
        for (std::size_t c = 0; fit_first && c < in; c += group) grid.fit(n, c, w.row(n) + c);
      }
    }
  });

  auto scratch = be.scope();
  const auto losses = scratch.template tensor<float>(out, step);   // q_i - w_i
  const auto rounded = scratch.template tensor<float>(out, step);  // q_i
  const auto corner = scratch.template tensor<float>(step, step);  // U_ij / U_ii within the step
  for (std::size_t b = 0, base = 0; base < in; ++b, base += inverse.block()) {
    const auto ratios = inverse.ratios(b);
    const std::size_t size = ratios.extent(0);
    for (std::size_t begin = 0; begin < size; begin += step) {
      const std::size_t count = std::min(step, size - begin), rest = size - begin - count;
      for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t j = i; j < count; ++j) corner(i, j) = ratios(begin + j, begin + i);
      }
      be.parallel_for(out, 1, [&](std::size_t first, std::size_t last) {
        for (std::size_t n = first; n < last; ++n) {
          float* v = quantized.row(n) + base + begin;
          float* q = rounded.row(n);
          for (std::size_t i = 0; i < count; ++i) {
            const std::size_t channel = order(base + begin + i);
            if (!fit_first && channel % group == 0) detail::saturate(v + i, group);
            if constexpr (by_element) {
              if (!fit_first && channel % group == 0) grid.fit(n, channel, v + i);
              q[i] = grid.round(n, channel, v[i]);
            } else {
              if (channel % group == 0) grid.encode(n, channel, v + i, q + i);
            }
            const float loss = losses(n, i) = q[i] - v[i];
            for (std::size_t j = i + 1; j < count; ++j) v[j] += loss * corner(i, j);
          }
          std::copy(q, q + count, v);
        }
      });
      if (rest == 0) continue;
      matmul(be, losses.slice(1, 0, count), ratios.slice(0, begin + count, rest).slice(1, begin, count),
             quantized.slice(1, base + begin + count, rest), output::accumulate);
    }
  }

  if (!inverse.act_order()) return;
  be.parallel_for(out, 1, [&](std::size_t first, std::size_t last) {
    std::vector<float> row(in);
    for (std::size_t n = first; n < last; ++n) {
      for (std::size_t i = 0; i < in; ++i) row[order(i)] = quantized(n, i);
      std::copy(row.begin(), row.end(), quantized.row(n));
    }
  });
}

MOTE_END_NAMESPACE

// ---- mote/compress/integer_grids.hpp
// Rounding grids of plain integers and of fp8: int8 per row, int4 in groups of a row, e4m3 in DeepSeek's blocks of 128 × 128.
// Scales of integers come from a range estimator (range.hpp): with range_method::min_max codes are those of quantize_int8 and
// quantize_int4.

#include <cstdint>

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

// ---- mote/compress/mixed_precision.hpp
// Which layer gets which format. Layer l has options o with bytes b_lo and error e_lo; errors of layers add up (they are
// small, so a first-order sum of loss, of relative squared output errors, …):
//
//   assign_within_bytes   least Σ e  with  Σ b <= budget
//   assign_within_error   least Σ b  with  Σ e <= budget
//
// Both relax to the Lagrangian Σ e + λ Σ b, whose solutions for all λ are the steps along each layer's lower convex hull
// in the order of error saved per byte. Steps are taken in that order while they fit; then whatever single change still
// helps, so options off the hull are used too. The result is optimal at the hull's corners and elsewhere at most one
// step's error (or bytes) from it. Ties go to the lower layer, then the lower option: no run differs from another.
// A sensitive layer keeps bf16 because that option's error is far below the others'; one that must keep it has no other.
// Source: Shoham and Gersho, Efficient bit allocation for an arbitrary set of quantizers (1988).

MOTE_BEGIN_NAMESPACE

struct layer_option {
  std::size_t bytes = 0;
  double error = 0.0;
};

struct assignment {
  std::vector<std::size_t> choice;  // of each layer, an index into its options
  std::size_t bytes = 0;
  double error = 0.0;
};

namespace detail {

// One step along a layer's hull, from a smaller option to a better one.
struct hull_step {
  std::size_t layer, from, to;
  double saved_per_byte;
};

// The options of the lower convex hull from the smallest to the best.
inline std::vector<std::size_t> convex_hull(const std::vector<layer_option>& options) {
  std::vector<std::size_t> order(options.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return options[a].bytes != options[b].bytes ? options[a].bytes < options[b].bytes
                                                : options[a].error < options[b].error;
  });
  const auto slope = [&](std::size_t a, std::size_t b) {
    return (options[a].error - options[b].error) / static_cast<double>(options[b].bytes - options[a].bytes);
  };
  std::vector<std::size_t> hull;
  for (const std::size_t i : order) {
    if (!hull.empty() && options[i].error >= options[hull.back()].error) continue;
    while (hull.size() >= 2 && slope(hull[hull.size() - 2], hull.back()) <= slope(hull.back(), i)) hull.pop_back();
    hull.push_back(i);
  }
  return hull;
}

inline void sum_up(std::span<const std::vector<layer_option>> layers, assignment& a) {
  a.bytes = 0;
  a.error = 0.0;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    a.bytes += layers[l][a.choice[l]].bytes;
    a.error += layers[l][a.choice[l]].error;
  }
}

// Every layer at the smallest (or the best) end of its hull, and the steps between, most error saved per byte first.
inline assignment hull_end(std::span<const std::vector<layer_option>> layers, bool best,
                           std::vector<hull_step>& steps) {
  assignment a;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    check(!layers[l].empty(), "assign", "layer " + std::to_string(l) + " has no option");
    for (const auto& option : layers[l]) {
      check(std::isfinite(option.error) && option.error >= 0.0, "assign",
            "layer " + std::to_string(l) + ": expected finite errors of 0 or more");
    }
    const auto hull = convex_hull(layers[l]);
    a.choice.push_back(best ? hull.back() : hull.front());
    for (std::size_t i = 0; i + 1 < hull.size(); ++i) {
      const layer_option &from = layers[l][hull[i]], &to = layers[l][hull[i + 1]];
      steps.push_back({l, hull[i], hull[i + 1], (from.error - to.error) / static_cast<double>(to.bytes - from.bytes)});
    }
  }
  std::stable_sort(steps.begin(), steps.end(),
                   [](const hull_step& x, const hull_step& y) { return x.saved_per_byte > y.saved_per_byte; });
  sum_up(layers, a);
  return a;
}

// Changes one layer at a time for as long as `gain(from, to)` of some fitting change is positive, the largest first.
template <class Gain>
void improve(std::span<const std::vector<layer_option>> layers, assignment& a, const Gain& gain) {
  for (;;) {
    double most = 0.0;
    std::size_t layer = 0, choice = 0;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      for (std::size_t o = 0; o < layers[l].size(); ++o) {
        const double g = gain(layers[l][a.choice[l]], layers[l][o]);
        if (g > most) {
          most = g;
          layer = l;
          choice = o;
        }
      }
    }
    if (!(most > 0.0)) return;
    a.choice[layer] = choice;
    sum_up(layers, a);
  }
}

}  // namespace detail

// Throws shape_error when a layer has no options or an error that is not a number of 0 or more, or when even the smallest
// options exceed the budget.
inline assignment assign_within_bytes(std::span<const std::vector<layer_option>> layers, std::size_t budget) {
  std::vector<detail::hull_step> steps;
  assignment a = detail::hull_end(layers, false, steps);
  check(a.bytes <= budget, "assign_within_bytes",
        "budget: expected at least " + std::to_string(a.bytes) + " bytes, got " + std::to_string(budget));
  for (const auto& step : steps) {
    if (a.choice[step.layer] != step.from) continue;  // an earlier step of this layer did not fit
    const std::size_t more = layers[step.layer][step.to].bytes - layers[step.layer][step.from].bytes;
    if (more > budget - a.bytes) continue;
    a.choice[step.layer] = step.to;
    a.bytes += more;
  }
  detail::sum_up(layers, a);
  detail::improve(layers, a, [&](const layer_option& from, const layer_option& to) {
    const bool fits = to.bytes <= from.bytes || to.bytes - from.bytes <= budget - a.bytes;
    return fits ? from.error - to.error : 0.0;
  });
  return a;
}

// Throws shape_error when a layer has no options or an error that is not a number of 0 or more, or when even the best
// options exceed the budget.
inline assignment assign_within_error(std::span<const std::vector<layer_option>> layers, double budget) {
  std::vector<detail::hull_step> steps;
  assignment a = detail::hull_end(layers, true, steps);
  check(a.error <= budget, "assign_within_error",
        "budget: expected at least " + std::to_string(a.error) + ", got " + std::to_string(budget));
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    if (a.choice[step->layer] != step->to) continue;  // a later step of this layer was kept
    a.choice[step->layer] = step->from;
    detail::sum_up(layers, a);
    if (a.error > budget) a.choice[step->layer] = step->to;
  }
  detail::sum_up(layers, a);
  detail::improve(layers, a, [&](const layer_option& from, const layer_option& to) {
    const bool fits = (a.error - from.error + to.error) * (1.0 + 1e-12) <= budget;  // however the sum is rounded
    return fits && to.bytes < from.bytes ? static_cast<double>(from.bytes - to.bytes) : 0.0;
  });
  return a;
}

MOTE_END_NAMESPACE

// ---- mote/compress/sensitivity.hpp
// How sensitive a model is to each of its layers: the change of its perplexity when one layer alone is quantized. (The
// other measure, a layer's relative output error, needs no run of the model: output_error.hpp.)
//
//   error[l][o] = max(0, ln perplexity(layer l alone in format o) - ln perplexity(no layer quantized))
//
// Loss in nats a token: to first order what several layers lose adds up, as mixed_precision.hpp takes it to.

MOTE_BEGIN_NAMESPACE

// error [layers][options]. `perplexity(layer, option)` runs the model with that layer alone in that format; `baseline` is
// the perplexity of the model as it is. Throws shape_error when a perplexity is not a positive number.
template <class Perplexity>
std::vector<std::vector<double>> perplexity_sensitivity(std::size_t layers, std::size_t options, double baseline,
                                                        Perplexity&& perplexity) {
  const auto log_of = [](double value, const std::string& what) {
    check(std::isfinite(value) && value > 0.0, "perplexity_sensitivity",
          what + ": expected a positive perplexity, got " + std::to_string(value));
    return std::log(value);
  };
  const double from = log_of(baseline, "baseline");
  std::vector<std::vector<double>> errors(layers, std::vector<double>(options));
  for (std::size_t l = 0; l < layers; ++l) {
    for (std::size_t o = 0; o < options; ++o) {
      const double to = log_of(perplexity(l, o), "layer " + std::to_string(l) + ", option " + std::to_string(o));
      errors[l][o] = std::max(0.0, to - from);
    }
  }
  return errors;
}

MOTE_END_NAMESPACE

// ---- mote/compress/smoothquant.hpp
// SmoothQuant: activations with a few channels far larger than the others round badly to int8 per token, weights do not;
// so part of those channels' magnitude moves into the weights. For channel j of inputs X and of the weights W that read it
//
//   s_j = max|X_j|^α / max|W_j|^(1-α),    W ← W diag(s),  X ← X diag(1/s)
//
// α = 0.5 shares the difficulty evenly; larger α takes more of it off the activations. Channels never seen, or whose
// weights are all zero, keep s_j = 1.
// Source: Xiao et al., SmoothQuant (2022), arXiv:2211.10438.

MOTE_BEGIN_NAMESPACE

// s from max|X_j| (activation_statistics::absmax) and max|W_j| (update_column_absmax). Throws shape_error unless the
// shapes agree and 0 <= alpha <= 1.
inline std::vector<float> smoothing_scale(const view<const float, 1>& x_absmax, const view<const float, 1>& w_absmax,
                                          float alpha = 0.5f) {
  check_view("smoothing_scale", "w_absmax", w_absmax, {x_absmax.extent(0)});
  check(alpha >= 0.0f && alpha <= 1.0f, "smoothing_scale", "alpha: expected 0 to 1");
  std::vector<float> s(x_absmax.extent(0), 1.0f);
  for (std::size_t j = 0; j < s.size(); ++j) {
    if (!(x_absmax(j) > 0.0f && w_absmax(j) > 0.0f)) continue;
    s[j] = std::pow(x_absmax(j), alpha) / std::pow(w_absmax(j), 1.0f - alpha);
  }
  return s;
}

MOTE_END_NAMESPACE
