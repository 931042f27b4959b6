#include <mote/ops/mla_decode/mla_decode.hpp>

#include "support/backends.hpp"
#include "support/formats.hpp"
#include "support/random.hpp"

namespace {

// Tokens of several sequences, whose rows lie in pages in no particular order.
struct decode_case {
  std::size_t heads, rank, rope, page_size;
  std::vector<float> q_latent, q_rope, memory;
  std::vector<std::vector<std::int32_t>> tables;
  std::vector<mote::paged_rows<const float>> context;

  decode_case(const std::vector<std::size_t>& lengths, std::size_t h, std::size_t r, std::size_t d,
              std::size_t page = 16)
      : heads(h), rank(r), rope(d), page_size(page) {
    test::random_source random(static_cast<std::uint32_t>(h + 7 * r));
    q_latent = random.normal(lengths.size() * heads * rank);
    q_rope = random.normal(lengths.size() * heads * rope);
    std::size_t pages = 0;
    for (const std::size_t length : lengths) {
      auto& table = tables.emplace_back();
      for (std::size_t i = 0; i * page < length; ++i) table.push_back(static_cast<std::int32_t>(pages++));
    }
    for (auto& table : tables) {
      for (auto& id : table) id = static_cast<std::int32_t>(pages) - 1 - id;
    }
    memory = random.normal(pages * page * (rank + rope));
    for (std::size_t t = 0; t < lengths.size(); ++t) {
      context.push_back({mote::view<const float, 3>(memory.data(), pages, page, rank + rope), tables[t], lengths[t]});
    }
  }

  std::vector<float> define() const {
    std::vector<float> y(q_latent.size());
    for (std::size_t t = 0; t < context.size(); ++t) {
      for (std::size_t h = 0; h < heads; ++h) {
        const std::size_t at = t * heads + h;
        std::vector<double> p(context[t].length), o(rank);
        double total = 0.0;
        for (std::size_t c = 0; c < p.size(); ++c) {
          double s = 0.0;
          for (std::size_t i = 0; i < rank; ++i) s += double{q_latent[at * rank + i]} * context[t].row(c)[i];
          for (std::size_t i = 0; i < rope; ++i) s += double{q_rope[at * rope + i]} * context[t].row(c)[rank + i];
          total += p[c] = std::exp(s * 0.2);
        }
        for (std::size_t c = 0; c < p.size(); ++c) {
          for (std::size_t i = 0; i < rank; ++i) o[i] += p[c] / total * context[t].row(c)[i];
        }
        for (std::size_t i = 0; i < rank; ++i) y[at * rank + i] = static_cast<float>(o[i]);
      }
    }
    return y;
  }

  // Tokens [begin, begin + count), with NaN between the heads' rows.
  template <class Backend>
  std::vector<float> run(Backend& be, std::size_t begin, std::size_t count) const {
    const auto part = [&](const std::vector<float>& x, std::size_t dim) {
      return std::vector<float>(x.begin() + static_cast<std::ptrdiff_t>(begin * heads * dim),
                                x.begin() + static_cast<std::ptrdiff_t>((begin + count) * heads * dim));
    };
    test::framed q(count * heads, rank, part(q_latent, rank)), r(count * heads, rope, part(q_rope, rope), 2);
    test::framed y(count * heads, rank, 5);
    const auto by_token = [&](test::framed& f, std::size_t dim) {
      const std::size_t stride = f.view().stride(0);
      return mote::view<float, 3>(f.view().data(), {count, heads, dim}, {heads * stride, stride, 1});
    };
    mote::mla_decode(be, by_token(q, rank), by_token(r, rope), std::span(context).subspan(begin, count), 0.2f,
                     by_token(y, rank));
    CHECK(y.intact());
    return y.values();
  }
};

}  // namespace

TEST_CASE("mla_decode: equals the definition in double precision") {
  const decode_case cases[] = {
      {{}, 2, 8, 4},        {{1}, 1, 1, 1},          {{5, 1, 17}, 3, 12, 6, 4}, {{64, 65, 63, 129}, 5, 40, 8},
      {{700}, 4, 24, 0, 7}, {{20, 1300}, 17, 33, 8}, {{90}, 40, 16, 8, 1},      {{512, 513, 1024}, 16, 20, 4, 64}};
  for (const auto& c : cases) {
    const auto want = c.define();
    test::for_each_backend([&](auto& be) {
      CAPTURE(c.context.size(), c.heads, c.rank, c.rope, c.page_size);
      test::check_close(c.run(be, 0, c.context.size()), want, 1e-5f);
    });
  }
}

