#include "support/weights.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>
#include <utility>

#include <mote/core/simd.hpp>
#include <mote/quant/formats.hpp>
#include <mote/quant/fp8.hpp>
#include <mote/quant/int8.hpp>
#include <mote/quant/quantize.hpp>

#include "support/bench.hpp"

namespace bench {

std::vector<weight_form> weight_forms() {
  std::vector<weight_form> all;
  mote::for_each_format([&]<class F>() {
    all.push_back({std::string(std::string_view(F::name)),
                   mote::integer_format<F> ? arithmetic::int8 : arithmetic::float32, F::block_size});
  });
  all.push_back({"int8", arithmetic::int8});
  all.push_back({"bf16", arithmetic::bf16});
  all.push_back({"bf16_rows", arithmetic::float32});
  all.push_back({"fp8", arithmetic::float32});
  all.push_back({"f32", arithmetic::float32});
  return all;
}

weight_form form_named(const std::string& name) {
  const auto all = weight_forms();
  return *std::find_if(all.begin(), all.end(), [&](const weight_form& form) { return form.name == name; });
}

// A matrix is a panel, or a row, after the other: those of `few`, over and over.
void matrices::repeat(const std::uint8_t* few, std::size_t piece, std::size_t pieces, std::size_t size) {
  if (count_ == 0) count_ = beyond_cache() / size + 1;
  bytes_ = mote::buffer<std::uint8_t>(size * count_);
  for (std::size_t i = 0; i < count_; ++i) {
    for (std::size_t p = 0; p * piece < size; ++p) {
      std::memcpy(bytes_.data() + i * size + p * piece, few + p % pieces * piece, piece);
    }
  }
}

template <class T, class Matrix>
void matrices::keep_packed(const Matrix& few) {
  using packed = mote::packed_matrix<T>;
  mote::simd<> be;
  mote::buffer<std::uint8_t> panels(packed::size(rows, in_));
  const auto order = mote::pack(be, few, panels.as(panels.size())).order();
  const std::size_t size = packed::size(out_, in_);
  repeat(panels.data(), packed::panel_bytes(in_), rows / packed::panel_rows, size);
  for (std::size_t i = 0; i < count_; ++i) {
    all_.push_back(packed(std::as_const(bytes_).as(size * count_).slice(0, i * size, size), out_, in_, order));
  }
}

template <class T>
void matrices::keep_rows() {
  const auto few = source().stored;
  const std::size_t size = few.extent(1) * out_;
  repeat(few.data(), few.extent(1), rows, size);
  const std::size_t columns = few.extent(1) / sizeof(T);
  for (std::size_t i = 0; i < count_; ++i) {
    all_.push_back(mote::view<const T, 2>(reinterpret_cast<const T*>(bytes_.data() + i * size), out_, columns));
  }
}

// The few rows lie within one row of DeepSeek's blocks, whose scales do for all others.
void matrices::keep_fp8() {
  static_assert(rows <= mote::fp8_block);
  const std::size_t size = out_ * in_, blocks = mote::fp8_blocks(in_);
  stored_ = mote::buffer<std::uint8_t>(rows * in_);
  scales_ = mote::buffer<float>(blocks);
  mote::quantize_fp8(values_.as(rows, in_), {reinterpret_cast<mote::f8_e4m3*>(stored_.data()), rows, in_},
                     scales_.as(1, blocks));
  repeat(stored_.data(), in_, rows, size);
  for (std::size_t i = 0; i < count_; ++i) {
    const auto* codes = reinterpret_cast<const mote::f8_e4m3*>(bytes_.data() + i * size);
    all_.push_back(mote::scaled_matrix{.codes = mote::view<const mote::f8_e4m3, 2>(codes, out_, in_),
                                       .scale = {scales_.data(), {mote::fp8_blocks(out_), blocks}, {0, 1}},
                                       .tile_rows = mote::fp8_block,
                                       .tile_columns = mote::fp8_block});
  }
}

matrices::matrices(const weight_form& form, std::size_t out, std::size_t in, std::size_t count)
    : form_(form.name), out_(out), in_(in), count_(count) {
  values_ = random_floats(rows * in, 1.0f / std::sqrt(static_cast<float>(in)));
  const auto values = std::as_const(values_).as(rows, in);
  if (form_ == "f32") {
    keep_rows<float>();
  } else if (form_ == "fp8") {
    keep_fp8();
  } else if (form_ == "int8") {
    mote::buffer<std::int8_t> codes(rows * in);
    mote::buffer<float> scale(rows);
    mote::quantize_int8(values, codes.as(rows, in), scale.as(rows));
    keep_packed<std::int8_t>(mote::int8_matrix{std::as_const(codes).as(rows, in), std::as_const(scale).as(rows)});
  } else if (form_ == "bf16" || form_ == "bf16_rows") {
    stored_ = mote::buffer<std::uint8_t>(rows * in * sizeof(mote::bf16));
    auto* halves = reinterpret_cast<mote::bf16*>(stored_.data());
    std::transform(values_.begin(), values_.end(), halves, [](float v) { return mote::bf16(v); });
    if (form_ == "bf16") {
      keep_packed<mote::bf16>(mote::view<const mote::bf16, 2>(halves, rows, in));
    } else {
      keep_rows<mote::bf16>();
    }
  }
  mote::for_each_format([&]<class F>() {
    if (F::name != form_) return;
    stored_ = mote::buffer<std::uint8_t>(rows * (in / F::block_size) * sizeof(F));
    const mote::view<F, 2> blocks(reinterpret_cast<F*>(stored_.data()), rows, in / F::block_size);
    mote::quantize<F>(values, blocks);
    if constexpr (mote::integer_format<F>) {
      keep_packed<F>(mote::view<const F, 2>(blocks));
    } else {
      keep_rows<F>();
    }
  });
}

weight_source matrices::source() const {
  const auto* bytes = stored_.empty() ? reinterpret_cast<const std::uint8_t*>(values_.data()) : stored_.data();
  const std::size_t row_bytes = stored_.empty() ? in_ * sizeof(float) : stored_.size() / rows;
  return {form_, out_, in_, count_, values_.as(rows, in_), {bytes, rows, row_bytes}};
}

}  // namespace bench
