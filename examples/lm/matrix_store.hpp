// Owns the matrices of a model that do not lie in a mapped file as the kernels want them, and makes them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include <mote/core/backend.hpp>
#include <mote/core/buffer.hpp>
#include <mote/core/simd.hpp>
#include <mote/core/workspace.hpp>
#include <mote/io/compressed_tensors.hpp>
#include <mote/quant/fp8.hpp>
#include <mote/quant/int8.hpp>
#include <mote/quant/packed.hpp>
#include <mote/quant/quantize.hpp>
#include <mote/quant/weight.hpp>

#include "weight_format.hpp"

namespace lm {

class matrix_store {
 public:
  // Where packed matrices of any format may be cut.
  static constexpr std::size_t panel_rows = mote::packed_matrix<std::int8_t>::panel_rows;

  // Forgets all matrices.
  void clear() { *this = {}; }

  mote::view<const float, 1> keep(mote::buffer<float> values) {
    const mote::buffer<float>& kept = floats_.emplace_back(std::move(values));
    return kept.as(kept.size());
  }

  // values [rows, columns] in a format; `stored` is bf16 where that is exact, else float32. A block format that does not
  // divide the columns gives way to q8_0; where that does not either, or where the matrix will be cut into `slice` rows that
  // are no whole panels, to bf16.
  template <class Backend>
  mote::weight make(Backend& be, mote::buffer<float> values, std::size_t rows, std::size_t columns,
                    weight_format format, bool exact_bf16, std::size_t slice) {
    if (is_block_format(format)) {
      if (auto blocks = quantized(be, values, rows, columns, format, slice)) return *blocks;
      format = weight_format::bf16;
    }
    if (format == weight_format::int8) {
      auto& codes = codes_.emplace_back(rows * columns);
      auto& scale = floats_.emplace_back(rows);
      mote::quantize_int8(values.as(rows, columns), codes.as(rows, columns), scale.as(rows));
      const mote::int8_matrix matrix{std::as_const(codes).as(rows, columns), std::as_const(scale).as(rows)};
      if (slice % panel_rows != 0) return matrix;
      const mote::weight arranged = arrange(be, matrix);
      if (std::holds_alternative<mote::int8_matrix>(arranged)) return arranged;
      codes_.pop_back();
      floats_.pop_back();
      return arranged;
    }
    if (format == weight_format::fp8) {
      auto& codes = bytes_.emplace_back(rows * columns);
      const mote::view<mote::f8_e4m3, 2> floats(reinterpret_cast<mote::f8_e4m3*>(codes.data()), rows, columns);
      const std::size_t tile_rows = mote::fp8_blocks(rows), tile_columns = mote::fp8_blocks(columns);
      mote::buffer<float> scale(tile_rows * tile_columns);
      mote::quantize_fp8(values.as(rows, columns), floats, scale.as(tile_rows, tile_columns));
      return mote::scaled_matrix{.codes = mote::view<const mote::f8_e4m3, 2>(floats),
                                 .scale = keep(std::move(scale)).reshaped(tile_rows, tile_columns),
                                 .tile_rows = mote::fp8_block,
                                 .tile_columns = mote::fp8_block};
    }
    if (format == weight_format::f16) {
      auto& narrow = bytes_.emplace_back(values.size() * sizeof(mote::f16));
      auto* to = reinterpret_cast<mote::f16*>(narrow.data());
      std::transform(values.begin(), values.end(), to, [](float v) { return mote::f16(v); });
      return mote::view<const mote::f16, 2>(to, rows, columns);
    }
    if (format == weight_format::bf16 || (format == weight_format::stored && exact_bf16)) {
      auto& narrow = halves_.emplace_back(values.size());
      for (std::size_t i = 0; i < values.size(); ++i) narrow[i] = mote::bf16(values[i]);
      return std::as_const(narrow).as(rows, columns);
    }
    return keep(std::move(values)).reshaped(rows, columns);
  }

  // The numbers of a quantized matrix in that form of mote's which holds just those, the fastest where there are several.
  template <class Backend>
  std::optional<mote::weight> same(Backend& be, const mote::matrix_ref& stored) {
    const std::size_t rows = stored.out_features(), columns = stored.in_features();
    const auto blocks = [&]<class F>(std::optional<mote::buffer<F>> values) -> std::optional<mote::weight> {
      if (!values) return std::nullopt;
      mote::buffer<std::uint8_t> bytes(values->size() * sizeof(F));
      std::memcpy(bytes.data(), values->data(), bytes.size());
      const mote::view<const F, 2> view(reinterpret_cast<const F*>(bytes.data()), rows, columns / F::block_size);
      const mote::weight arranged = arrange(be, view);
      if (std::holds_alternative<mote::view<const F, 2>>(arranged)) bytes_.push_back(std::move(bytes));
      return arranged;
    };
    if (stored.layout() == mote::matrix_layout::blocks) {
      std::optional<mote::weight> found;
      mote::for_each_format([&]<class F>() {
        if (!found) found = blocks(stored.to_blocks<F>());
      });
      return found;
    }
    if (auto four = blocks(stored.to_q4_0())) return four;
    if (auto four = blocks(stored.to_mxfp4())) return four;
    if (const auto four = stored.to_nvfp4()) {
      return packed(be, four->as(rows, columns / mote::nvfp4::block_size), stored.tensor_scale());
    }
    if (stored.layout() == mote::matrix_layout::nvfp4) return std::nullopt;
    return same(be, stored.scaled());
  }

