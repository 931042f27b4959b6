// A histogram of a stream of numbers whose range is not known beforehand: bins over [-limit, limit), the limit a power of
// two that doubles, merging bins in pairs, when a larger number comes. Its memory is fixed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "../core/error.hpp"

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
