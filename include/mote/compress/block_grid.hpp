// The rounding grid of a block format: view<F, 2> of shape [out, in / F::block_size].
//
// Integer formats keep their scales while single codes change, so second-order rounding goes column by column; others are
// encoded a block at a time. Every bit of an integer format's codes has a place of its own in the block: shape_error says
// where it has not.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>

#include "../core/error.hpp"
#include "../core/view.hpp"
#include "../quant/format.hpp"
#include "grid.hpp"
#include "range.hpp"

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
