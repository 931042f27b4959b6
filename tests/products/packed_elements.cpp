// Packed int8 and bf16 matrices.
#include <mote/core/buffer.hpp>
#include <mote/ops/batched_matmul/batched_matmul.hpp>
#include <mote/ops/grouped_ffn/grouped_ffn.hpp>
#include <mote/ops/matmul/matmul.hpp>
#include <mote/quant/int8.hpp>

#include "support/backends.hpp"
#include "support/kernels.hpp"
#include "support/random.hpp"

namespace {

using mote::bf16;

// A random matrix, in rows and packed.
struct int8_case {
  std::vector<std::int8_t> codes;
  std::vector<float> scale;
  mote::buffer<std::uint8_t> bytes;
  mote::int8_matrix rows;
  mote::packed_matrix<std::int8_t> packed;

  template <class Backend>
  int8_case(Backend& be, test::random_source& random, std::size_t out, std::size_t in)
      : codes(out * in), scale(out), bytes(mote::packed_matrix<std::int8_t>::size(out, in)) {
    const auto values = random.normal(out * in, 1.0f / std::sqrt(static_cast<float>(in + 1)));
    mote::quantize_int8({values.data(), out, in}, {codes.data(), out, in}, scale);
    rows = {{codes.data(), out, in}, scale};
    packed = mote::pack(be, rows, {bytes.data(), bytes.size()});
  }
};

struct bf16_case {
  std::vector<bf16> values;
  mote::buffer<std::uint8_t> bytes;
  mote::view<const bf16, 2> rows;
  mote::packed_matrix<bf16> packed;

  template <class Backend>
  bf16_case(Backend& be, test::random_source& random, std::size_t out, std::size_t in)
      : bytes(mote::packed_matrix<bf16>::size(out, in)) {
    for (const float v : random.normal(out * in, 1.0f / std::sqrt(static_cast<float>(in + 1)))) values.emplace_back(v);
    rows = {values.data(), out, in};
    packed = mote::pack(be, rows, {bytes.data(), bytes.size()});
  }
};

// Around quads, tiles, panels, units and steps of k.
struct product_shape {
  std::size_t tokens, out, in;
};
const std::vector<product_shape> shapes = {{1, 1, 1},    {2, 33, 5},      {6, 64, 32},   {7, 97, 70},
                                           {13, 5, 255}, {50, 40, 64},    {8, 65, 4099}, {0, 3, 4},
                                           {3, 32, 0},   {140, 33, 1100}, {257, 40, 70}};

template <class Case, class Backend>
void check_batches(Backend& one, float magnitude = 1.0f) {
  test::random_source random(2);
  const std::size_t tokens = 137, out = 100, in = 4200;
  mote::simd<typename Backend::arch> three{mote::threads{3}};
  const Case w(three, random, out, in);
  const auto x = random.normal(tokens * in, magnitude);
  const auto all = test::product(one, x, tokens, w.packed);
  CHECK(test::same_bits(test::product(three, x, tokens, w.packed), all));
  for (const std::size_t count : {1u, 4u, 5u, 8u}) {
    for (std::size_t t = 0; t + count <= tokens; t += 29) {
      const std::vector<float> some(x.begin() + static_cast<std::ptrdiff_t>(t * in),
                                    x.begin() + static_cast<std::ptrdiff_t>((t + count) * in));
      const std::vector<float> want(all.begin() + static_cast<std::ptrdiff_t>(t * out),
                                    all.begin() + static_cast<std::ptrdiff_t>((t + count) * out));
      CHECK(test::same_bits(test::product(one, some, count, w.packed), want));
    }
  }
}

}  // namespace

TEST_CASE("packed int8: the same bits as in rows, on every back end") {
  test::random_source random(1);
  for (const product_shape& shape : shapes) {
    const std::size_t tokens = shape.tokens, out = shape.out, in = shape.in;
    CAPTURE(tokens, out, in);
    const auto x = random.normal(tokens * in);
    test::for_each_backend([&](auto& be) {
      const int8_case w(be, random, out, in);
      const auto y = test::product(be, x, tokens, w.rows);
      CHECK(test::same_bits(test::product(be, x, tokens, w.packed), y));
      CHECK(test::same_bits(test::product(be, x, tokens, w.packed, mote::output::accumulate),
                            test::product(be, x, tokens, w.rows, mote::output::accumulate)));
    });
  }
}

