#include <mote/core/buffer.hpp>
#include <mote/ops/batched_matmul/batched_matmul.hpp>
#include <mote/ops/grouped_ffn/grouped_ffn.hpp>
#include <mote/ops/matmul/matmul.hpp>
#include <mote/quant/quantize.hpp>

#include "support/backends.hpp"
#include "support/formats.hpp"
#include "support/kernels.hpp"
#include "support/random.hpp"

namespace {

// A random matrix in blocks of F, with every code and many scales, and what the blocks hold.
template <class F>
struct block_matrix {
  std::size_t out, in;
  std::vector<F> blocks;

  block_matrix(test::random_source& random, std::size_t rows, std::size_t columns)
      : out(rows), in(columns), blocks(rows * columns / F::block_size) {
    auto values = random.normal(out * in, 1.0f / std::sqrt(static_cast<float>(in + 1)));
    mote::quantize<F>({values.data(), out, in}, {blocks.data(), out, in / F::block_size});
  }
  mote::view<const F, 2> view() const { return {blocks.data(), out, in / F::block_size}; }
  std::vector<float> row(std::size_t n) const {
    std::vector<float> y(in);
    mote::dequantize_row(view(), n, y.data());
    return y;
  }
};

template <class F, class Backend>
mote::packed_matrix<F> packed(Backend& be, const block_matrix<F>& w, mote::buffer<std::uint8_t>& bytes) {
  bytes = mote::buffer<std::uint8_t>(mote::packed_matrix<F>::size(w.out, w.in));
  return mote::pack(be, w.view(), {bytes.data(), bytes.size()});
}

// What activations become: the nearest of 255 steps in each block of 32.
std::vector<float> rounded(const std::vector<float>& x, std::size_t tokens, std::size_t in) {
  std::vector<float> y;
  std::vector<mote::activation_block> blocks(mote::activation_block::count(in));
  for (std::size_t t = 0; t < tokens; ++t) {
    mote::quantize_activation_blocks(x.data() + t * in, in, blocks.data());
    for (std::size_t k = 0; k < in; ++k) y.push_back(blocks[k / 32].d * static_cast<float>(blocks[k / 32].q[k % 32]));
  }
  return y;
}

// Multiples of every block size, around tiles, panels and steps of k.
struct product_shape {
  std::size_t tokens, out, in;
};
const std::vector<product_shape> shapes = {{1, 1, 256},  {2, 33, 512},  {6, 64, 256},  {7, 31, 768},
                                           {13, 5, 256}, {49, 40, 256}, {3, 32, 1280}, {50, 33, 1536}};

}  // namespace

TEST_CASE("block matmul: every format equals the sum in double precision, stored and packed") {
  test::random_source random(1);
  test::for_each_format([&]<class F>() {
    INFO(F::name);
    for (const auto& s : shapes) {
      const std::size_t tokens = s.tokens, out = s.out, in = s.in;
      CAPTURE(tokens, out, in);
      const block_matrix<F> w(random, out, in);
      const auto x = random.normal(tokens * in);
      const auto exact_x = mote::integer_format<F> ? rounded(x, tokens, in) : x;
      std::vector<float> want(tokens * out);
      for (std::size_t n = 0; n < out; ++n) {
        const auto row = w.row(n);
        for (std::size_t t = 0; t < tokens; ++t) {
          double sum = 0.0;
          for (std::size_t k = 0; k < in; ++k) sum += double{exact_x[t * in + k]} * row[k];
          want[t * out + n] = static_cast<float>(sum);
        }
      }
      test::for_each_backend([&](auto& be) {
        const auto y = test::product(be, x, tokens, w.view());
        test::check_close(y, want, 2e-5f);
        auto added = y;
        for (float& v : added) v += 1.0f;
        test::check_close(test::product(be, x, tokens, w.view(), mote::output::accumulate), added, 1e-6f);
      });
      if constexpr (mote::integer_format<F>) {
        test::for_each_simd([&](auto& be) {
          mote::buffer<std::uint8_t> bytes;
          const auto matrix = packed(be, w, bytes);
          CHECK(test::same_bits(test::product(be, x, tokens, matrix), test::product(be, x, tokens, w.view())));
          mote::reference reference;
          test::check_close(test::product(reference, x, tokens, matrix), want, 2e-5f);
        });
      }
    }
  });
}

