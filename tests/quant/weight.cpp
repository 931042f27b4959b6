#include <mote/quant/weight.hpp>

#include "support/backends.hpp"
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
                                 : format == test::weight_format::bf16 ? out * in * 2
                                                                       : out * in + out * 4;
    CHECK(mote::bytes(w.get()) == expected);
    test::check_close(w.values(), values, format == test::weight_format::f32 ? 0.0f : 0.02f);
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