TEST_CASE("packed bf16: both operands bf16, sums in float32") {
  test::random_source random(3);
  for (const product_shape& shape : shapes) {
    const std::size_t tokens = shape.tokens, out = shape.out, in = shape.in;
    CAPTURE(tokens, out, in);
    const auto x = random.normal(tokens * in);
    mote::reference reference;
    const bf16_case w(reference, random, out, in);
    std::vector<float> want(tokens * out);
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t n = 0; n < out; ++n) {
        double sum = 0.0;
        for (std::size_t k = 0; k < in; ++k) {
          sum += double{static_cast<float>(bf16(x[t * in + k]))} * double{static_cast<float>(w.values[n * in + k])};
        }
        want[t * out + n] = static_cast<float>(sum);
      }
    }
    test::for_each_backend([&](auto& be) { test::check_close(test::product(be, x, tokens, w.packed), want, 2e-5f); });
  }
}

TEST_CASE("packed elements: a token's bits do not depend on the batch, its place in it, nor on threads") {
  test::for_each_simd([&](auto& be) {
    check_batches<int8_case>(be);
    check_batches<bf16_case>(be);
    check_batches<bf16_case>(be, 1e-37f);  // products that are subnormal
  });
}

TEST_CASE("packed elements: rows, slices and memory") {
  test::random_source random(4);
  mote::reference be;
  const std::size_t out = 70, in = 9;
  const int8_case codes(be, random, out, in);
  const bf16_case halves(be, random, out, in);
  std::vector<float> got(in), want(in);
  for (std::size_t n = 0; n < out; ++n) {
    mote::dequantize_row(codes.packed, n, got.data());
    mote::dequantize_row(codes.rows, n, want.data());
    CHECK(got == want);
    mote::dequantize_row(mote::slice_rows(halves.packed, n / 32 * 32, 1 + n % 32), n % 32, got.data());
    mote::dequantize_row(halves.rows, n, want.data());
    CHECK(got == want);
  }
  CHECK(mote::bytes(codes.packed) == 3 * 32 * (12 + 4));
  CHECK(mote::bytes(halves.packed) == 3 * 32 * 20);
  CHECK_THROWS_AS(mote::slice_rows(halves.packed, 5, 5), mote::shape_error);
}

TEST_CASE("packed elements: batched products and experts that mix them with other forms") {
  test::random_source random(5);
  test::for_each_simd([&](auto& be) {
    const std::size_t entries = 3, tokens = 33, out = 32, in = 20;
    const int8_case w(be, random, entries * out, in);
    const auto x = random.normal(entries * tokens * in);
    std::vector<float> got(entries * tokens * out), want(got.size());
    const mote::view<const float, 3> batches(x.data(), entries, tokens, in);
    mote::batched_matmul(be, batches, w.packed, {got.data(), entries, tokens, out});
    mote::batched_matmul(be, batches, w.rows, {want.data(), entries, tokens, out});
    CHECK(test::same_bits(got, want));

    const std::size_t hidden = 24, intermediate = 80, top_k = 2;
    const int8_case gate(be, random, intermediate, hidden), down(be, random, hidden, intermediate);
    const bf16_case up(be, random, intermediate, hidden);
    const auto tokens_in = random.normal(tokens * hidden), weights = random.normal(tokens * top_k);
    std::vector<std::int32_t> chosen;
    for (std::int32_t t = 0; t < static_cast<std::int32_t>(tokens); ++t)
      chosen.insert(chosen.end(), {t % 2, 1 - t % 2});
    const auto experts = [&](const mote::weight& g, const mote::weight& u, const mote::weight& d) {
      const std::vector<mote::ffn_weights> both = {{g, u, d}, {g, g, d}};
      std::vector<float> y(tokens * hidden);
      mote::grouped_ffn(be, {tokens_in.data(), tokens, hidden}, {chosen.data(), tokens, top_k},
                        {weights.data(), tokens, top_k}, both, {y.data(), tokens, hidden});
      return y;
    };
    test::check_close(experts(gate.packed, up.packed, down.packed), experts(gate.rows, up.rows, down.rows), 0.1f);
    CHECK(test::same_bits(experts(gate.packed, gate.packed, down.packed), experts(gate.rows, gate.rows, down.rows)));
  });
}
