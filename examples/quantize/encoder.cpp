#include "encoder.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <mote/compress/block_grid.hpp>
#include <mote/compress/grid.hpp>
#include <mote/compress/integer_grids.hpp>
#include <mote/compress/range.hpp>
#include <mote/core/buffer.hpp>
#include <mote/io/gguf/types.hpp>
#include <mote/quant/formats.hpp>
#include <mote/quant/fp8.hpp>
#include <mote/quant/microscaling.hpp>
#include <mote/quant/quantize.hpp>

namespace quantize {
namespace {

constexpr std::size_t int4_group = 32;  // so that a group is a block that mote's kernels read

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span<const T>(values));
}

template <mote::rounding_grid Grid>
void round(backend& be, const mote::view<const float, 2>& rows, const mote::inverse_hessian* inverse, Grid& grid,
           const mote::view<float, 2>& decoded) {
  if (inverse == nullptr) {
    mote::round_to_nearest(be, rows, grid, decoded);
  } else {
    mote::gptq(be, rows, *inverse, grid, decoded);
  }
}

class bf16_encoder : public matrix_encoder {
 public:
  std::span<const std::byte> encode(backend&, const mote::view<const float, 2>& rows, const mote::inverse_hessian*,
                                    const mote::view<float, 2>& decoded) override {
    halves_.resize(rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      halves_[i] = mote::bf16(rows.data()[i]);
      decoded.data()[i] = static_cast<float>(halves_[i]);
    }
    return bytes_of(halves_);
  }

 private:
  std::vector<mote::bf16> halves_;
};

// Blocks as they lie in memory, which is how GGUF stores them.
template <class F>
class block_encoder : public matrix_encoder {
 public:
  std::span<const std::byte> encode(backend& be, const mote::view<const float, 2>& rows,
                                    const mote::inverse_hessian* inverse,
                                    const mote::view<float, 2>& decoded) override {
    const std::size_t across = rows.extent(1) / F::block_size;
    if (blocks_.size() != rows.extent(0) * across) blocks_ = mote::buffer<F>(rows.extent(0) * across);
    const auto blocks = blocks_.as(rows.extent(0), across);
    if (inverse == nullptr || inverse->identity()) {
      mote::quantize<F>(be, rows, blocks);
      mote::dequantize<F>(be, mote::view<const F, 2>(blocks), decoded);
    } else {
      mote::block_grid grid(blocks);
      mote::gptq(be, rows, *inverse, grid, decoded);
    }
    return std::as_bytes(std::span<const F>(blocks_.data(), blocks_.size()));
  }

 private:
  mote::buffer<F> blocks_;
};

class int8_encoder : public matrix_encoder {
 public:
  std::span<const std::byte> encode(backend& be, const mote::view<const float, 2>& rows,
                                    const mote::inverse_hessian* inverse,
                                    const mote::view<float, 2>& decoded) override {
    const std::size_t count = rows.extent(0), first = scale_.size();
    codes_.resize(rows.size());
    scale_.resize(first + count);
    mote::int8_grid grid({codes_.data(), count, rows.extent(1)}, {scale_.data() + first, count});
    round(be, rows, inverse, grid, decoded);
    return bytes_of(codes_);
  }
  std::vector<std::span<const std::byte>> rest() const override { return {bytes_of(scale_)}; }

 private:
  std::vector<std::int8_t> codes_;
  std::vector<float> scale_;
};

// Eight codes a word, each group of a row with a scale of least squared error, in bf16.
class packed_int4_grid {
 public:
  packed_int4_grid(const mote::view<std::uint32_t, 2>& words, const mote::view<mote::bf16, 2>& scale)
      : words_(words), scale_(scale) {}

  std::size_t rows() const { return words_.extent(0); }
  std::size_t columns() const { return words_.extent(1) * 8; }
  static constexpr std::size_t group() { return int4_group; }

  void fit(std::size_t row, std::size_t column, const float* x) const {
    const mote::range r =
        mote::estimate_range(std::span(x, int4_group), {.method = mote::range_method::mse, .bits = 4});
    // A model in bf16 is read with scales in bf16; numbers that float16 has, too, keep the matrix one of fast blocks when it is
    // read. Below 2^-17 those are the multiples of 2^-24.
    const float wanted = std::clamp(mote::integer_grid(r, 4, true).scale(), 0x1p-24f, 65024.0f);
    scale_(row, column / int4_group) = mote::bf16(wanted < 0x1p-17f ? static_cast<float>(mote::f16(wanted)) : wanted);
  }
  float round(std::size_t row, std::size_t column, float x) const {
    const auto s = static_cast<float>(scale_(row, column / int4_group));
    const float code = std::min(std::max(-8.0f, std::nearbyint(x / s)), 7.0f);  // of NaN the lowest
    const std::size_t shift = column % 8 * 4;
    std::uint32_t& word = words_(row, column / 8);
    word = (word & ~(15u << shift)) | static_cast<std::uint32_t>(static_cast<int>(code) + 8) << shift;
    return s * code;
  }

