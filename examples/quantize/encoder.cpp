#include "encoder.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include <mote/compress/range.hpp>
#include <mote/core/buffer.hpp>
#include <mote/io/gguf/types.hpp>
#include <mote/quant/formats.hpp>
#include <mote/quant/fp8.hpp>
#include <mote/quant/int8.hpp>
#include <mote/quant/microscaling.hpp>
#include <mote/quant/quantize.hpp>

namespace quantize {
namespace {

constexpr std::size_t int4_group = 32;  // so that a group is a block that mote's kernels read

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span<const T>(values));
}

class bf16_encoder : public matrix_encoder {
 public:
  std::span<const std::byte> encode(backend&, const mote::view<const float, 2>& rows,
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

// Blocks as GGUF stores them.
template <class F>
class block_encoder : public matrix_encoder {
 public:
  std::span<const std::byte> encode(backend& be, const mote::view<const float, 2>& rows,
                                    const mote::view<float, 2>& decoded) override {
    const std::size_t across = rows.extent(1) / F::block_size;
    if (blocks_.size() != rows.extent(0) * across) blocks_ = mote::buffer<F>(rows.extent(0) * across);
    const auto blocks = blocks_.as(rows.extent(0), across);
    mote::quantize<F>(be, rows, blocks);
    mote::dequantize<F>(be, mote::view<const F, 2>(blocks), decoded);
    return std::as_bytes(std::span<const F>(blocks_.data(), blocks_.size()));
  }

 private:
  mote::buffer<F> blocks_;
};

class int8_encoder : public matrix_encoder {
 public:
  std::span<const std::byte> encode(backend& be, const mote::view<const float, 2>& rows,
                                    const mote::view<float, 2>& decoded) override {
    const std::size_t columns = rows.extent(1), first = scale_.size();
    codes_.resize(rows.size());
    scale_.resize(first + rows.extent(0));
    be.parallel_for(rows.extent(0), 8, [&](std::size_t begin, std::size_t end) {
      for (std::size_t n = begin; n < end; ++n) {
        std::int8_t* codes = codes_.data() + n * columns;
        const float scale = scale_[first + n] = mote::quantize_int8_row(rows.row(n), columns, codes);
        for (std::size_t k = 0; k < columns; ++k) decoded(n, k) = scale * static_cast<float>(codes[k]);
      }
    });
    return bytes_of(codes_);
  }
  std::vector<std::span<const std::byte>> rest() const override { return {bytes_of(scale_)}; }

 private:
  std::vector<std::int8_t> codes_;
  std::vector<float> scale_;
};

// Scales of least squared error, in bf16.
class int4_encoder : public matrix_encoder {
 public:
  int4_encoder(std::size_t rows, std::size_t columns)
      : shape_{static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns)} {}

  std::span<const std::byte> encode(backend& be, const mote::view<const float, 2>& rows,
                                    const mote::view<float, 2>& decoded) override {
    const std::size_t columns = rows.extent(1), groups = columns / int4_group, first = scale_.size();
    words_.resize(rows.extent(0) * columns / 8);
    scale_.resize(first + rows.extent(0) * groups);
    be.parallel_for(rows.extent(0), 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t n = begin; n < end; ++n) {
        for (std::size_t g = 0; g < groups; ++g) {
          scale_[first + n * groups + g] =
              encode_group(rows.row(n) + g * int4_group, words_.data() + (n * groups + g) * int4_group / 8,
                           decoded.row(n) + g * int4_group);
        }
      }
    });
    return bytes_of(words_);
  }
  std::vector<std::span<const std::byte>> rest() const override {
    return {bytes_of(scale_), std::as_bytes(std::span(shape_))};
  }

 private:
  static mote::bf16 encode_group(const float* x, std::uint32_t* words, float* decoded) {
    const mote::range r =
        mote::estimate_range(std::span(x, int4_group), {.method = mote::range_method::mse, .bits = 4});
    const float wanted = mote::integer_grid(r, 4, true).scale();
    // A model in bf16 is read with scales in bf16; one that float16 cannot hold, too, would cost exactness there.
    mote::bf16 scale(std::clamp(wanted, 0x1p-14f, 65024.0f));
    const float s = static_cast<float>(scale);
    std::fill_n(words, int4_group / 8, 0u);
    for (std::size_t i = 0; i < int4_group; ++i) {
      const int code = static_cast<int>(std::clamp(std::nearbyint(x[i] / s), -8.0f, 7.0f));
      words[i / 8] |= static_cast<std::uint32_t>(code + 8) << (i % 8 * 4);
      decoded[i] = s * static_cast<float>(code);
    }
    return scale;
  }

  std::vector<std::uint32_t> words_;
  std::vector<mote::bf16> scale_;
  std::int64_t shape_[2];
};

class fp8_encoder : public matrix_encoder {
 public:
  std::span<const std::byte> encode(backend& be, const mote::view<const float, 2>& rows,
                                    const mote::view<float, 2>& decoded) override {
    const std::size_t columns = rows.extent(1), across = mote::fp8_blocks(columns), first = scale_.size();
    const std::size_t down = mote::fp8_blocks(rows.extent(0));
    codes_.resize(rows.size());
    scale_.resize(first + down * across);
    be.parallel_for(down, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t b = begin; b < end; ++b) {
        const std::size_t n = b * mote::fp8_block, count = std::min(mote::fp8_block, rows.extent(0) - n);
        const mote::view<mote::f8_e4m3, 2> codes(codes_.data() + n * columns, count, columns);
        const mote::view<float, 2> scale(scale_.data() + first + b * across, 1, across);
        mote::quantize_fp8(rows.slice(0, n, count), codes, scale);
        mote::dequantize_fp8(codes, scale, decoded.slice(0, n, count));
      }
    });
    return bytes_of(codes_);
  }
  std::vector<std::span<const std::byte>> rest() const override { return {bytes_of(scale_)}; }

 private:
  std::vector<mote::f8_e4m3> codes_;
  std::vector<float> scale_;
};

