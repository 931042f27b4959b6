// matmul of scaled matrices: every code, tiling and zero point, in front of every kernel.
#include <mote/ops/matmul/matmul.hpp>

#include <limits>

#include "support/backends.hpp"
#include "support/kernels.hpp"
#include "support/random.hpp"

namespace {

struct tiling {
  std::size_t rows, columns;
};

// Random codes without NaN or infinity, scales and, for integers, zero points; rows lie apart.
template <class Code>
class random_scaled {
 public:
  static constexpr bool pairs = std::is_same_v<Code, mote::int4_pair>;
  static constexpr bool integers = pairs || std::is_same_v<Code, std::int8_t>;

  random_scaled(test::random_source& random, std::size_t out, std::size_t in, const tiling& tile, bool asymmetric)
      : out_(out), stride_(in / (pairs ? 2 : 1) + 3), codes_(out * stride_) {
    for (Code& code : codes_) {
      auto bits = static_cast<std::uint8_t>(random.below(256));
      if constexpr (!integers) {
        if (!std::isfinite(static_cast<float>(Code::from_bits(bits)))) bits &= 0x3F;
      }
      std::memcpy(static_cast<void*>(&code), &bits, 1);
    }
    const std::size_t rows = (out + tile.rows - 1) / tile.rows, columns = (in + tile.columns - 1) / tile.columns;
    scale_ = random.normal(rows * columns, 0.1f);
    for (std::size_t i = 0; asymmetric && i < scale_.size(); ++i) {
      zero_.push_back(static_cast<std::int8_t>(static_cast<int>(random.below(16)) - 8));
    }
    matrix_ = {.codes = mote::view<const Code, 2>(codes_.data(), {out, in / (pairs ? 2 : 1)}, {stride_, 1}),
               .scale = {scale_.data(), rows, columns},
               .tile_rows = tile.rows,
               .tile_columns = tile.columns};
    if (asymmetric) matrix_.zero = {zero_.data(), rows, columns};
  }

  const mote::scaled_matrix& get() const { return matrix_; }

  // The contract's formula, element by element.
  std::vector<float> values() const {
    std::vector<float> all;
    const auto codes = std::get<mote::view<const Code, 2>>(matrix_.codes);
    for (std::size_t n = 0; n < out_; ++n) {
      for (std::size_t k = 0; k < mote::in_features(matrix_); ++k) {
        float code = 0.0f;
        if constexpr (pairs) {
          const int bits = codes(n, k / 2).bits;
          code = static_cast<float>((k % 2 == 0 ? bits & 15 : bits >> 4) - 8);
        } else {
          code = static_cast<float>(codes(n, k));
        }
        const std::size_t r = n / matrix_.tile_rows, c = k / matrix_.tile_columns;
        if (!zero_.empty()) code -= static_cast<float>(matrix_.zero(r, c));
        all.push_back(code * matrix_.scale(r, c));
      }
    }
    return all;
  }

 private:
  std::size_t out_, stride_;
  std::vector<Code> codes_;
  std::vector<float> scale_;
  std::vector<std::int8_t> zero_;
  mote::scaled_matrix matrix_;
};

// f.template operator()<Code>(name) for every type of codes.
template <class F>
void for_each_code(F&& f) {
  f.template operator()<mote::f8_e4m3>("e4m3");
  f.template operator()<mote::f8_e5m2>("e5m2");
  f.template operator()<std::int8_t>("int8");
  f.template operator()<mote::int4_pair>("int4");
}

}  // namespace

TEST_CASE("scaled matmul: the bits of the dequantized matrix, whatever the codes, tiles and tokens") {
  test::random_source random(1);
  for_each_code([&]<class Code>(const char* name) {
    struct shape {
      std::size_t out, in;
    };
    for (const auto& s : {shape{1, 2}, shape{33, 130}, shape{70, 34}, shape{129, 300}, shape{5, 1038}}) {
      for (const auto& tile : {tiling{s.out, s.in}, tiling{1, s.in}, tiling{128, 128}, tiling{1, 32}, tiling{3, 6}}) {
        for (const bool asymmetric : {false, true}) {
          if (asymmetric && !random_scaled<Code>::integers) continue;
          CAPTURE(name, s.out, s.in, tile.rows, tile.columns, asymmetric);
          const random_scaled<Code> w(random, s.out, s.in, tile, asymmetric);
          const auto values = w.values();
          const mote::view<const float, 2> dequantized(values.data(), s.out, s.in);
          const auto x = random.normal(27 * s.in);
          mote::reference reference;
          CHECK(test::same_bits(test::product(reference, x, 5, w.get()), test::product(reference, x, 5, dequantized)));
          test::for_each_simd([&](auto& be) {
            for (const std::size_t tokens : {1u, 2u, 3u, 4u, 5u, 27u}) {
              CHECK(test::same_bits(test::product(be, x, tokens, w.get()), test::product(be, x, tokens, dequantized)));
            }
          });
        }
      }
    }
  });
}