TEST_CASE("block matmul: a matrix of a known form gives the bits of a weight") {
  test::random_source random(6);
  const block_matrix<mote::q4_0> w(random, 70, 256);
  const auto x = random.normal(3 * 256);
  mote::simd<> be;
  mote::buffer<std::uint8_t> bytes;
  const auto matrix = packed(be, w, bytes);
  std::vector<float> y(3 * 70);
  mote::matmul(be, {x.data(), 3, 256}, matrix, {y.data(), 3, 70});
  CHECK(test::same_bits(y, test::product(be, x, 3, matrix)));
  mote::matmul(be, {x.data(), 3, 256}, w.view(), {y.data(), 3, 70});
  CHECK(test::same_bits(y, test::product(be, x, 3, matrix)));
}

TEST_CASE("block matmul: a token's bits do not depend on the batch, its place in it, nor on threads") {
  test::random_source random(2);
  const std::size_t tokens = 53, out = 70, in = 1280;
  test::for_each_format([&]<class F>() {
    if constexpr (mote::integer_format<F>) {
      INFO(F::name);
      const block_matrix<F> w(random, out, in);
      const auto x = random.normal(tokens * in);
      mote::simd<> one, three{mote::threads{3}};
      mote::buffer<std::uint8_t> bytes;
      const auto matrix = packed(three, w, bytes);
      const auto all = test::product(one, x, tokens, matrix);
      CHECK(test::same_bits(test::product(three, x, tokens, matrix), all));
      for (const std::size_t count : {1u, 2u, 3u, 4u, 5u, 7u, 17u}) {
        for (std::size_t t = 0; t + count <= tokens; t += 9) {
          CAPTURE(count, t);
          const auto from = x.begin() + static_cast<std::ptrdiff_t>(t * in);
          const std::vector<float> part(from, from + static_cast<std::ptrdiff_t>(count * in));
          CHECK(test::same_bits(test::product(one, part, count, matrix), std::span(all).subspan(t * out, count * out)));
        }
      }
      const auto second = mote::slice_rows(matrix, 32, 38);
      const auto y = test::product(one, x, 1, second);
      CHECK(test::same_bits(y, std::span(all).subspan(32, 38)));
    }
  });
}

TEST_CASE("block matmul: activations are quantized to the reference's bits; zero, tiny, infinite and NaN blocks") {
  test::random_source random(3);
  for (const std::size_t n : {1u, 16u, 31u, 32u, 33u, 100u, 256u}) {
    auto x = random.normal(n, 3.0f);
    for (int kind = 0; kind < 5; ++kind) {
      if (kind == 1) std::fill(x.begin(), x.end(), 0.0f);
      if (kind == 2) std::fill(x.begin(), x.end(), -1e-35f);
      if (kind == 3) x[n / 2] = std::numeric_limits<float>::infinity();
      if (kind == 4) x[n / 2] = std::numeric_limits<float>::quiet_NaN();
      CAPTURE(n, kind);
      std::vector<mote::activation_block> want(mote::activation_block::count(n));
      mote::quantize_activation_blocks(x.data(), n, want.data());
      if (kind >= 3) CHECK(!std::isfinite(want[n / 2 / 32].d));
      test::for_each_simd([&](auto& be) {
        using arch = typename std::remove_reference_t<decltype(be)>::arch;
        std::vector<mote::activation_block> got(want.size());
        mote::detail::quantize_blocks<arch>(x.data(), n, got.data());
        for (std::size_t b = 0; b < want.size(); ++b) {
          if (std::isfinite(want[b].d)) {
            CHECK(std::equal(want[b].q, want[b].q + 32, got[b].q));
            CHECK((want[b].d == got[b].d && want[b].minus_sum == got[b].minus_sum));
            CHECK((want[b].half_sum[1] == got[b].half_sum[1] && want[b].minus_half_sum[0] == got[b].minus_half_sum[0]));
          } else {
            CHECK(!std::isfinite(got[b].d));
          }
        }
      });
    }
  }
}