  // Codes stay where they are, in the mapped file; but int8 with one scale a row, which has faster kernels, is packed.
  template <class Backend>
  mote::weight same(Backend& be, mote::scaled_matrix w) {
    const auto* codes = std::get_if<mote::view<const std::int8_t, 2>>(&w.codes);
    if (codes != nullptr && w.zero.empty() && w.tile_columns >= codes->extent(1)) {
      mote::buffer<float> scale(codes->extent(0));
      for (std::size_t n = 0; n < scale.size(); ++n) scale[n] = w.scale(n / w.tile_rows, std::size_t{0});
      return arrange(be, mote::int8_matrix{*codes, keep(std::move(scale))});
    }
    mote::buffer<float> scale(w.scale.size());
    std::copy_n(w.scale.data(), scale.size(), scale.begin());
    w.scale = keep(std::move(scale)).reshaped(w.scale.extent(0), w.scale.extent(1));
    auto& zero = codes_.emplace_back(w.zero.size());
    std::copy_n(w.zero.data(), zero.size(), zero.begin());
    w.zero = std::as_const(zero).as(w.zero.extent(0), w.zero.extent(1));
    return w;
  }

  // Blocks as a file holds them in the order of the back end's kernels: packed for mote::simd, as they are for others.
  template <class F, class Arch, class Executor>
  mote::weight arrange(mote::simd<Arch, Executor>& be, mote::view<const F, 2> blocks) {
    if constexpr (mote::integer_format<F>) {
      return mote::pack(be, blocks, room(mote::packed_matrix<F>::size(blocks.extent(0), mote::in_features(blocks))));
    } else {
      return blocks;
    }
  }
  template <class F, class Backend>
  mote::weight arrange(Backend&, mote::view<const F, 2> blocks) {
    return blocks;
  }
  // The same times a scale, which blocks alone do not have: packed, or nothing.
  template <class F, class Arch, class Executor>
  std::optional<mote::weight> packed(mote::simd<Arch, Executor>& be, mote::view<const F, 2> blocks, float scale) {
    const std::size_t size = mote::packed_matrix<F>::size(blocks.extent(0), mote::in_features(blocks));
    return mote::pack(be, blocks, room(size), scale);
  }
  template <class F, class Backend>
  std::optional<mote::weight> packed(Backend&, mote::view<const F, 2>, float) {
    return std::nullopt;
  }
  template <class Arch, class Executor>
  mote::weight arrange(mote::simd<Arch, Executor>& be, const mote::int8_matrix& matrix) {
    const std::size_t out = mote::out_features(matrix), in = mote::in_features(matrix);
    return mote::pack(be, matrix, room(mote::packed_matrix<std::int8_t>::size(out, in)));
  }
  template <class Backend>
  mote::weight arrange(Backend&, const mote::int8_matrix& matrix) {
    return matrix;
  }

 private:
  // For a packed matrix. They lie together in few large blocks, which the system can hold in huge pages.
  mote::view<std::uint8_t, 1> room(std::size_t bytes) {
    return {static_cast<std::uint8_t*>(packed_.allocate(bytes)), bytes};
  }

  template <class Backend>
  std::optional<mote::weight> quantized(Backend& be, const mote::buffer<float>& values, std::size_t rows,
                                        std::size_t columns, weight_format format, std::size_t slice) {
    std::optional<mote::weight> result;
    const auto attempt = [&]<class F>() {
      if (result || columns % F::block_size != 0 || slice % panel_rows != 0) return;
      mote::buffer<std::uint8_t> bytes(rows * (columns / F::block_size) * sizeof(F));
      const mote::view<F, 2> blocks(reinterpret_cast<F*>(bytes.data()), rows, columns / F::block_size);
      mote::quantize<F>(be, values.as(rows, columns), blocks);
      result = arrange(be, mote::view<const F, 2>(blocks));
      if (std::holds_alternative<mote::view<const F, 2>>(*result)) bytes_.push_back(std::move(bytes));
    };
    with_block_format(format, attempt);
    attempt.template operator()<mote::q8_0>();
    return result;
  }

  std::vector<mote::buffer<float>> floats_;
  std::vector<mote::buffer<mote::bf16>> halves_;
  std::vector<mote::buffer<std::int8_t>> codes_;
  std::vector<mote::buffer<std::uint8_t>> bytes_;
  mote::workspace packed_{std::size_t{1} << 26};
};

}  // namespace lm
