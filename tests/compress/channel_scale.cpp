#include <mote/compress/awq.hpp>
#include <mote/compress/block_grid.hpp>
#include <mote/compress/integer_grids.hpp>
#include <mote/compress/smoothquant.hpp>
#include <mote/ops/matmul/matmul.hpp>
#include <mote/quant/int8.hpp>

#include <cmath>

#include "compress/support.hpp"
#include "support/kernels.hpp"

namespace {

using test::matrix;

// Tokens of which every `period`th channel is `factor` times as large.
matrix with_salient_channels(test::random_source& random, std::size_t tokens, std::size_t in, std::size_t period,
                             float factor) {
  matrix x(tokens, in, random.normal(tokens * in));
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t c = 5; c < in; c += period) x(t, c) *= factor;
  }
  return x;
}

// Output of int8 weights on activations quantized to int8 per token, against that in float32.
double int8_output_error(const matrix& w, const matrix& x) {
  mote::reference be;
  std::vector<std::int8_t> codes(w.values.size());
  std::vector<float> scale(w.rows);
  mote::int8_grid grid({codes.data(), w.rows, w.columns}, scale);
  matrix quantized(w.rows, w.columns), rounded = x;
  mote::round_to_nearest(be, w.view(), grid, quantized.view());
  for (std::size_t t = 0; t < x.rows; ++t) {
    std::vector<std::int8_t> q(x.columns);
    const float s = mote::quantize_int8_row(x.view().row(t), x.columns, q.data());
    for (std::size_t c = 0; c < x.columns; ++c) rounded(t, c) = s * static_cast<float>(q[c]);
  }
  matrix want(x.rows, w.rows), got(x.rows, w.rows);
  mote::matmul(be, x.view(), w.view(), want.view());
  mote::matmul(be, rounded.view(), std::as_const(quantized).view(), got.view());
  double error = 0.0, signal = 0.0;
  for (std::size_t i = 0; i < want.values.size(); ++i) {
    error += std::pow(static_cast<double>(got.values[i] - want.values[i]), 2);
    signal += std::pow(static_cast<double>(want.values[i]), 2);
  }
  return std::sqrt(error / signal);
}

}  // namespace

TEST_CASE("channel scale: folded into norm or rows, the layer's output stays") {
  test::random_source random(1);
  const std::size_t in = 8, out = 3, before = 5, tokens = 4;
  const matrix w(out, in, random.normal(out * in)), up(in, before, random.normal(in * before));
  const matrix x(tokens, before, random.normal(tokens * before));
  const std::vector<float> s = {1.0f, 2.0f, 0.25f, 3.0f, 1.5f, 7.0f, 0.1f, 1.0f};
  mote::reference be;
  const auto run = [&](const matrix& first, const matrix& second) {
    matrix h(tokens, in), y(tokens, out);
    mote::matmul(be, x.view(), first.view(), h.view());
    mote::matmul(be, std::as_const(h).view(), second.view(), y.view());
    return y.values;
  };
  matrix scaled(out, in), divided = up;
  mote::scale_columns(w.view(), s, scaled.view());
  mote::divide_rows(divided.view(), s);
  test::check_close(run(divided, scaled), run(up, w), 1e-5f, 1e-5f);
  mote::divide_columns(scaled.view(), s);
  test::check_close(scaled.values, w.values, 1e-6f);
  std::vector<float> norm = s;
  mote::divide_norm(norm, s);
  CHECK(norm == std::vector<float>(in, 1.0f));

  std::vector<float> absmax(in);
  mote::update_column_absmax(w.view(), absmax);
  CHECK(absmax[2] == std::max({std::fabs(w(0, 2)), std::fabs(w(1, 2)), std::fabs(w(2, 2))}));
  absmax[3] = 50.0f;
  mote::update_column_absmax(w.view(), absmax);
  CHECK(absmax[3] == 50.0f);
  CHECK_THROWS_AS(mote::scale_columns(w.view(), norm, matrix(out, in + 1).view()), mote::shape_error);
  CHECK_THROWS_AS(mote::divide_rows(scaled.view(), s), mote::shape_error);
}

TEST_CASE("smoothquant: the scale, and channels that have none") {
  const std::vector<float> x = {4.0f, 16.0f, 0.0f, 1.0f}, w = {1.0f, 0.25f, 1.0f, 0.0f};
  const auto s = mote::smoothing_scale(x, w, 0.5f);
  CHECK(s == std::vector<float>{2.0f, 8.0f, 1.0f, 1.0f});
  CHECK(mote::smoothing_scale(x, w, 1.0f)[1] == 16.0f);
  CHECK(mote::smoothing_scale(x, w, 0.0f)[1] == 4.0f);
  CHECK_THROWS_WITH(mote::smoothing_scale(x, w, 1.5f), contains("alpha"));
  CHECK_THROWS_AS(mote::smoothing_scale(x, std::vector<float>(3)), mote::shape_error);
}

TEST_CASE("smoothquant: int8 with outlier channels loses far less") {
  test::random_source random(2);
  const std::size_t out = 32, in = 256;
  matrix w(out, in, random.normal(out * in)), x = with_salient_channels(random, 64, in, 16, 60.0f);
  std::vector<float> w_absmax(in);
  mote::update_column_absmax(w.view(), w_absmax);
  const auto s = mote::smoothing_scale(test::statistics_of(x, 1).absmax(), w_absmax);
  const double plain = int8_output_error(w, x);
  mote::scale_columns(w.view(), s, w.view());
  mote::divide_columns(x.view(), s);
  const double smooth = int8_output_error(w, x);
  CAPTURE(plain, smooth);
  CHECK(smooth < 0.5 * plain);
}

