#include <mote/decode/kv_cache.hpp>

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
        const auto r = cache.rows(*s, layer);
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
