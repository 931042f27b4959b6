#include <mote/ops/batched_matmul/batched_matmul.hpp>
#include <mote/ops/matmul/matmul.hpp>

#include "support/backends.hpp"
#include "support/matrices.hpp"
#include "support/random.hpp"

TEST_CASE("batched_matmul: each entry has the bits of its own matmul, heads strided within tokens") {
  test::random_source random(1);
  struct shape {
    std::size_t entries, tokens, out, in;
  };
  for (const auto& s : std::vector<shape>{
           {1, 1, 1, 1}, {3, 0, 4, 5}, {3, 2, 0, 5}, {2, 3, 4, 0}, {4, 1, 33, 67}, {3, 7, 35, 130}, {2, 27, 64, 16}}) {
    const std::size_t entries = s.entries, tokens = s.tokens, out = s.out, in = s.in;
    for (const auto format : test::weight_formats) {
      CAPTURE(entries, tokens, out, in, test::name(format));
      const auto values = random.normal(entries * tokens * in);
      const test::strided_weight w(format, entries * out, in, random.normal(entries * out * in));
      const auto check = [&](auto& be) {
        // Stored [tokens, batch, features], seen as [batch, tokens, features].
        test::framed x(tokens, entries * in, values), y(tokens, entries * out, 5), want(tokens, entries * out, 2);
        const auto by_entry = [&](test::framed& m, std::size_t n) {
          const auto rows = m.view();
          return mote::view<float, 3>(rows.data(), {entries, tokens, n}, {n, rows.stride(0), 1});
        };
        mote::batched_matmul(be, by_entry(x, in), w.get(), by_entry(y, out));
        for (std::size_t b = 0; b < entries; ++b) {
          mote::matmul(be, by_entry(x, in)[b], mote::slice_rows(w.get(), b * out, out), by_entry(want, out)[b]);
        }
        CHECK(test::same_bits(y.values(), want.values()));
        CHECK(y.intact());
      };
      test::for_each_backend(check);
    }
  }
}

TEST_CASE("batched_matmul: bits do not depend on threads") {
  test::random_source random(2);
  const std::size_t entries = 5, tokens = 3, out = 70, in = 1100;
  const auto x = random.normal(entries * tokens * in);
  for (const auto format : test::weight_formats) {
    const test::strided_weight w(format, entries * out, in, random.normal(entries * out * in));
    std::vector<float> one(entries * tokens * out), other(one.size());
    const auto run = [&](auto& be, std::vector<float>& y) {
      mote::batched_matmul(be, mote::view<const float, 3>(x.data(), entries, tokens, in), w.get(),
                           mote::view<float, 3>(y.data(), entries, tokens, out));
    };
    mote::simd<> single, three{mote::threads{3}};
    run(single, one);
    run(three, other);
    CHECK(test::same_bits(other, one));
    other.assign(other.size(), 0.0f);
    test::run_team([&](auto& be) { run(be, other); });
    CHECK(test::same_bits(other, one));
  }
}

TEST_CASE("batched_matmul: wrong shapes name the argument") {
  std::vector<float> x(24), y(24);
  const test::strided_weight w(test::weight_format::f32, 6, 4, std::vector<float>(24));
  test::for_each_backend([&](auto& be) {
    const auto in = [&](std::size_t b, std::size_t t, std::size_t n) {
      return mote::view<const float, 3>(x.data(), b, t, n);
    };
    const auto to = [&](std::size_t b, std::size_t t, std::size_t n) {
      return mote::view<float, 3>(y.data(), b, t, n);
    };
    CHECK_THROWS_WITH(mote::batched_matmul(be, in(2, 3, 3), w.get(), to(2, 3, 3)),
                      "batched_matmul: x: expected shape [2, 3, 4], got [2, 3, 3]");
    CHECK_THROWS_WITH(mote::batched_matmul(be, in(2, 3, 4), w.get(), to(2, 3, 2)),
                      "batched_matmul: y: expected shape [2, 3, 3], got [2, 3, 2]");
    CHECK_THROWS_AS(mote::batched_matmul(be, in(4, 1, 4), w.get(), to(4, 1, 1)), mote::shape_error);
    CHECK_THROWS_AS(mote::batched_matmul(be, in(0, 1, 4), w.get(), to(0, 1, 1)), mote::shape_error);
  });
}

TEST_CASE("batched_matmul: packed weights that no entry can be cut from are refused, on any number of threads") {
  using packed = mote::packed_matrix<mote::bf16>;
  std::vector<float> x(4 * 16), y(4 * 16);
  std::vector<mote::bf16> values(64 * 16);
  std::vector<std::uint8_t> bytes(packed::size(64, 16));
  mote::simd<> be{mote::threads{3}};
  const mote::weight w = mote::pack(be, mote::view<const mote::bf16, 2>(values.data(), 64, 16),
                                    mote::view<std::uint8_t, 1>(bytes.data(), bytes.size()));
  const auto run = [&](std::size_t batch) {
    mote::batched_matmul(be, mote::view<const float, 3>(x.data(), batch, 1, 16), w,
                         mote::view<float, 3>(y.data(), batch, 1, 64 / batch));
  };
  CHECK_THROWS_WITH(run(4), contains("batched_matmul: w: is packed, expected a multiple of 32 rows"));
  CHECK_NOTHROW(run(1));
  CHECK_NOTHROW(run(2));
}
