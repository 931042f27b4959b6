// Matrices of linear layers in safetensors checkpoints, whichever way they are stored. Of a layer NAME [out, in]:
//
//   plain   NAME.weight floating point [out, in]
//   fp8     NAME.weight F8_E4M3 [out, in], NAME.weight_scale_inv [⌈out / 128⌉, ⌈in / 128⌉]        w = q · scale
//   int8    NAME.weight I8 [out, in], NAME.weight_scale [out, 1]                                   w = q · scale
//   int4    NAME.weight_packed I32 [out, in / 8], NAME.weight_scale [out, in / group],
//           NAME.weight_shape [2] = (out, in); a word holds eight codes q + 8, the first in its
//           lowest bits                                                                            w = q · scale
//   mxfp4   NAME.weight_packed U8 [out, in / 2], NAME.weight_scale U8 [out, in / 32]               w = e2m1 · 2^(scale - 127)
//   nvfp4   NAME.weight_packed U8 [out, in / 2], NAME.weight_scale F8_E4M3 [out, in / 16],
//           NAME.weight_global_scale [1]; a byte holds two codes, the first low        w = e2m1 · scale / global_scale
//
// Source: fp8 as DeepSeek-V3 stores it; the others as the package compressed-tensors does (formats int-quantized,
// pack-quantized, mxfp4-pack-quantized, nvfp4-pack-quantized).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../core/buffer.hpp"
#include "../core/error.hpp"
#include "../core/types.hpp"
#include "../core/view.hpp"
#include "../quant/formats/mxfp4.hpp"
#include "../quant/formats/q4_0.hpp"
#include "../quant/fp8.hpp"
#include "../quant/int8.hpp"
#include "safetensors.hpp"

MOTE_BEGIN_NAMESPACE

enum class matrix_layout { plain, fp8, int8, int4, mxfp4, nvfp4 };

namespace detail {

// Element i of a tensor of elements T, which may be unaligned.
template <class T>
T element(const tensor_ref& t, std::size_t i) {
  T value;
  std::memcpy(static_cast<void*>(&value), t.bytes.data() + i * sizeof(T), sizeof(T));
  return value;
}

}  // namespace detail

// A matrix [out, in] in a checkpoint, which must outlive it.
class matrix_ref {
 public:
  // Throws format_error naming the tensor that is missing or of another type or shape than its layout wants, or a feature
  // that is not supported: zero points, a group order.
  matrix_ref(const checkpoint& files, const std::string& name, std::size_t out, std::size_t in) : out_(out), in_(in) {
    for (const char* unsupported : {".weight_zero_point", ".weight_g_idx"}) {
      if (files.contains(name + unsupported)) files.tensor(name + unsupported).fail("is not supported");
    }
    if (files.contains(name + ".weight_packed")) {
      find_packed(files, name);
      return;
    }
    weight_ = files.tensor(name + ".weight", std::vector<std::size_t>{out, in});
    if (weight_.dtype == dtype::i8) {
      layout_ = matrix_layout::int8;
      scale_ = read_float(files.tensor(name + ".weight_scale", std::vector<std::size_t>{out, 1}));
      group_ = in;
    } else if (dtype_size(weight_.dtype) == 1 || files.contains(name + ".weight_scale_inv")) {
      layout_ = matrix_layout::fp8;
      if (!files.contains(name + ".weight_scale_inv")) {
        weight_.fail("an fp8 tensor needs its scales, " + name + ".weight_scale_inv");
      }
      scale_ = read_float(
          files.tensor(name + ".weight_scale_inv", std::vector<std::size_t>{fp8_blocks(out), fp8_blocks(in)}));
    }
  }

  matrix_layout layout() const { return layout_; }
  std::size_t out_features() const { return out_; }
  std::size_t in_features() const { return in_; }
  const tensor_ref& weight() const { return weight_; }  // or what is packed

