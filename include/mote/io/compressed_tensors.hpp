// Matrices of linear layers in safetensors checkpoints, whichever way they are stored. Of a layer NAME [out, in]:
//
//   plain   NAME.weight floating point [out, in]
//   fp8     NAME.weight F8_E4M3 or F8_E5M2 [out, in] and NAME.weight_scale_inv or NAME.weight_scale: [1] or [1, 1] for the
//           tensor, [out] or [out, 1] for each row, [⌈out / 128⌉, ⌈in / 128⌉] for each block               w = q · scale
//   int8    NAME.weight I8 [out, in], NAME.weight_scale [1], [1, 1], [out], [out, 1] or for each
//           group [out, in / group], NAME.weight_zero_point I8 [like it] if asymmetric             w = (q - zero) · scale
//   int4    NAME.weight_packed I32 [out, in / 8], NAME.weight_scale [out, in / group],
//           NAME.weight_shape [2] = (out, in); a word holds eight codes q + 8, the first in its
//           lowest bits; NAME.weight_zero_point I32 [⌈out / 8⌉, in / group] if asymmetric, eight
//           rows' zero + 8 a word                                                                  w = (q - zero) · scale
//   mxfp4   NAME.weight_packed U8 [out, in / 2], NAME.weight_scale U8 [out, in / 32]          w = e2m1 · 2^(scale - 127)
//   nvfp4   NAME.weight_packed U8 [out, in / 2], NAME.weight_scale F8_E4M3 [out, in / 16],
//           NAME.weight_global_scale [1]; a byte holds two codes, the first low             w = e2m1 · scale · (1 / global_scale)
//   blocks  NAME.weight_FORMAT U8 [out, in / F::block_size · sizeof(F)] for each F of quant/formats.hpp, its blocks as they
//           lie in memory                                                                                  w = F::decode()
//
// Source: fp8 as DeepSeek-V3 stores it and as the package compressed-tensors does; int8 to nvfp4 as that package does (formats
// float-quantized, int-quantized, pack-quantized, mxfp4-pack-quantized, nvfp4-pack-quantized); blocks are mote's own.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/buffer.hpp"
#include "../core/error.hpp"
#include "../core/types.hpp"
#include "../core/view.hpp"
#include "../quant/formats.hpp"
#include "../quant/fp8.hpp"
#include "../quant/microscaling.hpp"
#include "../quant/scaled_matrix.hpp"
#include "safetensors.hpp"

MOTE_BEGIN_NAMESPACE

enum class matrix_layout { plain, fp8, int8, int4, mxfp4, nvfp4, blocks };

namespace detail {

// Element i of a tensor of elements T, which may be unaligned.
template <class T>
T element(const tensor_ref& t, std::size_t i) {
  T value;
  std::memcpy(static_cast<void*>(&value), t.bytes.data() + i * sizeof(T), sizeof(T));
  return value;
}

// Element i of a tensor of whole numbers, such as NAME.weight_shape. Throws format_error.
inline std::int64_t whole_element(const tensor_ref& t, std::size_t i) {
  if (t.dtype == dtype::i64) return element<std::int64_t>(t, i);
  if (t.dtype != dtype::i32) t.fail("expected I64 or I32");
  return element<std::int32_t>(t, i);
}

// FORMAT of a tensor NAME.weight_FORMAT, or "".
inline std::string_view stored_format(std::string_view tensor) {
  constexpr std::string_view mark = ".weight_";
  const std::size_t at = tensor.rfind(mark);
  return at == std::string_view::npos ? std::string_view() : tensor.substr(at + mark.size());
}

}  // namespace detail

// The tensor with the numbers or codes of linear layer `name`: NAME.weight where there is none.
inline std::string stored_matrix_name(const checkpoint& files, const std::string& name) {
  std::string found = name + ".weight";
  if (files.contains(found)) return found;
  if (files.contains(found + "_packed")) return found + "_packed";
  for_each_format([&]<class F>() {
    const std::string blocks = name + ".weight_" + std::string(F::name);
    if (files.contains(blocks)) found = blocks;
  });
  return found;
}

