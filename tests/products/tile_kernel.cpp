// Matrix tiles, in software: the kernel's walk over panels, steps and tokens.
#include <mote/core/buffer.hpp>
#include <mote/ops/matmul/matmul.hpp>
#include <mote/quant/quantize.hpp>

#include "support/backends.hpp"
#include "support/formats.hpp"
#include "support/kernels.hpp"
#include "support/random.hpp"

namespace {

using mote::bf16;
using mote::detail::tile_height;

constexpr std::size_t stride = 112;  // from one token's sums of three panels to the next one's

// `tokens` tokens and a random matrix of three panels, the last of them padded.
template <class T>
class product_case {
 public:
  product_case(std::size_t tokens, std::size_t in)
      : padded_((in + 3) / 4 * 4), x_(tokens * padded_), code_sum_(tokens) {
    test::random_source random(1);
    const std::size_t out = 90;
    std::vector<T> w;
    for (const float v : random.normal(out * in)) w.push_back(element(v));
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t k = 0; k < in; ++k) {
        x_[t * padded_ + k] = element(random.normal(1)[0]);
        code_sum_[t] += static_cast<std::int32_t>(static_cast<float>(x_[t * padded_ + k]));
      }
    }
    for (const T v : x_) floats_.push_back(static_cast<float>(v));
    mote::reference be;
    bytes_ = mote::buffer<std::uint8_t>(mote::packed_matrix<T>::size(out, in));
    packed_ = pack(be, w, out, in, bytes_);
  }

  // Sums of `count` tokens from token `first` on.
  std::vector<float> tiles(std::size_t first, std::size_t count) const {
    std::vector<float> sums(count * stride, -1.0f);
    const std::size_t bytes = packed_.in_features() * sizeof(T), each = mote::detail::tiled_size(bytes);
    std::vector<std::uint8_t> laid_out((count + tile_height - 1) / tile_height * each);
    std::vector<const std::uint8_t*> tile;
    for (std::size_t t = 0; t < count; ++t) {
      std::uint8_t* const to = laid_out.data() + t / tile_height * each;
      if (t % tile_height == 0) tile.push_back(to);
      mote::detail::put_in_tiles(x_.data() + (first + t) * padded_, bytes, t % tile_height, to);
    }
    mote::detail::tile_kernel<mote::detail::software_tiles, T>::product(packed_, 0, 3, tile.data(), count, sums.data(),
                                                                        stride);
    return sums;
  }
  // The same by vectors, of few tokens of bf16.
  std::vector<float> tile_sums(std::size_t first, std::size_t count) const {
    std::vector<float> sums(count * stride, -1.0f);
    mote::detail::tile_sum_kernel<mote::default_arch>::product(packed_, 0, 3, tokens(first, count).data(), count,
                                                               sums.data(), stride);
    return sums;
  }
  std::vector<float> vectors(std::size_t first, std::size_t count) const {
    std::vector<float> sums(count * stride, -1.0f);
    mote::detail::element_kernel<mote::default_arch, T>::product(packed_, 0, 3, vector_tokens(first, count).data(),
                                                                 code_sum_.data() + first, count, sums.data(), stride);
    return sums;
  }

 private:
  static T element(float v) {
    if constexpr (std::is_same_v<T, bf16>) {
      return bf16(v);
    } else {
      return static_cast<T>(std::fmin(std::fmax(v * 40.0f, -127.0f), 127.0f));
    }
  }
  static auto pack(mote::reference& be, const std::vector<bf16>& w, std::size_t out, std::size_t in,
                   mote::buffer<std::uint8_t>& bytes) {
    return mote::pack(be, mote::view<const bf16, 2>(w.data(), out, in), bytes.as(bytes.size()));
  }
  static auto pack(mote::reference& be, const std::vector<std::int8_t>& w, std::size_t out, std::size_t in,
                   mote::buffer<std::uint8_t>& bytes) {
    const std::vector<float> scale(out, 1.0f);
    return mote::pack(be, mote::int8_matrix{{w.data(), out, in}, scale}, bytes.as(bytes.size()));
  }
  std::vector<const std::uint8_t*> tokens(std::size_t first, std::size_t count) const {
    std::vector<const std::uint8_t*> token(count);
    for (std::size_t t = 0; t < count; ++t) {
      token[t] = reinterpret_cast<const std::uint8_t*>(x_.data() + (first + t) * padded_);
    }
    return token;
  }

  // As the vector kernel reads them: bf16 without an instruction for it as float32.
  std::vector<const std::uint8_t*> vector_tokens(std::size_t first, std::size_t count) const {
    if (std::is_same_v<T, std::int8_t> || mote::detail::bf16_products<mote::default_arch>) return tokens(first, count);
    std::vector<const std::uint8_t*> token(count);
    for (std::size_t t = 0; t < count; ++t) {
      token[t] = reinterpret_cast<const std::uint8_t*>(floats_.data() + (first + t) * padded_);
    }
    return token;
  }

  std::size_t padded_;
  std::vector<T> x_;
  std::vector<float> floats_;
  std::vector<std::int32_t> code_sum_;
  mote::buffer<std::uint8_t> bytes_;
  mote::packed_matrix<T> packed_;
};

struct product_shape {
  std::size_t tokens, in;
};
const std::vector<product_shape> shapes = {{1, 0},     {1, 3},  {2, 64},   {16, 66},    {17, 130},  {33, 2060},
                                           {48, 1030}, {96, 0}, {101, 66}, {101, 1030}, {256, 1030}};

}  // namespace

TEST_CASE("tiles: int8 sums are those of the vector kernel") {
  for (const product_shape& shape : shapes) {
    const std::size_t tokens = shape.tokens, in = shape.in;
    CAPTURE(tokens, in);
    const product_case<std::int8_t> c(tokens, in);
    CHECK(test::same_bits(c.tiles(0, tokens), c.vectors(0, tokens)));
  }
}

