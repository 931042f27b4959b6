#include <mote/compress/block_grid.hpp>
#include <mote/compress/gptq.hpp>
#include <mote/compress/integer_grids.hpp>
#include <mote/quant/quantize.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

#include "compress/support.hpp"
#include "support/formats.hpp"
#include "support/golden.hpp"

namespace {

using test::matrix;

matrix weight(test::random_source& random, std::size_t out, std::size_t in) {
  return {out, in, random.normal(out * in)};
}

// Runs f(grid) with the grid of each kind for a matrix like w; check(quantized) afterwards holds that codes and values
// agree.
template <class Function>
void for_each_grid(const matrix& w, Function&& f) {
  const std::size_t out = w.rows, in = w.columns;
  test::for_each_format([&]<class F>() {
    INFO(F::name);
    std::vector<F> blocks(out * in / F::block_size);
    const mote::view<F, 2> view(blocks.data(), out, in / F::block_size);
    mote::block_grid grid(view);
    f(grid, [&] {
      matrix values(out, in);
      mote::dequantize<F>(view, values.view());
      return values;
    });
  });
  {
    INFO("int8");
    std::vector<std::int8_t> codes(out * in);
    std::vector<float> scale(out);
    mote::int8_grid grid({codes.data(), out, in}, scale);
    f(grid, [&] {
      matrix values(out, in);
      for (std::size_t i = 0; i < codes.size(); ++i) values.values[i] = scale[i / in] * static_cast<float>(codes[i]);
      return values;
    });
  }
  for (const bool symmetric : {true, false}) {
    INFO("int4, symmetric: " << symmetric);
    const std::size_t group = 32;
    std::vector<mote::int4_pair> codes(out * in / 2, {0xFF});
    std::vector<std::int8_t> zero(out * in / group);
    std::vector<float> scale(out * in / group);
    const mote::view<mote::int4_pair, 2> p(codes.data(), out, in / 2);
    const mote::view<std::int8_t, 2> z(zero.data(), out, in / group);
    const mote::view<float, 2> s(scale.data(), out, in / group);
    mote::int4_grid grid = symmetric ? mote::int4_grid(group, p, s) : mote::int4_grid(group, p, s, z);
    f(grid, [&] {
      matrix values(out, in);
      mote::scaled_matrix stored{.codes = mote::view<const mote::int4_pair, 2>(p), .scale = s, .tile_columns = group};
      if (!symmetric) stored.zero = z;
      for (std::size_t n = 0; n < out; ++n) mote::dequantize_row(stored, n, values.view().row(n));
      return values;
    });
  }
  {
    INFO("fp8");
    std::vector<mote::f8_e4m3> codes(out * in);
    std::vector<float> scale(mote::fp8_blocks(out) * mote::fp8_blocks(in));
    const mote::view<mote::f8_e4m3, 2> c(codes.data(), out, in);
    const mote::view<float, 2> s(scale.data(), mote::fp8_blocks(out), mote::fp8_blocks(in));
    mote::fp8_grid grid(w.view(), c, s);
    f(grid, [&] {
      matrix values(out, in);
      mote::dequantize_fp8(c, s, values.view());
      return values;
    });
  }
}

// GPTQ as its equation reads, column by column in float64, for grids that are fitted before: H⁻¹ by Gauss-Jordan, U by
// eliminating one channel after another.
template <class Round>
matrix gptq_by_the_book(const matrix& w, const matrix& x, double damping, const Round& round) {
  const std::size_t in = w.columns;
  std::vector<double> h(in * in);
  double trace = 0.0;
  for (std::size_t i = 0; i < in; ++i) {
    for (std::size_t j = 0; j < in; ++j) {
      for (std::size_t t = 0; t < x.rows; ++t)
        h[i * in + j] += static_cast<double>(x(t, i)) * static_cast<double>(x(t, j));
    }
    trace += h[i * in + i];
  }
  for (std::size_t i = 0; i < in; ++i) h[i * in + i] += damping * trace / static_cast<double>(in);
  std::vector<double> inverse(in * in);
  for (std::size_t i = 0; i < in; ++i) inverse[i * in + i] = 1.0;
  for (std::size_t p = 0; p < in; ++p) {
    const double pivot = h[p * in + p];
    for (std::size_t j = 0; j < in; ++j) {
      h[p * in + j] /= pivot;
      inverse[p * in + j] /= pivot;
    }
    for (std::size_t i = 0; i < in; ++i) {
      if (i == p) continue;
      const double factor = h[i * in + p];
      for (std::size_t j = 0; j < in; ++j) {
        h[i * in + j] -= factor * h[p * in + j];
        inverse[i * in + j] -= factor * inverse[p * in + j];
      }
    }
  }
  std::vector<double> current(w.values.begin(), w.values.end());
  matrix quantized(w.rows, in);
  for (std::size_t i = 0; i < in; ++i) {
    for (std::size_t n = 0; n < w.rows; ++n) {
      quantized(n, i) = round(n, i, static_cast<float>(current[n * in + i]));
      const double e = (current[n * in + i] - static_cast<double>(quantized(n, i))) / inverse[i * in + i];
      for (std::size_t j = i; j < in; ++j) current[n * in + j] -= e * inverse[i * in + j];
    }
    // The inverse of the Hessian without channel i.
    for (std::size_t a = i + 1; a < in; ++a) {
      for (std::size_t b = i + 1; b < in; ++b) {
        inverse[a * in + b] -= inverse[a * in + i] * inverse[i * in + b] / inverse[i * in + i];
      }
    }
  }
  return quantized;
}

}  // namespace