TEST_CASE("scaled matmul: rows cut anywhere, again and again, are the same rows") {
  test::random_source random(2);
  const std::size_t out = 300, in = 140;
  const random_scaled<std::int8_t> w(random, out, in, {128, 20}, true);
  mote::simd<> be;
  const auto x = random.normal(2 * in);
  const auto all = test::product(be, x, 2, w.get());
  for (const std::size_t begin : {0u, 1u, 127u, 128u, 200u, 299u, 300u}) {
    const auto part = mote::slice_rows(w.get(), begin, out - begin);
    const std::size_t second = (out - begin) / 2, count = (out - begin) / 3;
    const auto piece = mote::slice_rows(part, second, count);
    CHECK((mote::out_features(piece) == count && mote::in_features(piece) == in));
    const auto y = test::product(be, x, 2, piece);
    for (std::size_t n = 0; n < count; ++n) {
      CHECK(test::same_bits({&y[n], 1}, {&all[begin + second + n], 1}));
      CHECK(test::same_bits({&y[count + n], 1}, {&all[out + begin + second + n], 1}));
    }
  }
}

TEST_CASE("scaled matmul: every fp8 code is its number; NaN and infinity stay what they are") {
  const auto check = [&]<class Code>(Code) {
    for (const std::size_t in : {32u, 32u + 1u}) {  // vectors, and the last element by itself
      std::vector<Code> codes(256 * in, Code::from_bits(0));
      for (std::size_t i = 0; i < 256; ++i) codes[i * in + in - 1] = Code::from_bits(static_cast<std::uint8_t>(i));
      const std::vector<float> scale = {0.5f}, x(5 * in, 2.0f);
      const mote::scaled_matrix w{.codes = mote::view<const Code, 2>(codes.data(), 256, in),
                                  .scale = {scale.data(), 1, 1},
                                  .tile_rows = 256,
                                  .tile_columns = in};
      test::for_each_backend([&](auto& be) {
        for (const std::size_t tokens : {1u, 3u, 5u}) {
          const auto y = test::product(be, x, tokens, w);
          std::size_t wrong = 0;
          for (std::size_t i = 0; i < 256; ++i) {
            const auto want = static_cast<float>(codes[i * in + in - 1]);
            wrong += std::isnan(want) ? !std::isnan(y[i]) : y[i] != want;
          }
          CHECK(wrong == 0);
        }
      });
    }
  };
  check(mote::f8_e4m3{});
  check(mote::f8_e5m2{});
}

TEST_CASE("scaled matmul: tiles, scales and zero points that do not fit are refused") {
  std::vector<float> x(6), y(4), scale(12, 1.0f);
  std::vector<std::int8_t> codes(24), zero(12);
  const mote::scaled_matrix good{.codes = mote::view<const std::int8_t, 2>(codes.data(), 4, 6),
                                 .scale = {scale.data(), 4, 2},
                                 .zero = {zero.data(), 4, 2},
                                 .tile_columns = 3};
  std::vector<mote::int4_pair> pairs(12);
  const auto refuses = [&](const mote::scaled_matrix& w, const std::string& message) {
    test::for_each_backend([&](auto& be) {
      CHECK_THROWS_WITH(
          mote::matmul(be, mote::view<const float, 2>(x.data(), 1, 6), w, mote::view<float, 2>(y.data(), 1, 4)),
          message);
    });
  };
  mote::simd<> be;
  mote::matmul(be, mote::view<const float, 2>(x.data(), 1, 6), good, mote::view<float, 2>(y.data(), 1, 4));
  auto w = good;
  w.tile_columns = 2;
  refuses(w, "matmul: w: scale: expected shape [4, 3], got [4, 2]");
  w = good;
  w.zero = w.zero.slice(0, 0, 3);
  refuses(w, "matmul: w: zero: expected shape [4, 2], got [3, 2]");
  w = good;
  w.tile_rows = 0;
  refuses(w, "matmul: w: tiles must not be empty");
  w = good;
  w.codes = mote::view<const mote::int4_pair, 2>(pairs.data(), 4, 3);
  refuses(w, "matmul: w: tiles of int4 must have an even number of columns");
  w = good;
  w.codes = mote::view<const mote::f8_e4m3, 2>(reinterpret_cast<const mote::f8_e4m3*>(codes.data()), 4, 6);
  refuses(w, "matmul: w: fp8 has no zero points");
}