TEST_CASE("mla_decode: large scores do not overflow") {
  decode_case c({800, 30}, 4, 24, 8);
  for (float& q : c.q_latent) q *= 100.0f;
  mote::reference ref;
  const auto want = c.run(ref, 0, 2);
  test::for_each_simd([&](auto& be) { test::check_close(c.run(be, 0, 2), want, 1e-3f); });
}

TEST_CASE("mla_decode: a token's bits do not depend on threads nor on other tokens") {
  const decode_case c({3, 1200, 70, 600, 513, 2000, 64}, 20, 40, 8);
  mote::simd<> one, three{mote::threads{3}};
  const auto all = c.run(one, 0, 7);
  CHECK(test::same_bits(c.run(three, 0, 7), all));
  const std::size_t token = c.heads * c.rank;
  for (std::size_t t = 0; t < 7; ++t) {
    CHECK(test::same_bits(c.run(one, t, 1), std::span(all).subspan(t * token, token)));
  }
  std::vector<float> y(all.size());
  test::run_team([&](auto& be) {
    mote::mla_decode(be, mote::view<const float, 3>(c.q_latent.data(), 7, c.heads, c.rank),
                     mote::view<const float, 3>(c.q_rope.data(), 7, c.heads, c.rope), c.context, 0.2f,
                     mote::view<float, 3>(y.data(), 7, c.heads, c.rank));
  });
  CHECK(test::same_bits(y, all));
}

namespace {

// The last `tokens` tokens of one sequence of `length` rows of T, in pages in no particular order.
template <class T>
struct sequence_case {
  std::size_t tokens, heads, rank, rope;
  std::vector<T> memory;
  std::vector<std::int32_t> table;
  std::vector<float> q_latent, q_rope;
  std::vector<mote::paged_rows<const T>> context;

  sequence_case(std::size_t n, std::size_t length, std::size_t h, std::size_t r, std::size_t d)
      : tokens(n), heads(h), rank(r), rope(d) {
    test::random_source random(static_cast<std::uint32_t>(length));
    const std::size_t block = mote::row_format::of<T>().block_size, page = 16, pages = (length + page - 1) / page;
    const std::size_t width = (rank + rope) / block;
    const auto values = random.normal(pages * page * (rank + rope));
    memory.resize(pages * page * width);
    mote::encode_row(values.data(), values.size(), memory.data());
    for (std::size_t i = 0; i < pages; ++i) table.push_back(static_cast<std::int32_t>(pages - 1 - i));
    q_latent = random.normal(tokens * heads * rank);
    q_rope = random.normal(tokens * heads * rope);
    for (std::size_t t = 0; t < tokens; ++t) {
      context.push_back({mote::view<const T, 3>(memory.data(), pages, page, width), table, length - tokens + t + 1});
    }
  }

  template <class Backend>
  void run(Backend& be, std::size_t first, std::size_t count, std::vector<float>& y) const {
    mote::mla_decode(be, mote::view<const float, 3>(q_latent.data() + first * heads * rank, count, heads, rank),
                     mote::view<const float, 3>(q_rope.data() + first * heads * rope, count, heads, rope),
                     std::span(context).subspan(first, count), 0.2f,
                     mote::view<float, 3>(y.data() + first * heads * rank, count, heads, rank));
  }
  template <class Backend>
  std::vector<float> run(Backend& be, std::size_t step) const {
    std::vector<float> y(q_latent.size());
    for (std::size_t t = 0; t < tokens; t += step) run(be, t, std::min(step, tokens - t), y);
    return y;
  }
};

}  // namespace

