#include <mote/decode/kv_cache.hpp>

#include <algorithm>

#include "support/catch.hpp"

TEST_CASE("kv_cache: sequences share the pool and give pages back") {
  mote::kv_cache cache(2, 4, 3, 5);
  auto a = cache.make_sequence(), b = cache.make_sequence();
  cache.resize(a, 7);
  cache.resize(b, 3);
  CHECK(a.block_table.size() == 3);
  CHECK(b.block_table.size() == 1);
  CHECK(cache.free_pages() == 0);

  SECTION("a full pool refuses and changes nothing") {
    CHECK_THROWS_AS(cache.resize(b, 4), mote::shape_error);
    CHECK_THROWS_AS(cache.resize(b, ~std::size_t{0}), mote::shape_error);
    CHECK_THROWS_WITH(cache.rows<float>(b, 2), "kv_cache: layer: outside the cache");
    CHECK(b.length == 3);
    CHECK(b.block_table.size() == 1);
    cache.resize(a, 9);  // the last page has room
    CHECK(a.length == 9);
  }
  SECTION("shrinking frees whole pages only") {
    cache.resize(a, 4);
    CHECK(cache.free_pages() == 1);
    cache.resize(b, 6);
    CHECK(b.block_table.size() == 2);
  }
  SECTION("rows of different sequences and layers never overlap") {
    std::vector<float*> rows;
    for (std::size_t layer = 0; layer < 2; ++layer) {
      for (const auto* s : {&a, &b}) {
        const auto r = cache.rows<float>(*s, layer);
        for (std::size_t i = 0; i < s->length; ++i) rows.push_back(r.row(i));
      }
    }
    std::sort(rows.begin(), rows.end());
    for (std::size_t i = 1; i < rows.size(); ++i) CHECK(rows[i] - rows[i - 1] >= 5);
  }
}

TEST_CASE("kv_cache: absurd sizes are refused") {
  CHECK_THROWS_AS(mote::kv_cache(0, 1, 1, 1), mote::shape_error);
  CHECK_THROWS_AS(mote::kv_cache(1, 1, 0, 1), mote::shape_error);
  CHECK_THROWS_AS(mote::kv_cache(std::size_t{1} << 40, std::size_t{1} << 40, 1, 1), mote::shape_error);
}

TEST_CASE("kv_cache: rows of every format lie side by side in as many bytes as they need") {
  mote::for_each_format(
      [&]<class T>() {
        constexpr auto format = mote::row_format::of<T>();
        INFO(format.name);
        const std::size_t width = 2 * std::max<std::size_t>(format.block_size, 32);
        mote::kv_cache cache(3, 4, 2, width, format);
        CHECK(cache.bytes() == 3 * 4 * 2 * width / format.block_size * sizeof(T));
        auto s = cache.make_sequence();
        cache.resize(s, 5);
        const auto rows = cache.rows<T>(s, 1);
        CHECK(columns(rows) == width);
        CHECK(rows.row(1) - rows.row(0) == static_cast<std::ptrdiff_t>(width / format.block_size));
        const auto any = cache.rows(s, 1);
        REQUIRE(std::holds_alternative<mote::paged_rows<T>>(any));
        CHECK(std::get<mote::paged_rows<T>>(any).row(4) == rows.row(4));
        if constexpr (!std::is_same_v<T, float>) CHECK_THROWS_AS(cache.rows<float>(s, 1), mote::shape_error);
      },
      mote::row_elements{});
}

TEST_CASE("kv_cache: a width that is no whole blocks is refused by its format's name") {
  CHECK_THROWS_WITH(mote::kv_cache(1, 1, 1, 33, mote::row_format::of<mote::q8_0>()),
                    "kv_cache: width: expected whole blocks of 32 for q8_0, got 33");
  CHECK_THROWS_WITH(mote::kv_cache(1, 1, 1, 576, mote::row_format::of<mote::q4_k>()), contains("256 for q4_k"));
  CHECK_NOTHROW(mote::kv_cache(1, 1, 1, 33, mote::row_format::of<mote::bf16>()));
}
