#include <mote/blocks/mla.hpp>

#include <thread>

#include "blocks/support.hpp"
#include "support/backends.hpp"

namespace {

struct mla_case {
  test::layer_sizes s;
  test::random_weights weights{21};
  mote::mla_weights w;
  mote::mla_config config;
  mote::rope_frequencies rope;
  std::vector<float> x;

  explicit mla_case(std::size_t tokens = 11, std::size_t q_lora_rank = 20) {
    s.q_lora_rank = q_lora_rank;
    config = test::make_config(s).attention;
    w = test::make_mla(weights, s);
    transposed_ = test::transpose_k_up(w.k_up, s);
    w.k_up_transposed = mote::view<const float, 2>(transposed_.data(), s.heads * s.kv_lora_rank, s.nope);
    rope = mote::make_rope_frequencies(s.rope, 10000.0);
    x = weights.random().normal(tokens * s.hidden);
  }

  // Runs the tokens in steps of the given sizes through one cache.
  template <class Backend>
  std::vector<float> run(Backend& be, mote::mla_form form, const std::vector<std::size_t>& steps,
                         std::size_t page_size = 4, const mote::row_format& format = {}) {
    config.form = form;
    const std::size_t tokens_of_all = x.size() / s.hidden;
    mote::kv_cache cache(1, tokens_of_all / page_size + 4, page_size, config.cache_width(), format);
    auto decoy = cache.make_sequence(), sequence = cache.make_sequence();
    cache.resize(decoy, 1);
    std::vector<float> y(x.size());
    std::size_t position = 0;
    for (const std::size_t tokens : steps) {
      std::vector<std::int32_t> positions(tokens);
      for (std::size_t t = 0; t < tokens; ++t) positions[t] = static_cast<std::int32_t>(position + t);
      std::vector<float> cos(tokens * s.rope / 2), sin(cos.size());
      const mote::view<float, 2> cos_view(cos.data(), tokens, s.rope / 2), sin_view(sin.data(), tokens, s.rope / 2);
      mote::rope_table(be, positions, rope.inv_freq, rope.attention_factor, cos_view, sin_view);
      cache.resize(sequence, position + tokens);
      mote::mla(be, config, w, {x.data() + position * s.hidden, tokens, s.hidden}, cos_view, sin_view,
                cache.rows(sequence, 0), position, {y.data() + position * s.hidden, tokens, s.hidden});
      position += tokens;
    }
    return y;
  }

 private:
  std::vector<float> transposed_;
};

}  // namespace

TEST_CASE("mla: the expanded and the absorbed form agree, in one prefill, in chunks and token by token") {
  for (const std::size_t q_lora_rank : {std::size_t{20}, std::size_t{0}}) {
    mla_case c(11, q_lora_rank);
    mote::reference ref;
    mote::simd<> cpu{mote::threads{2}};
    const auto want = c.run(ref, mote::mla_form::expanded, {11});
    const std::vector<std::size_t> ones(11, 1);
    for (const auto form : {mote::mla_form::expanded, mote::mla_form::absorbed, mote::mla_form::cheapest}) {
      for (const auto& steps : {std::vector<std::size_t>{11}, std::vector<std::size_t>{4, 6, 1}, ones}) {
        test::check_close(c.run(ref, form, steps), want, 1e-5f);
        test::check_close(c.run(cpu, form, steps), want, 1e-5f);
      }
    }
  }
}

TEST_CASE("mla: results do not depend on threads or on the page size") {
  mla_case c;
  mote::simd<> one, three{mote::threads{3}};
  for (const auto form : {mote::mla_form::expanded, mote::mla_form::absorbed}) {
    const auto want = c.run(one, form, {7, 1, 3});
    CHECK(c.run(three, form, {7, 1, 3}) == want);
    CHECK(c.run(one, form, {7, 1, 3}, 2) == want);
    CHECK(c.run(one, form, {7, 1, 3}, 16) == want);
  }
}

