#include <mote/ops/embedding/embedding.hpp>

#include "support/backends.hpp"
#include "support/matrices.hpp"
#include "support/random.hpp"

TEST_CASE("embedding: copies and converts rows in every weight format") {
  const std::vector<std::int32_t> ids = {4, 0, 4, 6};
  test::random_source random(7);
  for (const auto f : test::weight_formats) {
    for (const std::size_t n : test::awkward_sizes) {
      const test::strided_weight weights(f, 7, n, random.normal(7 * n));
      const mote::weight& table = weights.get();
      std::vector<float> want(ids.size() * n);
      for (std::size_t t = 0; t < ids.size(); ++t) {
        mote::dequantize_row(table, static_cast<std::size_t>(ids[t]), want.data() + t * n);
      }
      test::for_each_backend([&](auto& be) {
        CAPTURE(n, test::name(f));
        test::framed y(ids.size(), n);
        mote::embedding(be, ids, table, y.view());
        CHECK(test::same_bits(y.values(), want));
        CHECK(y.intact());
        test::framed none(0, n);
        mote::embedding(be, {}, table, none.view());
      });
    }
  }
}

TEST_CASE("embedding: ids outside the table and wrong shapes are refused") {
  test::random_weights weights(7);
  const mote::weight table = weights.matrix(7, 4);
  test::for_each_backend([&](auto& be) {
    std::vector<float> y(8);
    const mote::view<float, 2> v(y.data(), 2, 4);
    CHECK_THROWS_WITH(mote::embedding(be, std::vector<std::int32_t>{1, 7}, table, v),
                      "embedding: ids: token id 7 is outside [0, 7)");
    CHECK_THROWS_WITH(mote::embedding(be, std::vector<std::int32_t>{-1, 0}, table, v),
                      "embedding: ids: token id -1 is outside [0, 7)");
    CHECK_THROWS_WITH(mote::embedding(be, std::vector<std::int32_t>{1}, table, v),
                      "embedding: y: expected shape [1, 4], got [2, 4]");
  });
}
