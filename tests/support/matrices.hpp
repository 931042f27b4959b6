// Weights in every format whose rows lie apart and whose memory ends with the last row, for tests of matrix products.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <variant>
#include <vector>

#include <mote/quant/fp8.hpp>
#include <mote/quant/int8.hpp>
#include <mote/quant/weight.hpp>

#include "support/kernels.hpp"

namespace test {

enum class weight_format { f32, bf16, f16, fp8, int8 };  // fp8: e4m3 with a scale for each 128×128 block

inline constexpr weight_format weight_formats[] = {weight_format::f32, weight_format::bf16, weight_format::f16,
                                                   weight_format::fp8, weight_format::int8};
// Of those, the ones that are multiplied as float32.
inline constexpr weight_format float_formats[] = {weight_format::f32, weight_format::bf16, weight_format::f16,
                                                  weight_format::fp8};

inline std::string name(weight_format f) {
  constexpr const char* names[] = {"f32", "bf16", "f16", "fp8", "int8"};
  return names[static_cast<std::size_t>(f)];
}

// Between rows there is NaN, or in codes a number that would be noticed.
class strided_weight {
 public:
  strided_weight(weight_format format, std::size_t out, std::size_t in, const std::vector<float>& values,
                 std::size_t gap = 3)
      : out_(out), in_(in), stride_(in + gap) {
    const std::size_t size = out == 0 ? 0 : (out - 1) * stride_ + in;
    const mote::view<const float, 2> source(values.data(), out, in);
    if (format == weight_format::f32) {
      floats_.assign(size, std::numeric_limits<float>::quiet_NaN());
      copy(source, floats_);
      weight_ = rows_of<const float>(floats_.data());
    } else if (format == weight_format::bf16) {
      halves_.assign(size, mote::bf16(std::numeric_limits<float>::quiet_NaN()));
      copy(source, halves_);
      weight_ = rows_of<const mote::bf16>(halves_.data());
    } else if (format == weight_format::f16) {
      float16s_.assign(size, mote::f16(std::numeric_limits<float>::quiet_NaN()));
      copy(source, float16s_);
      weight_ = rows_of<const mote::f16>(float16s_.data());
    } else if (format == weight_format::fp8) {
      float8s_.assign(size, mote::f8_e4m3(std::numeric_limits<float>::quiet_NaN()));
      const std::size_t rows = mote::fp8_blocks(out), columns = mote::fp8_blocks(in);
      scale_.resize(rows * columns);
      mote::quantize_fp8(source, rows_of<mote::f8_e4m3>(float8s_.data()), {scale_.data(), rows, columns});
      weight_ = mote::scaled_matrix{.codes = rows_of<const mote::f8_e4m3>(float8s_.data()),
                                    .scale = {scale_.data(), rows, columns},
                                    .tile_rows = mote::fp8_block,
                                    .tile_columns = mote::fp8_block};
    } else {
      codes_.assign(size, std::int8_t{77});
      scale_.resize(out);
      mote::quantize_int8(source, rows_of<std::int8_t>(codes_.data()), {scale_.data(), out});
      weight_ = mote::int8_matrix{rows_of<const std::int8_t>(codes_.data()), {scale_.data(), out}};
    }
  }
  strided_weight(const strided_weight&) = delete;
  strided_weight& operator=(const strided_weight&) = delete;

  const mote::weight& get() const { return weight_; }

  // What the stored format holds, as float32.
  std::vector<float> values() const {
    std::vector<float> all(out_ * in_);
    for (std::size_t n = 0; n < out_; ++n) mote::dequantize_row(weight_, n, all.data() + n * in_);
    return all;
  }

 private:
  template <class T>
  mote::view<T, 2> rows_of(T* data) const {
    return {data, {out_, in_}, {stride_, 1}};
  }
  template <class T>
  void copy(mote::view<const float, 2> source, std::vector<T>& target) {
    const auto rows = rows_of<T>(target.data());
    for (std::size_t n = 0; n < out_; ++n) {
      for (std::size_t k = 0; k < in_; ++k) rows(n, k) = T(source(n, k));
    }
  }

  std::size_t out_, in_, stride_;
  std::vector<float> floats_, scale_;
  std::vector<mote::bf16> halves_;
  std::vector<mote::f16> float16s_;
  std::vector<mote::f8_e4m3> float8s_;
  std::vector<std::int8_t> codes_;
  mote::weight weight_;
};

}  // namespace test