// e2m1 codes, two a byte, with a scale byte for each Group columns: mxfp4 and nvfp4 as safetensors stores them.
template <std::size_t Group>
class fp4_encoder : public matrix_encoder {
 public:
  std::span<const std::byte> encode(backend& be, const mote::view<const float, 2>& rows,
                                    const mote::view<float, 2>& decoded) override {
    const std::size_t columns = rows.extent(1), groups = columns / Group, first = scale_.size();
    codes_.assign(rows.size() / 2, 0);
    scale_.resize(first + rows.extent(0) * groups);
    be.parallel_for(rows.extent(0), 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t n = begin; n < end; ++n) {
        for (std::size_t g = 0; g < groups; ++g) {
          const float* x = rows.row(n) + g * Group;
          const float unit = fit(x, scale_[first + n * groups + g]);
          for (std::size_t i = 0; i < Group; ++i) {
            const mote::f4_e2m1 code(unit > 0.0f ? x[i] / unit : 0.0f);
            codes_[(n * columns + g * Group + i) / 2] |= static_cast<std::uint8_t>(code.bits << (i % 2 * 4));
            decoded(n, g * Group + i) = static_cast<float>(code) * unit;
          }
        }
      }
    });
    return bytes_of(codes_);
  }
  std::vector<std::span<const std::byte>> rest() const override { return {bytes_of(scale_)}; }

 protected:
  // The group's scale as it is stored, and what a code of 1 stands for.
  virtual float fit(const float* x, std::uint8_t& stored) const = 0;

  std::vector<std::uint8_t> codes_, scale_;
};

class mxfp4_encoder : public fp4_encoder<32> {
  float fit(const float* x, std::uint8_t& stored) const override {
    const mote::f8_e8m0 scale = mote::encode_mx(x).e;
    stored = scale.bits;
    return static_cast<float>(scale);
  }
};

// The tensor's scale is a power of two, so that bf16 holds every number that is encoded.
class nvfp4_encoder : public fp4_encoder<16> {
 public:
  bool looks_first() const override { return true; }
  void look(const mote::view<const float, 2>& rows) override {
    for (std::size_t i = 0; i < rows.size(); ++i) amax_ = std::max(amax_, std::fabs(rows.data()[i]));
    const float least = std::max(amax_ / (448.0f * 6.0f), 0x1p-100f);
    global_ = 1.0f / std::ldexp(1.0f, static_cast<int>(std::ceil(std::log2(least))));
  }
  std::vector<std::span<const std::byte>> rest() const override {
    return {bytes_of(scale_), std::as_bytes(std::span(&global_, 1))};
  }

 private:
  float fit(const float* x, std::uint8_t& stored) const override {
    float amax = 0.0f;
    for (std::size_t i = 0; i < 16; ++i) amax = std::max(amax, std::fabs(x[i]));
    const mote::f8_e4m3 scale(std::min(amax / 6.0f * global_, 448.0f));
    stored = scale.bits;
    return static_cast<float>(scale) / global_;
  }

  float amax_ = 0.0f, global_ = 1.0f;
};

// Calls f.operator()<F>() for the block format of that name; gives whether there is one.
template <class Function>
bool with_format(std::string_view name, Function&& f) {
  bool found = false;
  mote::for_each_format([&]<class F>() {
    if (F::name != name) return;
    found = true;
    f.template operator()<F>();
  });
  return found;
}

}  // namespace

std::vector<precision_info> precisions(container kind) {
  std::vector<precision_info> all;
  if (kind == container::safetensors) {
    all = {{"mxfp4", 4.25, 32}, {"nvfp4", 4.5, 16}, {"int4", 4.5, int4_group}, {"fp8", 8.0, 1}, {"int8", 8.0, 1}};
  } else {
    mote::for_each_format([&]<class F>() {
      if (!mote::ggml_type_named(F::name)) return;
      all.push_back(
          {F::name, 8.0 * static_cast<double>(sizeof(F)) / static_cast<double>(F::block_size), F::block_size});
    });
    std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.bits < b.bits; });
  }
  all.push_back({"bf16", 16.0, 1});
  return all;
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
  return {{weight, "BF16", shape}};
}

std::unique_ptr<matrix_encoder> make_encoder(container kind, std::string_view precision, std::size_t rows,
                                             std::size_t columns) {
  if (precision == "bf16") return std::make_unique<bf16_encoder>();
  std::unique_ptr<matrix_encoder> encoder;
  if (kind == container::gguf) {
    with_format(precision, [&]<class F>() { encoder = std::make_unique<block_encoder<F>>(); });
  } else if (precision == "int8") {
    encoder = std::make_unique<int8_encoder>();
  } else if (precision == "int4") {
    encoder = std::make_unique<int4_encoder>(rows, columns);
  } else if (precision == "fp8") {
    encoder = std::make_unique<fp8_encoder>();
  } else if (precision == "mxfp4") {
    encoder = std::make_unique<mxfp4_encoder>();
  } else {
    encoder = std::make_unique<nvfp4_encoder>();
  }
  return encoder;
}

}  // namespace quantize