TEST_CASE("gptq: the equation, column by column") {
  test::random_source random(1);
  const auto w = weight(random, 5, 40);
  const auto x = test::correlated(random, 64, 40);
  // A grid that no accumulated rounding can push over an edge often: a fixed step.
  struct steps {
    std::size_t rows() const { return 5; }
    std::size_t columns() const { return 40; }
    std::size_t group() const { return 1; }
    void fit(std::size_t, std::size_t, const float*) const {}
    float round(std::size_t, std::size_t, float v) const { return 0.5f * std::nearbyint(v / 0.5f); }
  } grid;
  const auto want =
      gptq_by_the_book(w, x, 0.01, [&](std::size_t n, std::size_t i, float v) { return grid.round(n, i, v); });
  const mote::inverse_hessian inverse(test::statistics_of(x, 40));
  test::for_each_backend([&](auto& be) {
    matrix got(5, 40);
    mote::gptq(be, w.view(), inverse, grid, got.view());
    CHECK(got.values == want.values);
  });
}

TEST_CASE("gptq: with correlated inputs the output error is far below that of rounding to nearest, in every format") {
  test::random_source random(2);
  const std::size_t out = 24, in = 512;
  const auto w = weight(random, out, in);
  const auto x = test::correlated(random, 700, in);
  const auto statistics = test::statistics_of(x, in);
  mote::simd<> be{mote::threads{2}};
  for (const bool act_order : {false, true}) {
    CAPTURE(act_order);
    const mote::inverse_hessian inverse(statistics, {.damping = 0.01f, .act_order = act_order});
    for_each_grid(w, [&](auto& grid, const auto& decoded) {
      matrix plain(out, in), better(out, in);
      mote::round_to_nearest(be, w.view(), grid, plain.view());
      CHECK(test::same_bits(plain.values, decoded().values));
      if constexpr (mote::detail::group_grid<std::remove_reference_t<decltype(grid)>>) {
        if (act_order) {
          CHECK_THROWS_WITH(mote::gptq(be, w.view(), inverse, grid, better.view()), contains("act_order"));
          return;
        }
      }
      mote::gptq(be, w.view(), inverse, grid, better.view());
      CHECK(test::same_bits(better.values, decoded().values));
      const double before = test::relative_output_error(w, plain, x), after = test::relative_output_error(w, better, x);
      CAPTURE(before, after);
      CHECK(after < 0.6 * before);
    });
  }
}