TEST_CASE("block matmul: packed matrices hold the same numbers, are cut at panels and know their instruction set") {
  test::random_source random(4);
  test::for_each_format([&]<class F>() {
    if constexpr (mote::integer_format<F>) {
      INFO(F::name);
      const block_matrix<F> w(random, 37, 512);
      test::for_each_simd([&](auto& be) {
        mote::buffer<std::uint8_t> bytes;
        const auto matrix = packed(be, w, bytes);
        CHECK((mote::out_features(matrix) == 37 && mote::in_features(matrix) == 512));
        std::vector<float> row(512);
        for (std::size_t n = 0; n < 37; ++n) {
          mote::dequantize_row(matrix, n, row.data());
          const auto want = w.row(n);
          test::check_close(row, want, 0.0f, 1e-6f);
        }
        CHECK_THROWS_WITH(mote::slice_rows(matrix, 8, 1),
                          "slice_rows: packed matrices are cut at multiples of 32, got 8");
      });
      mote::simd<> be;
      mote::buffer<std::uint8_t> bytes;
      const auto matrix = packed(be, w, bytes);
      const std::vector<float> x(512);
      const mote::packed_matrix<F> other(matrix.bytes(), 37, 512, {matrix.order().lanes * 2, 1});
      CHECK_THROWS_WITH(test::product(be, x, 1, other), "matmul: w: packed for another instruction set");
      CHECK_THROWS_WITH(test::product(be, {}, 1, mote::packed_matrix<F>()), "matmul: w: an empty packed_matrix");
      CHECK_THROWS_AS((mote::packed_matrix<F>(matrix.bytes(), 33, 256, matrix.order())), mote::shape_error);
      CHECK_THROWS_WITH(mote::packed_matrix<F>(matrix.bytes(), 37, 512),
                        "packed_matrix: order: expected lanes that divide 32");
    }
  });
}

TEST_CASE("block matmul: grouped_ffn and batched_matmul take block formats") {
  test::random_source random(5);
  const std::size_t hidden = 256, intermediate = 512, experts = 7, tokens = 100;
  const auto x = random.normal(tokens * hidden), weights = random.normal(tokens * 2);
  // Experts of 1, 7, 8, 84, 17, 83 and no tokens: fewer and more than tiles, and units, take.
  std::vector<std::int32_t> indices;
  for (std::size_t t = 0; t < tokens; ++t) {
    indices.push_back(t < 1 ? 0 : t < 8 ? 1 : t < 16 ? 2 : 3);
    indices.push_back(t % 6 == 0 ? 4 : 5);
  }
  const auto check = [&]<class F, class G>() {
    std::vector<block_matrix<F>> in;
    std::vector<block_matrix<G>> down;
    std::vector<mote::ffn_weights> stored;
    for (std::size_t e = 0; e < experts; ++e) {
      in.emplace_back(random, intermediate, hidden);
      in.emplace_back(random, intermediate, hidden);
      down.emplace_back(random, hidden, intermediate);
    }
    for (std::size_t e = 0; e < experts; ++e)
      stored.push_back({in[2 * e].view(), in[2 * e + 1].view(), down[e].view()});
    const auto run_ffn = [&](auto& be, const std::vector<mote::ffn_weights>& all) {
      std::vector<float> y(tokens * hidden);
      mote::grouped_ffn(be, {x.data(), tokens, hidden}, {indices.data(), tokens, 2}, {weights.data(), tokens, 2}, all,
                        {y.data(), tokens, hidden});
      return y;
    };
    mote::reference reference;
    const auto want = run_ffn(reference, stored);
    test::for_each_simd([&](auto& be) {
      std::vector<mote::buffer<std::uint8_t>> bytes(3 * experts);
      std::vector<mote::ffn_weights> fast;
      for (std::size_t e = 0; e < experts; ++e) {
        fast.push_back({packed(be, in[2 * e], bytes[3 * e]), packed(be, in[2 * e + 1], bytes[3 * e + 1]),
                        packed(be, down[e], bytes[3 * e + 2])});
      }
      // The inner activations may round to the neighbouring code.
      test::check_close(run_ffn(be, stored), want, 0.02f);
      CHECK(test::same_bits(run_ffn(be, fast), run_ffn(be, stored)));

      std::vector<float> y(tokens * intermediate), z(tokens * intermediate);
      const mote::view<const float, 3> entries(x.data(), 4, 25, hidden);
      const auto half = intermediate / 4;
      mote::batched_matmul(be, entries, in[0].view(), {y.data(), 4, 25, half});
      mote::batched_matmul(be, entries, fast[0].gate, {z.data(), 4, 25, half});
      CHECK(test::same_bits(y, z));
    });
  };
  check.template operator()<mote::q4_0, mote::q8_0>();
  check.template operator()<mote::q4_k, mote::mxfp4>();
}