TEST_CASE("tiles: bf16 sums are those of the vector kernel to rounding") {
  for (const product_shape& shape : shapes) {
    const std::size_t tokens = shape.tokens, in = shape.in;
    CAPTURE(tokens, in);
    const product_case<bf16> c(tokens, in);
    test::check_close(c.tiles(0, tokens), c.vectors(0, tokens), 1e-3f);
  }
}

TEST_CASE("tiles: a token's bf16 sums have the same bits alone and with any number of others") {
  for (const std::size_t in : {std::size_t{66}, std::size_t{1030}, std::size_t{2060}}) {
    constexpr std::size_t tokens = 101;
    const product_case<bf16> c(tokens, in);
    const std::vector<float> all = c.tiles(0, tokens);
    for (const std::size_t count :
         {std::size_t{1}, std::size_t{2}, std::size_t{15}, std::size_t{16}, std::size_t{33}, std::size_t{64}}) {
      CAPTURE(in, count);
      for (std::size_t first = 0; first < tokens; first += count) {
        const std::size_t some = std::min(count, tokens - first);
        CHECK(test::same_bits(c.tiles(first, some), std::span(all).subspan(first * stride, some * stride)));
      }
    }
  }
}

TEST_CASE("tiles: few tokens' bf16 sums by vectors have their bits") {
  for (const std::size_t in : {std::size_t{0}, std::size_t{3}, std::size_t{66}, std::size_t{1030}}) {
    const product_case<bf16> c(8, in);
    for (const std::size_t count : {std::size_t{1}, std::size_t{2}, std::size_t{3}, std::size_t{4}}) {
      CAPTURE(in, count);
      CHECK(test::same_bits(c.tile_sums(8 - count, count), c.tiles(8 - count, count)));
    }
  }
}

TEST_CASE("tiles: block formats have the bits of the vector kernel") {
  test::random_source random(1);
  test::for_each_format([&]<class F>() {
    if constexpr (mote::integer_format<F>) {
      using kernel = mote::detail::block_tile_kernel<mote::detail::software_tiles, mote::default_arch, F>;
      constexpr std::size_t out = 90, panels = 3;  // the last of them padded
      for (const std::size_t blocks : {0u, 1u, 3u, 13u}) {
        const std::size_t in = blocks * F::block_size;
        const auto values = random.normal(out * in), x = random.normal(48 * in);
        std::vector<F> w(out * blocks);
        mote::quantize<F>({values.data(), out, in}, {w.data(), out, blocks});
        const mote::view<const F, 2> rows(w.data(), out, blocks);
        const std::size_t each = mote::activation_block::count(in);
        std::vector<mote::activation_block> quantized(48 * each);
        for (std::size_t t = 0; t < 48; ++t) {
          mote::quantize_activation_blocks(x.data() + t * in, in, quantized.data() + t * each);
        }
        mote::simd<> be;
        const auto want = test::product(be, x, 48, rows);
        const mote::packing order{16, 0};
        mote::buffer<std::uint8_t> bytes(mote::packed_matrix<F>::size(out, in));
        std::fill_n(bytes.data(), bytes.size(), std::uint8_t{0});
        const mote::packed_matrix<F> packed(bytes.as(bytes.size()), out, in, order);
        for (std::size_t n = 0; n < out; n += 32) {
          mote::detail::pack_panel(rows, n, std::min<std::size_t>(32, out - n), 0, blocks, order,
                                   bytes.data() + n / 32 * packed.panel_bytes(in));
        }
        for (const std::size_t count : {1u, 2u, 15u, 16u, 17u, 31u, 33u, 48u}) {
          INFO(F::name);
          CAPTURE(in, count);
          std::vector<mote::detail::tiled_blocks> laid_out((count + tile_height - 1) / tile_height * each);
          std::vector<const mote::detail::tiled_blocks*> tile;
          for (std::size_t t = 0; t < count; ++t) {
            mote::detail::tiled_blocks* const to = laid_out.data() + t / tile_height * each;
            if (t % tile_height == 0) tile.push_back(to);
            for (std::size_t b = 0; b < each; ++b) to[b].put(quantized[(48 - count + t) * each + b], t % tile_height);
          }
          std::vector<float> sums(count * stride, -1.0f);
          kernel::product(packed, 0, panels, tile.data(), count, sums.data(), stride);
          std::vector<float> got, expected;
          for (std::size_t t = 0; t < count; ++t) {
            const float *row = sums.data() + t * stride, *row_wanted = want.data() + (48 - count + t) * out;
            got.insert(got.end(), row, row + out);
            expected.insert(expected.end(), row_wanted, row_wanted + out);
          }
          CHECK(test::same_bits(got, expected));
        }
      }
    }
  });
}

TEST_CASE("tiles: who had configured them finds them so again") {
  if (mote::detail::has_amx_tiles && !mote::detail::amx_tiles::available()) return;
  constexpr std::size_t height = mote::detail::tile_height, width = mote::detail::tile_bytes;
  using mote::detail::tile_shape, mote::detail::tile_shapes;
  constexpr auto all = [](tile_shape shape) {
    return tile_shapes{shape, shape, shape, shape, shape, shape, shape, shape};
  };
  mote::detail::amx_tiles mine(all({height, width}));
  { const mote::detail::amx_tiles others(all({1, 4})); }
  std::vector<std::uint8_t> stored(height * width, 1);
  mine.zero<0>();
  mine.store<0>(stored.data(), width);
  CHECK(stored == std::vector<std::uint8_t>(height * width, 0));
}
