#include <mote/ops/paged_load/paged_load.hpp>
#include <mote/ops/paged_store/paged_store.hpp>

#include "support/backends.hpp"
#include "support/formats.hpp"
#include "support/random.hpp"

namespace {

// 9 rows of 6 columns in pages of 4 rows, listed out of order.
struct cache {
  std::vector<float> memory = std::vector<float>(5 * 4 * 6, -1.0f);
  std::vector<std::int32_t> table = {3, 0, 4};
  mote::paged_rows<float> rows{mote::view<float, 3>(memory.data(), 5, 4, 6), table, 9};
};

}  // namespace

TEST_CASE("paged_store and paged_load: rows cross pages, other columns and pages stay") {
  test::for_each_backend([&](auto& be) {
    for (const std::size_t n : {std::size_t{0}, std::size_t{1}, std::size_t{4}, std::size_t{5}}) {
      cache c;
      const auto values = test::random_source(3).normal(6 * n);
      test::framed x(6, n, values), y(9, n);
      mote::paged_store(be, x.view(), c.rows, 3, 1);
      for (std::size_t i = 0; i < 9; ++i) {
        const float* row = c.memory.data() + (static_cast<std::size_t>(c.table[i / 4]) * 4 + i % 4) * 6;
        for (std::size_t j = 0; j < 6; ++j) {
          const bool written = i >= 3 && j >= 1 && j < 1 + n;
          CHECK(row[j] == (written ? values[(i - 3) * n + j - 1] : -1.0f));
        }
      }
      for (std::size_t i = 0; i < 4 * 6; ++i) {
        CHECK(c.memory[4 * 6 + i] == -1.0f);
        CHECK(c.memory[2 * 4 * 6 + i] == -1.0f);
      }
      mote::paged_load(be, c.rows, 1, y.view());
      const auto loaded = y.values();
      CHECK(test::same_bits(std::span(loaded).subspan(3 * n), values));
      CHECK(y.intact());
    }
  });
}

TEST_CASE("paged_store and paged_load: rows of other formats hold what these make of the numbers") {
  const auto check = [&]<class T>() {
    constexpr auto format = mote::row_format::of<T>();
    INFO(format.name);
    const std::size_t block = format.block_size, width = 3 * block, rows = 9;
    const auto values = test::random_source(5).normal(rows * width);
    std::vector<T> memory(5 * 4 * 3);
    const std::vector<std::int32_t> table = {3, 0, 4};
    const mote::paged_rows<T> cached{mote::view<T, 3>(memory.data(), 5, 4, 3), table, rows};
    test::for_each_backend([&](auto& be) {
      const std::vector<float> zeros(width);
      for (std::size_t i = 0; i < memory.size(); i += 3) mote::encode_row(zeros.data(), width, memory.data() + i);
      test::framed x(rows, width, values), y(rows - 2, 2 * block);
      // Rows from the third on, without their first element.
      mote::paged_store(be, x.view().slice(0, 2, rows - 2).slice(1, block, 2 * block), cached, 2, block);
      mote::paged_rows<T> seen = cached;
      std::vector<float> all(rows * width);
      mote::paged_load(be, seen, 0, mote::view<float, 2>(all.data(), rows, width));
      for (std::size_t i = 0; i < rows; ++i) {
        std::vector<T> stored(3);
        std::vector<float> want(values.begin() + static_cast<std::ptrdiff_t>(i * width),
                                values.begin() + static_cast<std::ptrdiff_t>((i + 1) * width));
        std::fill_n(want.begin(), i < 2 ? width : block, 0.0f);
        mote::encode_row(want.data(), width, stored.data());
        mote::decode_row(stored.data(), width, want.data());
        CHECK(test::same_bits(std::span(all).subspan(i * width, width), want));
      }
      // The last columns alone.
      seen.length = rows - 2;
      mote::paged_load(be, seen, block, y.view());
      CHECK(y.intact());
      const auto loaded = y.values();
      for (std::size_t i = 0; i < rows - 2; ++i) {
        CHECK(test::same_bits(std::span<const float>(loaded).subspan(i * 2 * block, 2 * block),
                              std::span(all).subspan(i * width + block, 2 * block)));
      }
    });
    if (block > 1) {
      mote::reference be;
      std::vector<float> x(width);
      const mote::view<float, 2> part(x.data(), 1, block - 1), whole(x.data(), 1, block);
      mote::paged_rows<T> one = cached;
      one.length = 1;
      const std::string name(format.name);
      const mote::view<const float, 2> strided(x.data(), {1, block}, {block, 2});
      CHECK_THROWS_WITH(mote::paged_store(be, strided, cached, 0, 0), contains("paged_store: x"));
      CHECK_THROWS_WITH(mote::paged_store(be, part, cached, 0, 0), contains("paged_store: x: expected whole blocks"));
      CHECK_THROWS_WITH(mote::paged_store(be, whole, cached, 0, 1), contains("paged_store: column: expected whole"));
      CHECK_THROWS_WITH(mote::paged_load(be, one, 0, part), contains(name + ", got " + std::to_string(block - 1)));
      CHECK_THROWS_WITH(mote::paged_load(be, one, 1, whole), contains("paged_load: column: expected whole"));
    }
  };
  mote::for_each_format(check, mote::type_list<float, mote::bf16, mote::f16, mote::mxfp8, mote::q8_0, mote::q4_k,
                                               test::int3, test::two_halves>{});
}

TEST_CASE("paged_store and paged_load: threads share many rows") {
  const std::size_t rows = 2000, width = 70;
  std::vector<std::int32_t> table(rows / 8);
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(table.size() - 1 - i);
  const auto x = test::random_source(4).normal(rows * width);
  std::vector<float> memory(rows * width), y(rows * width);
  const mote::paged_rows<float> cached{mote::view<float, 3>(memory.data(), rows / 8, 8, width), table, rows};
  mote::simd<> be{mote::threads{3}};
  mote::paged_store(be, mote::view<const float, 2>(x.data(), rows, width), cached, 0, 0);
  mote::paged_load(be, cached, 0, mote::view<float, 2>(y.data(), rows, width));
  CHECK(test::same_bits(y, x));
}

TEST_CASE("paged_store and paged_load: what does not fit is refused") {
  test::for_each_backend([&](auto& be) {
    cache c;
    std::vector<float> x(9 * 6);
    const mote::view<float, 2> v(x.data(), 9, 6);
    CHECK_THROWS_WITH(mote::paged_store(be, v, c.rows, 1, 0), contains("paged_store: cache: too few rows"));
    CHECK_THROWS_WITH(mote::paged_store(be, v, c.rows, 0, 1), contains("paged_store: cache: too few columns"));
    CHECK_THROWS_WITH(mote::paged_load(be, c.rows, 1, v), contains("paged_load: cache: too few columns"));
    CHECK_THROWS_WITH(mote::paged_load(be, c.rows, 0, mote::view<float, 2>(x.data(), 8, 6)),
                      "paged_load: y: expected shape [9, 6], got [8, 6]");
    c.rows.block_table = std::span(c.table).first(2);
    CHECK_THROWS_WITH(mote::paged_store(be, v, c.rows, 0, 0), contains("paged_store: cache: its block table"));
    CHECK_THROWS_WITH(mote::paged_load(be, c.rows, 0, v), contains("paged_load: cache: its block table"));
  });
}