TEST_CASE("gptq: where the inputs are not correlated, or never came, it rounds to nearest") {
  test::random_source random(3);
  const std::size_t out = 3, in = 256;
  const auto w = weight(random, out, in);
  mote::activation_statistics unseen(in, in), diagonal(in, 1), zeros(in, in);
  mote::simd<> be{mote::threads{1}};
  diagonal.add(be, test::correlated(random, 20, in).view());
  zeros.add(be, matrix(20, in).view());
  for (const auto* statistics : {&unseen, &zeros}) {
    const mote::inverse_hessian inverse(*statistics);
    CHECK(inverse.identity());
    for_each_grid(w, [&](auto& grid, const auto&) {
      matrix plain(out, in), got(out, in);
      mote::round_to_nearest(be, w.view(), grid, plain.view());
      mote::gptq(be, w.view(), inverse, grid, got.view());
      CHECK(test::same_bits(got.values, plain.values));
    });
  }
  // Diagonal blocks of one channel: nothing to take over.
  std::vector<std::int8_t> codes(out * in);
  std::vector<float> scale(out);
  mote::int8_grid grid({codes.data(), out, in}, scale);
  matrix plain(out, in), got(out, in);
  mote::round_to_nearest(be, w.view(), grid, plain.view());
  mote::gptq(be, w.view(), mote::inverse_hessian(diagonal), grid, got.view());
  CHECK(test::same_bits(got.values, plain.values));
}

TEST_CASE("gptq: fewer tokens than channels, silent channels, tiny and huge activations: finite, and no worse") {
  test::random_source random(4);
  const std::size_t out = 8, in = 256;
  const auto w = weight(random, out, in);
  for (const float scale : {1e-18f, 1.0f, 1e12f}) {
    auto x = test::correlated(random, 30, in);
    for (std::size_t t = 0; t < x.rows; ++t) {
      for (std::size_t c = 0; c < in; ++c) x(t, c) = c % 7 == 3 ? 0.0f : scale * x(t, c);
    }
    mote::simd<> be{mote::threads{1}};
    const auto statistics = test::statistics_of(x, in);
    std::vector<mote::q4_0> blocks(out * in / 32);
    mote::block_grid grid(mote::view<mote::q4_0, 2>(blocks.data(), out, in / 32));
    matrix plain(out, in), better(out, in);
    mote::round_to_nearest(be, w.view(), grid, plain.view());
    mote::gptq(be, w.view(), mote::inverse_hessian(statistics), grid, better.view());
    for (const float v : better.values) CHECK(std::isfinite(v));
    CHECK(test::relative_output_error(w, better, x) < 0.5 * test::relative_output_error(w, plain, x));
  }
}

TEST_CASE("gptq: blocks of the second moment stand alone") {
  test::random_source random(5);
  const std::size_t out = 6, in = 192;
  const auto w = weight(random, out, in);
  const auto x = test::correlated(random, 300, in);
  mote::simd<> be{mote::threads{1}};
  const auto run = [&](const matrix& part, const mote::inverse_hessian& inverse) {
    std::vector<mote::q4_0> blocks(part.rows * part.columns / 32);
    mote::block_grid grid(mote::view<mote::q4_0, 2>(blocks.data(), part.rows, part.columns / 32));
    matrix y(part.rows, part.columns);
    mote::gptq(be, part.view(), inverse, grid, y.view());
    return y;
  };
  const auto cut = [](const matrix& m, std::size_t begin, std::size_t count) {
    matrix part(m.rows, count);
    for (std::size_t r = 0; r < m.rows; ++r) {
      for (std::size_t c = 0; c < count; ++c) part(r, c) = m(r, begin + c);
    }
    return part;
  };
  // Equal damping needs equal mean diagonals: one block's own, so scale-free inputs are used in both.
  const auto whole = run(w, mote::inverse_hessian(test::statistics_of(x, 128), {.damping = 1e-7f}));
  const auto first =
      run(cut(w, 0, 128), mote::inverse_hessian(test::statistics_of(cut(x, 0, 128), 128), {.damping = 1e-7f}));
  const auto second =
      run(cut(w, 128, 64), mote::inverse_hessian(test::statistics_of(cut(x, 128, 64), 64), {.damping = 1e-7f}));
  std::size_t different = 0;
  for (std::size_t r = 0; r < out; ++r) {
    for (std::size_t c = 0; c < in; ++c) different += whole(r, c) != (c < 128 ? first(r, c) : second(r, c - 128));
  }
  CHECK(different < out * in / 100);
}