TEST_CASE("mla_decode: a sequence's tokens have the same bits however they are cut, in every format of the cache",
          "[long]") {
  const auto check = [&]<class T>() {
    INFO(mote::row_format::of<T>().name);
    // Around parts of 512 rows and with heads that fill vectors or do not.
    const sequence_case<T> cases[] = {
        {37, 37, 3, 24, 8}, {21, 530, 5, 30, 2}, {5, 1100, 20, 64, 32}, {19, 1025, 16, 41, 23}};
    for (const auto& c : cases) {
      CAPTURE(c.tokens, c.heads, c.rank, c.rope);
      mote::reference ref;
      const auto want = c.run(ref, c.tokens);
      test::for_each_simd([&](auto& be) {
        const auto whole = c.run(be, c.tokens);
        test::check_close(whole, want, 1e-5f);
        for (const std::size_t step : {std::size_t{1}, std::size_t{2}, std::size_t{3}, std::size_t{16}}) {
          CAPTURE(step);
          CHECK(test::same_bits(c.run(be, step), whole));
        }
      });
    }
  };
  mote::for_each_format(check, mote::type_list<float, mote::bf16, mote::mxfp8, test::int3>{});
}

TEST_CASE("mla_decode: what comes later in a sequence is not touched") {
  sequence_case<float> c(9, 70, 3, 20, 5);
  mote::simd<> be;
  const auto clean = c.run(be, 9);
  for (std::size_t i = 0; i < 25; ++i) {
    const_cast<float*>(c.context[0].row(69))[i] = i % 2 == 0 ? std::nanf("") : INFINITY;
  }
  const auto spoilt = c.run(be, 9);
  const std::size_t others = 8 * c.heads * c.rank;
  CHECK(test::same_bits(std::span(spoilt).first(others), std::span(clean).first(others)));
  CHECK(std::isnan(spoilt.back()));
}

namespace {

// Tokens [begin, begin + count) by matrix tiles, in software, in blocks of `Vectors` tiles of queries.
template <std::size_t Vectors, class Case>
std::vector<float> by_tiles(const Case& c, std::size_t begin, std::size_t count) {
  using products = mote::detail::tile_products<mote::detail::software_tiles, mote::default_arch, Vectors>;
  std::vector<mote::detail::row_bytes> rows;
  for (std::size_t t = begin; t < begin + count; ++t) rows.push_back(mote::detail::as_bytes(c.context[t]));
  std::vector<float> y(count * c.heads * c.rank);
  mote::simd<mote::default_arch, mote::serial> be;
  mote::detail::mla_decode_blocks<products>(
      be, mote::view<const float, 3>(c.q_latent.data() + begin * c.heads * c.rank, count, c.heads, c.rank),
      mote::view<const float, 3>(c.q_rope.data() + begin * c.heads * c.rope, count, c.heads, c.rope),
      std::span<const mote::detail::row_bytes>(rows), count * c.heads,
      mote::detail::decoder_of<mote::default_arch, float>(), 0.2f,
      mote::view<float, 3>(y.data(), count, c.heads, c.rank));
  return y;
}

}  // namespace

TEST_CASE("mla_decode: matrix tiles equal the definition, and a token's bits do not depend on other tokens") {
  const decode_case cases[] = {{{1}, 1, 1, 1},
                               {{5, 1, 17}, 3, 12, 6, 4},
                               {{64, 65, 63}, 5, 70, 8},
                               {{90}, 40, 16, 0, 1},
                               {{20, 530}, 17, 33, 8}};
  for (const auto& c : cases) {
    CAPTURE(c.context.size(), c.heads, c.rank, c.rope);
    const auto all = by_tiles<2>(c, 0, c.context.size());
    test::check_close(all, c.define(), 1e-5f);
    const std::size_t token = c.heads * c.rank;
    for (std::size_t t = 0; t < c.context.size(); ++t) {
      CHECK(test::same_bits(by_tiles<1>(c, t, 1), std::span(all).subspan(t * token, token)));
    }
  }
}

