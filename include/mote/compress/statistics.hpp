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
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "../core/backend.hpp"
#include "../core/error.hpp"
#include "../core/view.hpp"
#include "../ops/matmul/matmul.hpp"

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