TEST_CASE("gptq: results do not depend on threads or on the other rows") {
  test::random_source random(6);
  const std::size_t out = 33, in = 320;
  const auto w = weight(random, out, in);
  const auto statistics = test::statistics_of(test::correlated(random, 400, in), in);
  const mote::inverse_hessian inverse(statistics);
  const auto run = [&](auto& be, std::size_t begin, std::size_t count) {
    std::vector<mote::q5_0> blocks(count * in / 32);
    mote::block_grid grid(mote::view<mote::q5_0, 2>(blocks.data(), count, in / 32));
    matrix y(count, in);
    mote::gptq(be, w.view().slice(0, begin, count), inverse, grid, y.view());
    return y.values;
  };
  mote::simd<> one{mote::threads{1}}, three{mote::threads{3}};
  const auto all = run(one, 0, out);
  CHECK(test::same_bits(run(three, 0, out), all));
  CHECK(test::same_bits(run(three, 7, 1), std::span(all).subspan(7 * in, in)));
}

TEST_CASE("gptq: what does not fit is refused") {
  test::random_source random(7);
  const auto w = weight(random, 2, 64);
  matrix y(2, 64);
  std::vector<mote::q4_0> blocks(4);
  mote::block_grid grid(mote::view<mote::q4_0, 2>(blocks.data(), 2, 2));
  mote::reference be;
  const auto x = test::correlated(random, 30, 64);
  CHECK_THROWS_WITH(mote::gptq(be, w.view(), mote::inverse_hessian(test::statistics_of(x, 40)), grid, y.view()),
                    contains("blocks of 40 cut groups of 32"));
  CHECK_THROWS_WITH(
      mote::gptq(be, w.view(), mote::inverse_hessian(mote::activation_statistics(32, 32)), grid, y.view()),
      contains("expected 64 channels, got 32"));
  CHECK_THROWS_AS(
      mote::gptq(be, w.view(), mote::inverse_hessian(test::statistics_of(x, 64)), grid, matrix(2, 32).view()),
      mote::shape_error);
  CHECK_THROWS_WITH(mote::inverse_hessian(test::statistics_of(x, 64), {.damping = 0.0f}), contains("damping"));
  const auto beyond = test::statistics_of(x, 64).divided_by(std::vector<float>(64, 1e-30f));
  CHECK_THROWS_WITH(mote::inverse_hessian(beyond), contains("the second moment is not finite"));
}