TEST_CASE("awq: with salient channels the output error is below that of rounding to nearest") {
  test::random_source random(3);
  const std::size_t out = 24, in = 256, group = 64;
  // Salient channels gain as long as their weights, scaled, stay below the largest of the group.
  matrix w(out, in, random.normal(out * in)), x = with_salient_channels(random, 80, in, 128, 20.0f);
  for (std::size_t n = 0; n < out; ++n) {
    for (std::size_t c = 37; c < in; c += group) w(n, c) *= 6.0f;
  }
  mote::simd<> be{mote::threads{2}};
  for (const std::size_t block : {in, std::size_t{1}}) {
    CAPTURE(block);
    const auto statistics = test::statistics_of(x, block);
    std::vector<mote::int4_pair> packed(out * in / 2);
    std::vector<float> scale(out * in / group);
    mote::int4_grid grid(group, {packed.data(), out, in / 2}, {scale.data(), out, in / group});
    matrix plain(out, in), better(out, in);
    mote::round_to_nearest(be, w.view(), grid, plain.view());
    const auto result = mote::awq(be, w.view(), statistics, grid, better.view());
    const double before = test::relative_output_error(w, plain, x), after = test::relative_output_error(w, better, x);
    CAPTURE(before, after, result.alpha);
    CHECK(after < 0.75 * before);
    CHECK(result.alpha > 0.0f);
    CHECK(result.error < result.plain_error);
    CHECK(result.error == Approx(mote::measure_output_error(be, w, better.view(), statistics).error));

    // The grid holds the codes of W diag(s).
    matrix decoded(out, in);
    const mote::scaled_matrix stored{.codes = mote::view<const mote::int4_pair, 2>(packed.data(), out, in / 2),
                                     .scale = {scale.data(), out, in / group},
                                     .tile_columns = group};
    for (std::size_t n = 0; n < out; ++n) mote::dequantize_row(stored, n, decoded.view().row(n));
    mote::divide_columns(decoded.view(), result.scale);
    CHECK(test::same_bits(decoded.values, better.values));
  }
}

TEST_CASE("awq: any error can be searched, ties keep weights as they are, silent channels keep 1") {
  const std::vector<float> mean = {1.0f, 0.0f, 4.0f};
  const auto even = mote::search_awq_scale(mean, [](const auto&) { return 1.0; });
  CHECK(even.alpha == 0.0f);
  CHECK(even.scale == std::vector<float>(3, 1.0f));
  const auto found = mote::search_awq_scale(mean, [](const auto& s) { return std::fabs(s(2) / s(0) - 2.0); });
  CHECK(found.alpha == 0.5f);
  CHECK(found.error == Approx(0.0).margin(1e-6));
  CHECK(found.plain_error == 1.0);
  CHECK(found.scale[1] == 1.0f);
  CHECK(found.scale[0] * found.scale[2] == Approx(1.0f));

  // A layer that no token reached.
  test::random_source random(4);
  const matrix w(4, 32, random.normal(128));
  mote::reference be;
  std::vector<mote::q4_0> blocks(4);
  mote::block_grid grid(mote::view<mote::q4_0, 2>(blocks.data(), 4, 1));
  matrix plain(4, 32), got(4, 32);
  mote::round_to_nearest(be, w.view(), grid, plain.view());
  CHECK(mote::awq(be, w.view(), mote::activation_statistics(32, 1), grid, got.view()).alpha == 0.0f);
  CHECK(test::same_bits(got.values, plain.values));
  CHECK_THROWS_WITH(mote::awq(be, w.view(), mote::activation_statistics(31, 1), grid, got.view()), contains("awq"));
}

TEST_CASE("output error: from the second moment as from running the layer") {
  test::random_source random(5);
  const std::size_t out = 70, in = 24;
  const matrix w(out, in, random.normal(out * in)), x = test::correlated(random, 200, in);
  matrix other = w;
  for (float& v : other.values) v += 0.1f * random.normal(1)[0];
  test::for_each_backend([&](auto& be) {
    const auto e = mote::measure_output_error(be, w, other, test::statistics_of(x, in));
    CHECK(e.relative() == Approx(test::relative_output_error(w, other, x)).epsilon(1e-3));
  });
  mote::reference be;
  CHECK(mote::measure_output_error(be, w, w, test::statistics_of(x, in)).relative() == 0.0);
  // No token: the error of the weight itself.
  double error = 0.0, signal = 0.0;
  for (std::size_t i = 0; i < w.values.size(); ++i) {
    error += std::pow(static_cast<double>(w.values[i] - other.values[i]), 2);
    signal += std::pow(static_cast<double>(w.values[i]), 2);
  }
  const auto unseen = mote::measure_output_error(be, w, other, mote::activation_statistics(in, in));
  CHECK(unseen.error == Approx(error));
  CHECK(unseen.signal == Approx(signal));
  // Blocks leave out what lies between them, the diagonal everything but squares.
  const auto diagonal = mote::measure_output_error(be, w, other, test::statistics_of(x, 1));
  double want = 0.0;
  for (std::size_t n = 0; n < out; ++n) {
    for (std::size_t c = 0; c < in; ++c) {
      for (std::size_t t = 0; t < x.rows; ++t)
        want += std::pow(static_cast<double>((w(n, c) - other(n, c)) * x(t, c)), 2);
    }
  }
  CHECK(diagonal.error == Approx(want).epsilon(1e-4));
}