// A matrix [out, in] in a checkpoint, which must outlive it.
class matrix_ref {
 public:
  // Throws format_error naming the tensor that is missing or of another type or shape than its layout wants, or a feature
  // that is not supported: a group order, codes of other widths.
  matrix_ref(const checkpoint& files, const std::string& name, std::size_t out, std::size_t in) : out_(out), in_(in) {
    if (files.contains(name + ".weight_g_idx")) files.tensor(name + ".weight_g_idx").fail("is not supported");
    const std::string stored = stored_matrix_name(files, name);
    with_format(detail::stored_format(stored), [&]<class F>() { find_blocks<F>(files.tensor(stored)); });
    if (layout_ == matrix_layout::blocks) return;
    if (stored.ends_with(".weight_packed")) {
      weight_ = files.tensor(stored);
      if (weight_.dtype == dtype::i32) {
        find_int4(files, name);
      } else {
        find_fp4(files, name);
      }
      return;
    }
    weight_ = files.tensor(stored, std::vector<std::size_t>{out, in});
    const std::string inverse = name + ".weight_scale_inv";
    if (weight_.dtype == dtype::i8) {
      layout_ = matrix_layout::int8;
      scaled_.codes = codes_as<std::int8_t>();
      const tensor_ref& scale = files.tensor(name + ".weight_scale");
      read_scales(scale);
      if (files.contains(name + ".weight_zero_point")) {
        read_int8_zeros(files.tensor(name + ".weight_zero_point", scale.shape));
      }
    } else if (dtype_size(weight_.dtype) == 1 || files.contains(inverse)) {
      layout_ = matrix_layout::fp8;
      const std::string scale = files.contains(inverse) ? inverse : name + ".weight_scale";
      if (!files.contains(scale)) weight_.fail("an fp8 tensor needs its scales, " + inverse);
      if (weight_.dtype == dtype::f8_e4m3) {
        scaled_.codes = codes_as<f8_e4m3>();
      } else if (weight_.dtype == dtype::f8_e5m2) {
        scaled_.codes = codes_as<f8_e5m2>();
      } else {
        weight_.fail("expected F8_E4M3 or F8_E5M2 beside " + scale);
      }
      read_scales(files.tensor(scale));
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
    if (in_ == 0) return;  // a hostile file's [2^60, 0] has too many empty rows to visit
    if (layout_ == matrix_layout::plain) return read_floating(begin, rows);
    for (std::size_t r = 0; r < rows.extent(0); ++r) {
      if (has_scaled()) {
        dequantize_row(scaled_, begin + r, rows.row(r));
      } else if (layout_ == matrix_layout::blocks) {
        decode_blocks_(weight_.bytes.data() + (begin + r) * weight_.shape[1], in_, rows.row(r));
      } else {
        for (std::size_t k = 0; k < in_; ++k) rows(r, k) = fp4_value((begin + r) * in_ + k);
      }
    }
  }
  buffer<float> read() const {
    buffer<float> values(out_ * in_);
    read(0, values.as(out_, in_));
    return values;
  }

  // The matrix where its codes lie in the file; its scales and zero points belong to this object. Throws shape_error for
  // another layout than fp8, int8 and int4.
  const scaled_matrix& scaled() const {
    check(has_scaled(), "matrix_ref", "scaled: expected an fp8, int8 or int4 matrix");
    return scaled_;
  }

  // The same numbers as blocks, for symmetric int4 with scales that float16 holds exactly and groups of whole blocks.
  std::optional<buffer<q4_0>> to_q4_0() const {
    constexpr std::size_t size = q4_0::block_size;
    if (layout_ != matrix_layout::int4 || !zero_.empty() || scaled_.tile_columns % size != 0) return std::nullopt;
    for (const float s : scale_) {
      if (static_cast<float>(f16(s)) != s) return std::nullopt;
    }
    buffer<q4_0> blocks(out_ * in_ / size);
    const auto rows = blocks.as(out_, in_ / size);
    for (std::size_t n = 0; n < out_; ++n) {
      const auto* pairs = std::get<view<const int4_pair, 2>>(scaled_.codes).row(n);
      for (std::size_t b = 0; b < in_ / size; ++b) {
        rows(n, b).d = f16(scaled_.scale(n / scaled_.tile_rows, b * size / scaled_.tile_columns));
        detail::halves_of_pairs<size>(reinterpret_cast<const std::uint8_t*>(pairs) + b * size / 2, rows(n, b).q);
      }
    }
    return blocks;
  }

  // The same numbers as blocks, for mxfp4.
  std::optional<buffer<mxfp4>> to_mxfp4() const {
    if (layout_ != matrix_layout::mxfp4) return std::nullopt;
    buffer<mxfp4> blocks(out_ * in_ / mxfp4::block_size);
    load_mxfp4(fp4_pairs(), fp4_scales<f8_e8m0>(32), blocks.as(out_, in_ / mxfp4::block_size));
    return blocks;
  }

  // For nvfp4 the same divided by tensor_scale(), where rows are whole blocks and scales are numbers that blocks may have.
  std::optional<buffer<nvfp4>> to_nvfp4() const {
    if (layout_ != matrix_layout::nvfp4 || in_ % nvfp4::block_size != 0) return std::nullopt;
    const auto positive = [](std::byte scale) { return scale < std::byte{0x7F}; };
    if (!std::all_of(packed_scale_.bytes.begin(), packed_scale_.bytes.end(), positive)) return std::nullopt;
    buffer<nvfp4> blocks(out_ * in_ / nvfp4::block_size);
    load_nvfp4(fp4_pairs(), fp4_scales<f8_e4m3>(16), blocks.as(out_, in_ / nvfp4::block_size));
    return blocks;
  }
  float tensor_scale() const { return tensor_scale_; }

  // Whether the matrix is stored in blocks of format F; these blocks.
  template <block_format F>
  bool has_blocks() const {
    return layout_ == matrix_layout::blocks && decode_blocks_ == &decode_blocks<F>;
  }
  template <block_format F>
  std::optional<buffer<F>> to_blocks() const {
    if (!has_blocks<F>()) return std::nullopt;
    buffer<F> blocks(weight_.bytes.size() / sizeof(F));
    if (!weight_.bytes.empty())
      std::memcpy(static_cast<void*>(blocks.data()), weight_.bytes.data(), weight_.bytes.size());
    return blocks;
  }

 private:
  bool has_scaled() const {
    return layout_ == matrix_layout::fp8 || layout_ == matrix_layout::int8 || layout_ == matrix_layout::int4;
  }

  static void expect(const tensor_ref& t, const std::vector<std::size_t>& shape) {
    if (t.shape != shape) t.fail("expected shape " + shape_text(shape) + ", got " + shape_text(t.shape));
  }

  template <class Code>
  view<const Code, 2> codes_as() const {
    return {reinterpret_cast<const Code*>(weight_.bytes.data()), out_, in_};
  }

  // Finds out from the scales' shape what each of them is for.
  void read_scales(const tensor_ref& t) {
    using shape = std::vector<std::size_t>;
    const bool for_matrix = t.shape == shape{1} || t.shape == shape{1, 1};
    const bool for_rows = t.shape == shape{out_} || t.shape == shape{out_, 1};
    const shape blocks = {fp8_blocks(out_), fp8_blocks(in_)};
    scaled_.tile_rows = 1;
    scaled_.tile_columns = std::max(in_, std::size_t{1});
    if (for_matrix) {
      scaled_.tile_rows = std::max(out_, std::size_t{1});
    } else if (layout_ == matrix_layout::fp8 && t.shape == blocks) {
      scaled_.tile_rows = scaled_.tile_columns = fp8_block;
    } else if (!for_rows) {
      if (layout_ == matrix_layout::fp8) {
        t.fail("expected a scale for the matrix, for each row or for each block, " + shape_text(blocks) +
               ", got shape " + shape_text(t.shape));
      }
      if (t.shape.size() != 2 || t.shape[0] != out_ || t.shape[1] == 0 || in_ % t.shape[1] != 0) {
        t.fail("expected a scale for each group of a row, got shape " + shape_text(t.shape));
      }
      scaled_.tile_columns = std::max(in_ / t.shape[1], std::size_t{1});
    }
    scale_ = read_float(t);
    scaled_.scale = scale_.as(scale_rows(), scale_columns());
  }
  std::size_t scale_rows() const { return (out_ + scaled_.tile_rows - 1) / scaled_.tile_rows; }
  std::size_t scale_columns() const { return (in_ + scaled_.tile_columns - 1) / scaled_.tile_columns; }

  void read_int8_zeros(const tensor_ref& t) {
    if (t.dtype != dtype::i8) t.fail("expected I8");
    zero_ = buffer<std::int8_t>(t.size());
    for (std::size_t i = 0; i < zero_.size(); ++i) zero_[i] = detail::element<std::int8_t>(t, i);
    scaled_.zero = zero_.as(scale_rows(), scale_columns());
  }

  // n numbers of blocks, which may be unaligned.
  template <block_format F>
  static void decode_blocks(const std::byte* bytes, std::size_t n, float* y) {
    for (std::size_t i = 0; i < n; i += F::block_size, bytes += sizeof(F)) {
      F block;
      std::memcpy(static_cast<void*>(&block), bytes, sizeof(F));
      block.decode(y + i);
    }
  }

  template <block_format F>
  void find_blocks(const tensor_ref& t) {
    weight_ = t;
    layout_ = matrix_layout::blocks;
    decode_blocks_ = &decode_blocks<F>;
    if (t.dtype != dtype::u8) t.fail("expected U8");
    if (in_ % F::block_size != 0) t.fail("expected columns in multiples of " + std::to_string(F::block_size));
    expect(t, {out_, in_ / F::block_size * sizeof(F)});
  }

  void find_int4(const checkpoint& files, const std::string& name) {
    layout_ = matrix_layout::int4;
    const tensor_ref& stated = files.tensor(name + ".weight_shape", std::vector<std::size_t>{2});
    for (std::size_t d = 0; d < 2; ++d) {
      if (detail::whole_element(stated, d) != static_cast<std::int64_t>(d == 0 ? out_ : in_)) {
        stated.fail("expected " + shape_text(std::vector<std::size_t>{out_, in_}));
      }
    }
    const std::size_t words = (in_ + 7) / 8;
    expect(weight_, {out_, words});
    read_scales(files.tensor(name + ".weight_scale"));
    if (in_ % 2 != 0 || (scaled_.tile_columns % 2 != 0)) weight_.fail("expected groups of an even number of columns");
    scaled_.codes = view<const int4_pair, 2>(reinterpret_cast<const int4_pair*>(weight_.bytes.data()), {out_, in_ / 2},
                                             {words * 4, 1});
    if (!files.contains(name + ".weight_zero_point")) return;
    const tensor_ref& zero = files.tensor(name + ".weight_zero_point");
    const std::size_t rows = scale_rows(), columns = scale_columns();
    if (zero.dtype != dtype::i32) zero.fail("expected I32");
    expect(zero, {(rows + 7) / 8, columns});
    zero_ = buffer<std::int8_t>(rows * columns);
    for (std::size_t i = 0; i < zero_.size(); ++i) {
      const std::size_t row = i / columns;
      const auto word = detail::element<std::uint32_t>(zero, row / 8 * columns + i % columns);
      zero_[i] = static_cast<std::int8_t>(static_cast<int>(word >> (row % 8 * 4) & 15u) - 8);
    }
    scaled_.zero = zero_.as(rows, columns);
  }

  void find_fp4(const checkpoint& files, const std::string& name) {
    if (weight_.dtype != dtype::u8) weight_.fail("expected I32 or U8");
    if (files.contains(name + ".weight_zero_point")) files.tensor(name + ".weight_zero_point").fail("is not supported");
    layout_ = files.contains(name + ".weight_global_scale") ? matrix_layout::nvfp4 : matrix_layout::mxfp4;
    const bool nv = layout_ == matrix_layout::nvfp4;
    const std::size_t group = nv ? nvfp4::group_size : mxfp4::group_size;
    if (in_ % group != 0) weight_.fail("expected columns in multiples of " + std::to_string(group));
    expect(weight_, {out_, in_ / 2});
    packed_scale_ = files.tensor(name + ".weight_scale");
    expect(packed_scale_, {out_, in_ / group});
    if (packed_scale_.dtype != (nv ? dtype::f8_e4m3 : dtype::u8))
      packed_scale_.fail(nv ? "expected F8_E4M3" : "expected U8");
    if (nv) {
      const tensor_ref& global = files.tensor(name + ".weight_global_scale", std::vector<std::size_t>{1});
      tensor_scale_ = 1.0f / read_float(global)[0];
      if (!(tensor_scale_ > 0.0f && tensor_scale_ <= std::numeric_limits<float>::max()))
        global.fail("expected a positive number");
    }
  }

  view<const std::uint8_t, 2> fp4_pairs() const {
    return {reinterpret_cast<const std::uint8_t*>(weight_.bytes.data()), out_, in_ / 2};
  }
  template <class Scale>
  view<const Scale, 2> fp4_scales(std::size_t group) const {
    return {reinterpret_cast<const Scale*>(packed_scale_.bytes.data()), out_, in_ / group};
  }

  // Element i of an mxfp4 or nvfp4 matrix.
  float fp4_value(std::size_t i) const {
    const auto pair = detail::element<std::uint8_t>(weight_, i / 2);
    const auto code = static_cast<float>(f4_e2m1::from_bits(static_cast<std::uint8_t>(pair >> (i % 2 * 4) & 15)));
    if (layout_ == matrix_layout::nvfp4) {
      return code * (static_cast<float>(detail::element<f8_e4m3>(packed_scale_, i / 16)) * tensor_scale_);
    }
    return code * static_cast<float>(f8_e8m0::from_bits(detail::element<std::uint8_t>(packed_scale_, i / 32)));
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

  matrix_layout layout_ = matrix_layout::plain;
  std::size_t out_, in_;
  tensor_ref weight_, packed_scale_;
  scaled_matrix scaled_;
  buffer<float> scale_;
  buffer<std::int8_t> zero_;
  float tensor_scale_ = 1.0f;
  void (*decode_blocks_)(const std::byte* bytes, std::size_t n, float* y) = nullptr;
};

MOTE_END_NAMESPACE