TEST_CASE("gptq: weights that are not finite are refused, and codes of any float are codes") {
  test::random_source random(5);
  const std::size_t out = 2, in = 256;
  const auto w = weight(random, out, in), x = test::correlated(random, 300, in);
  const mote::inverse_hessian inverse(test::statistics_of(x, in));
  const float infinity = std::numeric_limits<float>::infinity();
  mote::simd<> be{mote::threads{2}};
  for_each_grid(w, [&](auto& grid, const auto& decoded) {
    matrix got(out, in);
    for (const float value : {std::nanf(""), infinity}) {
      auto bad = w;
      bad(1, in - 1) = value;
      CHECK_THROWS_WITH(mote::round_to_nearest(be, bad.view(), grid, got.view()),
                        "round_to_nearest: w: expected finite values");
      CHECK_THROWS_WITH(mote::gptq(be, bad.view(), inverse, grid, got.view()), "gptq: w: expected finite values");
    }
    if constexpr (mote::detail::element_grid<std::remove_reference_t<decltype(grid)>>) {
      mote::round_to_nearest(be, w.view(), grid, got.view());
      for (const float value : {std::nanf(""), infinity, -infinity}) got(1, 3) = grid.round(1, 3, value);
      CHECK(test::same_bits(got.values, decoded().values));
    }
  });
}

TEST_CASE("gptq: losses that add up to more than a float holds are cut") {
  test::random_source random(6);
  const std::size_t out = 2, in = 256;
  auto w = weight(random, out, in);
  for (float& v : w.values) v = std::clamp(v * 3e38f, -3.4e38f, 3.4e38f);
  const mote::inverse_hessian inverse(test::statistics_of(test::correlated(random, 300, in), in));
  mote::simd<> be{mote::threads{2}};
  std::vector<mote::int4_pair> packed(out * in / 2);
  std::vector<float> scale(out * in / 32);
  for (const auto method : {mote::range_method::percentile, mote::range_method::kl}) {
    mote::int4_grid grid(32, {packed.data(), out, in / 2}, {scale.data(), out, in / 32}, method);
    matrix got(out, in);
    mote::gptq(be, w.view(), inverse, grid, got.view());
    for (const float s : scale) CHECK(std::isfinite(s));
  }
}

TEST_CASE("gptq: codes and scales of a published implementation") {
  const test::golden golden("integer");
  const std::size_t out = golden.extent("w", 0), in = golden.extent("w", 1), group = golden.setting("group");
  const matrix w(out, in, golden.floats("w")), x(golden.extent("gptq.x", 0), in, golden.floats("gptq.x"));
  std::vector<mote::int4_pair> packed(out * in / 2);
  std::vector<float> scale(out * in / group);
  mote::int4_grid grid(group, {packed.data(), out, in / 2}, {scale.data(), out, in / group},
                       mote::range_method::min_max);
  matrix decoded(out, in);
  mote::simd<> be;
  mote::gptq(be, w.view(), mote::inverse_hessian(test::statistics_of(x, in)), grid, decoded.view());
  test::check_close(scale, golden.floats("gptq.scale"), 0.0f, 1e-5f);
  const auto codes = golden.bytes("gptq.codes");
  std::size_t different = 0;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const int code = i % 2 == 0 ? packed[i / 2].even() : packed[i / 2].odd();
    different += code != static_cast<std::int8_t>(codes[i]);
  }
  CHECK(different == 0);
}

namespace {

// Five numbers from -1 to 1 a byte, in base 3.
struct ternary {
  static constexpr std::string_view name = "ternary";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 2;
  static constexpr std::array<std::int8_t, 16> code_values = {-1, 0, 1, 1};
  using scale_type = mote::f16;
  mote::f16 d;
  std::uint8_t q[7];

  std::uint8_t code(std::size_t i) const {
    int rest = q[i / 5];
    for (std::size_t k = 0; k < i % 5; ++k) rest /= 3;
    return static_cast<std::uint8_t>(rest % 3);
  }
  mote::f16 scale(std::size_t) const { return d; }
  static ternary encode(const float*) { return {}; }
  void decode(float* y) const { mote::decode_codes(*this, y); }
};
static_assert(mote::integer_format<ternary>);

}  // namespace

TEST_CASE("block_grid: codes that share bits are refused") {
  std::vector<ternary> blocks(2);
  const mote::view<ternary, 2> view(blocks.data(), 2, 1);
  CHECK_THROWS_WITH(mote::block_grid(view), contains("ternary: its codes are not bits of their own"));
}
