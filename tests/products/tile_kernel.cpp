// Matrix tiles, in software: the kernel's walk over panels, steps and tokens.
#include <mote/core/buffer.hpp>
#include <mote/ops/matmul/matmul.hpp>

#include "support/backends.hpp"
#include "support/random.hpp"

namespace {

using mote::bf16;
using mote::detail::unit_stride;

// Sums of both kernels over `tokens` tokens and two panels from the second one on.
template <class T>
struct both_kernels {
  std::vector<float> tiles, vectors;

  both_kernels(std::size_t tokens, std::size_t in) : tiles(tokens * unit_stride, -1.0f), vectors(tiles) {
    test::random_source random(1);
    const std::size_t out = 90, padded = (in + 3) / 4 * 4;
    std::vector<T> w, x(tokens * padded);
    for (const float v : random.normal(out * in)) w.push_back(element(v));
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t k = 0; k < in; ++k) x[t * padded + k] = element(random.normal(1)[0]);
    }
    mote::reference be;
    mote::buffer<std::uint8_t> bytes(mote::packed_matrix<T>::size(out, in));
    const auto packed = pack(be, w, out, in, bytes);
    std::vector<const std::uint8_t*> token(tokens);
    std::vector<std::int32_t> code_sum(tokens);
    for (std::size_t t = 0; t < tokens; ++t) {
      token[t] = reinterpret_cast<const std::uint8_t*>(x.data() + t * padded);
      for (std::size_t k = 0; k < in; ++k)
        code_sum[t] += static_cast<std::int32_t>(static_cast<float>(x[t * padded + k]));
    }
    mote::detail::tile_kernel<mote::detail::software_tiles, T>::product(packed, 1, 2, token.data(), tokens,
                                                                        tiles.data(), unit_stride);
    mote::detail::element_kernel<mote::default_arch, T>::product(packed, 1, 2, token.data(), code_sum.data(), tokens,
                                                                 vectors.data(), unit_stride);
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
};

struct product_shape {
  std::size_t tokens, in;
};
const std::vector<product_shape> shapes = {{1, 0}, {1, 3}, {2, 64}, {16, 66}, {17, 130}, {33, 2060}, {48, 1030}};

}  // namespace

TEST_CASE("tiles: int8 sums are those of the vector kernel") {
  for (const product_shape& shape : shapes) {
    const std::size_t tokens = shape.tokens, in = shape.in;
    CAPTURE(tokens, in);
    const both_kernels<std::int8_t> sums(tokens, in);
    CHECK(test::same_bits(sums.tiles, sums.vectors));
  }
}

TEST_CASE("tiles: bf16 sums are those of the vector kernel to rounding") {
  for (const product_shape& shape : shapes) {
    const std::size_t tokens = shape.tokens, in = shape.in;
    CAPTURE(tokens, in);
    const both_kernels<bf16> sums(tokens, in);
    test::check_close(sums.tiles, sums.vectors, 1e-3f);
  }
}