  // Rows [begin, begin + rows) as float32. Throws shape_error.
  void read(std::size_t begin, const view<float, 2>& rows) const {
    check(begin <= out_ && rows.extent(0) <= out_ - begin, "matrix_ref", "read: rows outside the matrix");
    check_view("matrix_ref", "rows", rows, {rows.extent(0), in_});
    if (layout_ == matrix_layout::plain || layout_ == matrix_layout::fp8) read_floating(begin, rows);
    for (std::size_t r = 0; r < rows.extent(0); ++r) {
      const std::size_t n = begin + r;
      float* to = rows.row(r);
      for (std::size_t k = 0; k < in_; ++k) {
        if (layout_ == matrix_layout::plain) break;
        if (layout_ == matrix_layout::fp8) {
          to[k] *= scale_[n / fp8_block * fp8_blocks(in_) + k / fp8_block];
        } else {
          to[k] = value(n, k);
        }
      }
    }
  }
  buffer<float> read() const {
    buffer<float> values(out_ * in_);
    read(0, values.as(out_, in_));
    return values;
  }

  // The codes of an int8 matrix, and its scales. Throws shape_error for another layout.
  view<const std::int8_t, 2> codes() const {
    check(layout_ == matrix_layout::int8, "matrix_ref", "codes: expected an int8 matrix");
    return {reinterpret_cast<const std::int8_t*>(weight_.bytes.data()), out_, in_};
  }
  const buffer<float>& scale() const { return scale_; }