 private:
  mote::view<std::uint32_t, 2> words_;
  mote::view<mote::bf16, 2> scale_;
};

class int4_encoder : public matrix_encoder {
 public:
  int4_encoder(std::size_t rows, std::size_t columns)
      : shape_{static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns)} {}

  std::span<const std::byte> encode(backend& be, const mote::view<const float, 2>& rows,
                                    const mote::inverse_hessian* inverse,
                                    const mote::view<float, 2>& decoded) override {
    const std::size_t count = rows.extent(0), groups = rows.extent(1) / int4_group, first = scale_.size();
    words_.resize(rows.size() / 8);
    scale_.resize(first + count * groups);
    packed_int4_grid grid({words_.data(), count, rows.extent(1) / 8}, {scale_.data() + first, count, groups});
    round(be, rows, inverse, grid, decoded);
    return bytes_of(words_);
  }
  std::vector<std::span<const std::byte>> rest() const override {
    return {bytes_of(scale_), std::as_bytes(std::span(shape_))};
  }

 private:
  std::vector<std::uint32_t> words_;
  std::vector<mote::bf16> scale_;
  std::int64_t shape_[2];
};

class fp8_encoder : public matrix_encoder {
 public:
  std::span<const std::byte> encode(backend& be, const mote::view<const float, 2>& rows,
                                    const mote::inverse_hessian* inverse,
                                    const mote::view<float, 2>& decoded) override {
    const std::size_t count = rows.extent(0), across = mote::fp8_blocks(rows.extent(1)), first = scale_.size();
    const std::size_t down = mote::fp8_blocks(count);
    codes_.resize(rows.size());
    scale_.resize(first + down * across);
    mote::fp8_grid grid(rows, {codes_.data(), count, rows.extent(1)}, {scale_.data() + first, down, across});
    round(be, rows, inverse, grid, decoded);
    return bytes_of(codes_);
  }
  std::vector<std::span<const std::byte>> rest() const override { return {bytes_of(scale_)}; }

 private:
  std::vector<mote::f8_e4m3> codes_;
  std::vector<float> scale_;
};

// e2m1 codes, two a byte, with a scale byte for each Group columns: mxfp4 and nvfp4 as safetensors stores them. `Scale`
// gives a group's scale as it is stored, and what a code of 1 stands for.
template <std::size_t Group, class Scale>
class fp4_grid {
 public:
  fp4_grid(const mote::view<std::uint8_t, 2>& codes, const mote::view<std::uint8_t, 2>& scale, const Scale& scales)
      : codes_(codes), scale_(scale), scales_(scales) {}

  std::size_t rows() const { return codes_.extent(0); }
  std::size_t columns() const { return codes_.extent(1) * 2; }
  static constexpr std::size_t group() { return Group; }

  void fit(std::size_t row, std::size_t column, const float* x) const {
    scale_(row, column / Group) = scales_.stored(x);
  }
  float round(std::size_t row, std::size_t column, float x) const {
    const float unit = scales_.unit(scale_(row, column / Group));
    const mote::f4_e2m1 code(unit > 0.0f ? x / unit : 0.0f);
    const std::size_t shift = column % 2 * 4;
    std::uint8_t& byte = codes_(row, column / 2);
    byte = static_cast<std::uint8_t>((byte & (0xF0u >> shift)) | static_cast<unsigned>(code.bits) << shift);
    return static_cast<float>(code) * unit;
  }

 private:
  mote::view<std::uint8_t, 2> codes_, scale_;
  const Scale& scales_;
};

template <std::size_t Group, class Scale>
class fp4_encoder : public matrix_encoder {
 public:
  std::span<const std::byte> encode(backend& be, const mote::view<const float, 2>& rows,
                                    const mote::inverse_hessian* inverse,
                                    const mote::view<float, 2>& decoded) override {
    const std::size_t count = rows.extent(0), columns = rows.extent(1), first = scale_.size();
    codes_.resize(rows.size() / 2);
    scale_.resize(first + count * (columns / Group));
    fp4_grid<Group, Scale> grid({codes_.data(), count, columns / 2}, {scale_.data() + first, count, columns / Group},
                                scales_);
    round(be, rows, inverse, grid, decoded);
    return bytes_of(codes_);
  }
  std::vector<std::span<const std::byte>> rest() const override { return {bytes_of(scale_)}; }

 protected:
  std::vector<std::uint8_t> codes_, scale_;
  Scale scales_;
};