TEST_CASE("mla_decode: matrix tiles do not touch what comes later in a sequence") {
  sequence_case<float> c(9, 70, 3, 20, 5);
  const auto clean = by_tiles<2>(c, 0, 9);
  mote::reference ref;
  test::check_close(clean, c.run(ref, 9), 1e-5f);
  for (std::size_t t = 0; t < 9; ++t) {
    CHECK(test::same_bits(by_tiles<1>(c, t, 1), std::span(clean).subspan(t * 60, 60)));
  }
  float* const last = const_cast<float*>(c.context[0].row(69));
  last[3] = std::nanf("");
  last[17] = -INFINITY;
  const auto spoilt = by_tiles<2>(c, 0, 9);
  CHECK(test::same_bits(std::span(spoilt).first(8 * 60), std::span(clean).first(8 * 60)));
  CHECK(std::isnan(spoilt.back()));
  // An infinite query is the affair of its token and head.
  c.q_latent[60] = INFINITY;
  const auto infinite = by_tiles<2>(c, 0, 9);
  CHECK(std::isnan(infinite[60]));
  CHECK(test::same_bits(std::span(infinite).first(60), std::span(clean).first(60)));
  CHECK(test::same_bits(std::span(infinite).subspan(80, 400), std::span(clean).subspan(80, 400)));
}

TEST_CASE("mla_decode: matrix tiles leave the lower parts of bf16 rows out, which changes no bit") {
  sequence_case<float> c(9, 70, 3, 150, 40);
  for (float& x : c.memory) x = static_cast<float>(mote::bf16(x));
  const auto rounded = by_tiles<2>(c, 0, 9);
  mote::reference ref;
  test::check_close(rounded, c.run(ref, 9), 1e-5f);
  // A number in the first, a later or the last chunk of the last token's row, which the others do not see.
  float* const last = const_cast<float*>(c.context[0].row(69));
  for (const std::size_t i : {0u, 2u, 100u, 149u, 189u}) {
    CAPTURE(i);
    const float before = last[i];
    last[i] *= 1.001f;
    const auto mixed = by_tiles<2>(c, 0, 9);
    test::check_close(mixed, c.run(ref, 9), 1e-5f);
    CHECK(test::same_bits(std::span(mixed).first(8 * 450), std::span(rounded).first(8 * 450)));
    CHECK_FALSE(test::same_bits(std::span(mixed).last(450), std::span(rounded).last(450)));
    for (std::size_t t = 0; t < 9; ++t) {
      CHECK(test::same_bits(by_tiles<1>(c, t, 1), std::span(mixed).subspan(t * 450, 450)));
    }
    last[i] = before;
  }
}

TEST_CASE("mla_decode: rounds of many tokens with long contexts") {
  const decode_case c(std::vector<std::size_t>(9, 4000), 64, 32, 8);
  mote::simd<> three{mote::threads{3}};
  mote::simd<xsimd::default_arch, mote::serial> serial;
  const auto all = c.run(three, 0, 9);
  CHECK(test::same_bits(c.run(serial, 4, 1), std::span(all).subspan(4 * 64 * 32, 64 * 32)));
}

TEST_CASE("mla_decode: wrong shapes and contexts name the argument") {
  std::vector<float> x(4096);
  const std::vector<std::int32_t> table = {0, 1};
  test::for_each_backend([&](auto& be) {
    const auto view3 = [&](std::size_t a, std::size_t b, std::size_t c) {
      return mote::view<float, 3>(x.data(), a, b, c);
    };
    const auto q = view3(1, 2, 8), r = view3(1, 2, 4);
    const auto run = [&](mote::paged_rows<const float> rows) {
      mote::mla_decode(be, q, r, std::span(&rows, 1), 1.0f, q);
    };
    const mote::view<const float, 3> pages(x.data(), 2, 4, 12);
    CHECK_THROWS_WITH(mote::mla_decode(be, q, view3(1, 3, 4), {}, 1.0f, q), contains("mla_decode: q_rope"));
    CHECK_THROWS_WITH(mote::mla_decode(be, q, r, {}, 1.0f, view3(1, 2, 7)), contains("mla_decode: y"));
    CHECK_THROWS_WITH(mote::mla_decode(be, q, r, {}, 1.0f, q), contains("mla_decode: context: expected one entry"));
    CHECK_THROWS_WITH(run({mote::view<const float, 3>(x.data(), 2, 4, 11), table, 8}), contains("context: width"));
    CHECK_THROWS_WITH(run({pages, table, 0}), contains("context: must not be empty"));
    CHECK_THROWS_WITH(run({pages, table, 9}), contains("context: its block table"));
  });
}