  // The same numbers as blocks, for int4 with scales that float16 holds exactly and groups of whole blocks.
  std::optional<buffer<q4_0>> to_q4_0() const {
    if (layout_ != matrix_layout::int4 || group_ % q4_0::block_size != 0) return std::nullopt;
    for (const float s : scale_) {
      if (static_cast<float>(f16(s)) != s) return std::nullopt;
    }
    buffer<q4_0> blocks(out_ * in_ / q4_0::block_size);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const std::size_t first = i * q4_0::block_size;
      blocks[i].d = f16(scale_[first / group_]);
      for (std::size_t j = 0; j < q4_0::block_size / 2; ++j) {
        blocks[i].q[j] = static_cast<std::uint8_t>(int4_nibble(first + j) | int4_nibble(first + j + 16) << 4);
      }
    }
    return blocks;
  }

  // The same numbers as blocks, for mxfp4.
  std::optional<buffer<mxfp4>> to_mxfp4() const {
    if (layout_ != matrix_layout::mxfp4) return std::nullopt;
    buffer<mxfp4> blocks(out_ * in_ / mxfp4::block_size);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const std::size_t first = i * mxfp4::block_size;
      blocks[i].e = f8_e8m0::from_bits(detail::element<std::uint8_t>(packed_scale_, i));
      for (std::size_t j = 0; j < mxfp4::block_size / 2; ++j) {
        blocks[i].q[j] = static_cast<std::uint8_t>(fp4_nibble(first + j) | fp4_nibble(first + j + 16) << 4);
      }
    }
    return blocks;
  }

 private:
  void find_packed(const checkpoint& files, const std::string& name) {
    weight_ = files.tensor(name + ".weight_packed");
    const tensor_ref& scale = files.tensor(name + ".weight_scale");
    const auto expect = [](const tensor_ref& t, const std::vector<std::size_t>& shape) {
      if (t.shape != shape) t.fail("expected shape " + shape_text(shape) + ", got " + shape_text(t.shape));
    };
    if (weight_.dtype == dtype::i32) {
      layout_ = matrix_layout::int4;
      const tensor_ref& stated = files.tensor(name + ".weight_shape", std::vector<std::size_t>{2});
      if (stated.dtype != dtype::i64 && stated.dtype != dtype::i32) stated.fail("expected I64 or I32");
      for (std::size_t d = 0; d < 2; ++d) {
        const std::int64_t extent = stated.dtype == dtype::i64 ? detail::element<std::int64_t>(stated, d)
                                                               : detail::element<std::int32_t>(stated, d);
        if (extent != static_cast<std::int64_t>(d == 0 ? out_ : in_)) {
          stated.fail("expected " + shape_text(std::vector<std::size_t>{out_, in_}));
        }
      }
      expect(weight_, {out_, (in_ + 7) / 8});
      if (scale.shape.size() != 2 || scale.shape[0] != out_ || scale.shape[1] == 0 || in_ % scale.shape[1] != 0) {
        scale.fail("expected a scale for each group of a row");
      }
      group_ = in_ / scale.shape[1];
      scale_ = read_float(scale);
      return;
    }
    if (weight_.dtype != dtype::u8) weight_.fail("expected I32 or U8");
    if (in_ % 2 != 0) weight_.fail("expected an even number of columns");
    expect(weight_, {out_, in_ / 2});
    layout_ = files.contains(name + ".weight_global_scale") ? matrix_layout::nvfp4 : matrix_layout::mxfp4;
    group_ = layout_ == matrix_layout::nvfp4 ? 16 : 32;
    if (in_ % group_ != 0) weight_.fail("expected columns in multiples of " + std::to_string(group_));
    expect(scale, {out_, in_ / group_});
    packed_scale_ = scale;
    if (scale.dtype != (layout_ == matrix_layout::nvfp4 ? dtype::f8_e4m3 : dtype::u8)) {
      scale.fail(layout_ == matrix_layout::nvfp4 ? "expected F8_E4M3" : "expected U8");
    }
    if (layout_ == matrix_layout::nvfp4) {
      const tensor_ref& global = files.tensor(name + ".weight_global_scale", std::vector<std::size_t>{1});
      global_scale_ = read_float(global)[0];
      if (!(global_scale_ > 0.0f)) global.fail("expected a positive number");
    }
  }

  // Rows of elements of any floating-point type, without scales.
  void read_floating(std::size_t begin, const view<float, 2>& rows) const {
    tensor_ref part = weight_;
    const std::size_t row_bytes = in_ * dtype_size(weight_.dtype);
    part.shape[0] = rows.extent(0);
    part.bytes = weight_.bytes.subspan(begin * row_bytes, rows.extent(0) * row_bytes);
    const buffer<float> values = read_float(part);
    for (std::size_t r = 0; r < rows.extent(0); ++r) std::copy_n(values.data() + r * in_, in_, rows.row(r));
  }

  // Of element i of a matrix whose rows are whole words or bytes.
  std::uint8_t int4_nibble(std::size_t i) const {
    return static_cast<std::uint8_t>(detail::element<std::uint32_t>(weight_, i / 8) >> (i % 8 * 4) & 15u);
  }
  std::uint8_t fp4_nibble(std::size_t i) const {
    return static_cast<std::uint8_t>(detail::element<std::uint8_t>(weight_, i / 2) >> (i % 2 * 4) & 15);
  }

  float value(std::size_t n, std::size_t k) const {
    const std::size_t i = n * in_ + k;
    switch (layout_) {
      case matrix_layout::int8:
        return static_cast<float>(detail::element<std::int8_t>(weight_, i)) * scale_[n];
      case matrix_layout::int4: {
        const std::size_t words = (in_ + 7) / 8;
        return static_cast<float>(int4_nibble(n * words * 8 + k) - 8) * scale_[n * (in_ / group_) + k / group_];
      }
      case matrix_layout::mxfp4:
        return static_cast<float>(f4_e2m1::from_bits(fp4_nibble(i))) *
               static_cast<float>(f8_e8m0::from_bits(detail::element<std::uint8_t>(packed_scale_, i / group_)));
      default:
        return static_cast<float>(f4_e2m1::from_bits(fp4_nibble(i))) *
               static_cast<float>(detail::element<f8_e4m3>(packed_scale_, i / group_)) / global_scale_;
    }
  }

  matrix_layout layout_ = matrix_layout::plain;
  std::size_t out_, in_, group_ = 0;
  tensor_ref weight_, packed_scale_;
  buffer<float> scale_;
  float global_scale_ = 1.0f;
};

MOTE_END_NAMESPACE
