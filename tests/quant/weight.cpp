#include <mote/core/buffer.hpp>
#include <mote/ops/matmul/matmul.hpp>
#include <mote/quant/quantize.hpp>
#include <mote/quant/weight.hpp>

#include <limits>
#include <string>

#include "support/backends.hpp"
#include "support/kernels.hpp"
#include "support/matrices.hpp"
#include "support/random.hpp"

TEST_CASE("weight: shape, bytes, elements and row slices in every format") {
  const std::size_t out = 6, in = 5;
  const auto values = test::random_source(1).normal(out * in);
  for (const auto format : test::weight_formats) {
    CAPTURE(test::name(format));
    const test::strided_weight w(format, out, in, values);
    CHECK((mote::out_features(w.get()) == out && mote::in_features(w.get()) == in));
    const std::size_t expected = format == test::weight_format::f32    ? out * in * 4
                                 : format == test::weight_format::fp8  ? out * in + 4
                                 : format == test::weight_format::int8 ? out * in + out * 4
                                                                       : out * in * 2;
    CHECK(mote::bytes(w.get()) == expected);
    test::check_close(w.values(), values, format == test::weight_format::f32 ? 0.0f : 0.02f, 0.07f);
    const auto part = mote::slice_rows(w.get(), 2, 3);
    CHECK((mote::out_features(part) == 3 && mote::in_features(part) == in));
    const auto row = [](const mote::weight& m, std::size_t n) {
      std::vector<float> y(mote::in_features(m));
      mote::dequantize_row(m, n, y.data());
      return y;
    };
    for (std::size_t n = 0; n < 3; ++n) CHECK(row(part, n) == row(w.get(), n + 2));
    CHECK(mote::out_features(mote::slice_rows(w.get(), out, 0)) == 0);
  }
}

TEST_CASE("weight: rows of int8 are refused where their sums would not fit") {
  const std::size_t most = mote::most_int8_columns;
  const std::vector<std::int8_t> codes(most + 1);
  const float scale = 1.0f;
  const auto rows = [&](std::size_t columns) {
    mote::check_rows("matmul", "w", mote::int8_matrix{{codes.data(), 1, columns}, {&scale, 1}});
  };
  rows(most);
  CHECK_THROWS_WITH(rows(most + 1), "matmul: w: expected at most 131072 columns of int8, got 131073");
}

TEST_CASE("packed_matrix: shapes whose bytes std::size_t cannot hold are refused") {
  const auto check = []<class F>() {
    constexpr std::size_t most = std::numeric_limits<std::size_t>::max(), columns = std::size_t{1} << 20;
    CHECK_THROWS_WITH(mote::packed_matrix<F>::size(most / 2, columns),
                      "packed_matrix: expected a shape that fits into memory, got [" + std::to_string(most / 2) + ", " +
                          std::to_string(columns) + "]");
    CHECK_THROWS_AS(mote::packed_matrix<F>::size(most, columns), mote::shape_error);
    CHECK_THROWS_AS(mote::packed_matrix<F>::size(1, most / 2 + 1), mote::shape_error);
    CHECK(mote::packed_matrix<F>::size(33, columns) == 2 * mote::packed_matrix<F>::panel_bytes(columns));
    CHECK(mote::packed_matrix<F>::size(0, columns) == 0);
  };
  mote::for_each_format(check);
  mote::for_each_format(check, mote::type_list<std::int8_t, mote::bf16>{});
}

TEST_CASE("weight: a packed nvfp4 matrix keeps the tensor's scale") {
  test::random_source random(2);
  const std::size_t tokens = 5, out = 70, in = 192;
  const float tensor_scale = 0.37f;
  const auto values = random.normal(out * in), x = random.normal(tokens * in);
  std::vector<mote::nvfp4> blocks(out * in / 64);
  mote::quantize<mote::nvfp4>({values.data(), out, in}, {blocks.data(), out, in / 64});
  const mote::view<const mote::nvfp4, 2> stored(blocks.data(), out, in / 64);
  test::for_each_simd([&](auto& be) {
    mote::buffer<std::uint8_t> bytes(mote::packed_matrix<mote::nvfp4>::size(out, in));
    const mote::weight packed = mote::pack(be, stored, bytes.as(bytes.size()), tensor_scale);
    std::vector<float> row(in), plain(in);
    for (std::size_t n = 0; n < out; n += 23) {
      mote::dequantize_row(packed, n, row.data());
      mote::dequantize_row(stored, n, plain.data());
      for (float& v : plain) v *= tensor_scale;
      test::check_close(row, plain, 0.0f, 1e-6f);
    }
    auto want = test::product(be, x, tokens, stored);
    for (float& v : want) v *= tensor_scale;
    CHECK(test::same_bits(test::product(be, x, tokens, packed), want));
    mote::reference reference;
    test::check_close(test::product(reference, x, tokens, packed), want, 1e-4f);
    const auto last = test::product(be, x, tokens, mote::slice_rows(packed, 64, 6));
    for (std::size_t n = 0; n < 6; ++n) CHECK(last[n] == want[64 + n]);
    CHECK_THROWS_AS(mote::pack(be, mote::view<const mote::q8_0, 2>(), {}, 2.0f), mote::shape_error);
  });
}