struct mxfp4_scale {
  std::uint8_t stored(const float* x) const { return mote::encode_mx(x).e.bits; }
  float unit(std::uint8_t stored) const { return static_cast<float>(mote::f8_e8m0::from_bits(stored)); }
};
using mxfp4_encoder = fp4_encoder<32, mxfp4_scale>;

struct nvfp4_scale {
  std::uint8_t stored(const float* x) const {
    float scaled[16];
    for (std::size_t i = 0; i < 16; ++i) scaled[i] = x[i] * global;
    return mote::nvfp4::fit(scaled);
  }
  float unit(std::uint8_t stored) const { return static_cast<float>(mote::f8_e4m3::from_bits(stored)) / global; }

  float global = 1.0f;
};

class nvfp4_encoder : public fp4_encoder<16, nvfp4_scale> {
 public:
  bool looks_first() const override { return true; }
  void look(const mote::view<const float, 2>& rows) override {
    for (std::size_t i = 0; i < rows.size(); ++i) amax_ = std::max(amax_, std::fabs(rows.data()[i]));
    scales_.global = 448.0f * 6.0f / std::max(amax_, 0x1p-100f);
  }
  std::vector<std::span<const std::byte>> rest() const override {
    return {bytes_of(scale_), std::as_bytes(std::span(&scales_.global, 1))};
  }

 private:
  float amax_ = 0.0f;
};

}  // namespace

std::vector<precision_info> precisions(container kind) {
  std::vector<precision_info> all;
  if (kind == container::safetensors) {
    all = {{"mxfp4", 4.25, 32}, {"nvfp4", 4.5, 16}, {"int4", 4.5, int4_group}, {"fp8", 8.0, 1}, {"int8", 8.0, 1}};
  }
  mote::for_each_format([&]<class F>() {
    const auto known = std::find_if(all.begin(), all.end(), [](const auto& p) { return p.name == F::name; });
    if (known != all.end() || (kind == container::gguf && !mote::ggml_type_named(F::name))) return;
    all.push_back({F::name, 8.0 * static_cast<double>(sizeof(F)) / static_cast<double>(F::block_size), F::block_size,
                   mote::integer_format<F>});
  });
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.bits < b.bits; });
  all.push_back({"bf16", 16.0, 1});
  return all;
}

bool published_in_safetensors(std::string_view precision) {
  constexpr std::string_view all[] = {"int8", "int4", "fp8", "mxfp4", "nvfp4"};
  return std::find(std::begin(all), std::end(all), precision) != std::end(all);
}

std::vector<stored_tensor> stored_tensors(container kind, std::string_view precision, const std::string& name,
                                          const std::vector<std::size_t>& shape) {
  if (kind == container::gguf) return {{name, precision, shape}};
  const std::size_t out = shape[0], in = shape[1];
  const std::string weight = name + ".weight";
  if (precision == "int8") return {{weight, "I8", shape}, {weight + "_scale", "F32", {out, 1}}};
  if (precision == "int4") {
    return {{weight + "_packed", "I32", {out, in / 8}},
            {weight + "_scale", "BF16", {out, in / int4_group}},
            {weight + "_shape", "I64", {2}}};
  }
  if (precision == "fp8") {
    return {{weight, "F8_E4M3", shape}, {weight + "_scale_inv", "F32", {mote::fp8_blocks(out), mote::fp8_blocks(in)}}};
  }
  if (precision == "mxfp4")
    return {{weight + "_packed", "U8", {out, in / 2}}, {weight + "_scale", "U8", {out, in / 32}}};
  if (precision == "nvfp4") {
    return {{weight + "_packed", "U8", {out, in / 2}},
            {weight + "_scale", "F8_E4M3", {out, in / 16}},
            {weight + "_global_scale", "F32", {1}}};
  }
  std::vector<stored_tensor> stored = {{weight, "BF16", shape}};
  mote::with_format(precision, [&]<class F>() {
    stored = {{weight + "_" + std::string(F::name), "U8", {out, in / F::block_size * sizeof(F)}}};
  });
  return stored;
}

std::unique_ptr<matrix_encoder> make_encoder(container kind, std::string_view precision, std::size_t rows,
                                             std::size_t columns) {
  if (precision == "bf16") return std::make_unique<bf16_encoder>();
  if (kind == container::safetensors) {
    if (precision == "int8") return std::make_unique<int8_encoder>();
    if (precision == "int4") return std::make_unique<int4_encoder>(rows, columns);
    if (precision == "fp8") return std::make_unique<fp8_encoder>();
    if (precision == "mxfp4") return std::make_unique<mxfp4_encoder>();
    if (precision == "nvfp4") return std::make_unique<nvfp4_encoder>();
  }
  std::unique_ptr<matrix_encoder> encoder;
  mote::with_format(precision, [&]<class F>() { encoder = std::make_unique<block_encoder<F>>(); });
  return encoder;
}

}  // namespace quantize