TEST_CASE("mla: threads of an engine may call it together") {
  mla_case c;
  mote::simd<> alone;
  const auto want = c.run(alone, mote::mla_form::absorbed, {11});

  // Every member makes the same calls; the cache and the output belong to all.
  c.config.form = mote::mla_form::absorbed;
  mote::kv_cache cache(1, 8, 4, c.config.cache_width());
  auto sequence = cache.make_sequence();
  cache.resize(sequence, 11);
  std::vector<std::int32_t> positions(11);
  for (std::size_t t = 0; t < 11; ++t) positions[t] = static_cast<std::int32_t>(t);
  std::vector<float> cos(11 * c.s.rope / 2), sin(cos.size()), y(c.x.size());
  const mote::view<float, 2> cos_view(cos.data(), std::size_t{11}, c.s.rope / 2);
  const mote::view<float, 2> sin_view(sin.data(), std::size_t{11}, c.s.rope / 2);
  mote::team team(3);
  std::vector<std::thread> members;
  for (std::size_t i = 0; i < 3; ++i) {
    members.emplace_back([&, i] {
      mote::simd<mote::default_arch, mote::team_member> be{team, i};
      mote::rope_table(be, positions, c.rope.inv_freq, c.rope.attention_factor, cos_view, sin_view);
      mote::mla(be, c.config, c.w, {c.x.data(), std::size_t{11}, c.s.hidden}, cos_view, sin_view,
                cache.rows(sequence, 0), 0, {y.data(), std::size_t{11}, c.s.hidden});
    });
  }
  for (auto& member : members) member.join();
  CHECK(y == want);
}

TEST_CASE(
    "mla: a token has the same bits computed alone, with others and in any chunks, in every format of the cache") {
  const std::size_t tokens = 37;
  mla_case c(tokens);
  mote::simd<> one, three{mote::threads{3}};
  mote::reference ref;
  const std::vector<std::vector<std::size_t>> cuts = {
      std::vector<std::size_t>(tokens, 1), {2, 16, 2, 2, 3, 12}, {16, 16, 5}, {23, 1, 13}, {1, 36}};
  mote::for_each_format(
      [&]<class T>() {
        constexpr auto format = mote::row_format::of<T>();
        INFO(format.name);
        if (c.config.cache_width() % format.block_size != 0) {
          CHECK_THROWS_WITH(c.run(one, mote::mla_form::absorbed, {tokens}, 4, format), contains("kv_cache: width"));
          return;
        }
        const auto all = c.run(one, mote::mla_form::absorbed, {tokens}, 4, format);
        test::check_close(all, c.run(ref, mote::mla_form::absorbed, {tokens}, 4, format), 1e-5f);
        test::check_close(c.run(one, mote::mla_form::expanded, {23, 14}, 4, format), all, 1e-5f);
        for (const auto& steps : cuts) {
          CHECK(test::same_bits(c.run(one, mote::mla_form::absorbed, steps, 4, format), all));
          CHECK(test::same_bits(c.run(three, mote::mla_form::absorbed, steps, 7, format), all));
        }
      },
      mote::row_elements{});
}

TEST_CASE("mla: the cheapest form is chosen by counting multiply-adds") {
  mote::mla_config v3{.num_attention_heads = 128,
                      .kv_lora_rank = 512,
                      .qk_nope_head_dim = 128,
                      .qk_rope_head_dim = 64,
                      .v_head_dim = 128};
  CHECK(v3.choose(1000) == mote::mla_form::absorbed);
  v3.form = mote::mla_form::cheapest;
  CHECK(v3.choose(1) == mote::mla_form::absorbed);
  CHECK(v3.choose(170) == mote::mla_form::absorbed);  // 256 · 512 / 768 = 170.7
  CHECK(v3.choose(171) == mote::mla_form::expanded);
  v3.form = mote::mla_form::expanded;
  CHECK(v3.choose(1) == mote::mla_form::expanded);
}

TEST_CASE("mla: a cache of the wrong length is refused") {
  mla_case c;
  mote::reference be;
  mote::kv_cache cache(1, 8, 4, c.config.cache_width());
  auto sequence = cache.make_sequence();
  cache.resize(sequence, 3);
  std::vector<float> cos(2 * c.s.rope / 2), y(2 * c.s.hidden);
  const mote::view<const float, 2> table(cos.data(), std::size_t{2}, c.s.rope / 2);
  CHECK_THROWS_WITH(mote::mla(be, c.config, c.w, {c.x.data(), std::size_t{2}, c.s.hidden}, table, table,
                              cache.rows(sequence, 0), 0, {y.data(), std::size_t{2}, c.s.hidden}),
                    contains("cache"));
}
