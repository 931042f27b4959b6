#include <mote/blocks/decoder_layer.hpp>
#include <mote/blocks/mtp.hpp>

#include "blocks/support.hpp"

namespace {

struct layer_case {
  test::layer_sizes s;
  test::random_weights weights{31};
  mote::decoder_config config = test::make_config(s);
  mote::decoder_layer_weights w;
  mote::mtp_weights mtp;
  std::vector<std::int32_t> next;

  layer_case() {
    w.input_layernorm = weights.vector(s.hidden);
    w.post_attention_layernorm = weights.vector(s.hidden);
    w.attention = test::make_mla(weights, s);
    transposed_ = test::transpose_k_up(w.attention.k_up, s);
    w.attention.k_up_transposed = mote::view<const float, 2>(transposed_.data(), s.heads * s.kv_lora_rank, s.nope);
    for (std::size_t e = 0; e < s.experts; ++e) experts_.push_back(weights.ffn(s.hidden, s.intermediate));
    w.mlp = mote::moe_weights{std::get<mote::view<const float, 2>>(weights.matrix(s.experts, s.hidden)),
                              weights.vector(s.experts, 0.0f), experts_, weights.ffn(s.hidden, s.intermediate)};
    mtp = {weights.matrix(17, s.hidden),
           weights.vector(s.hidden),
           weights.vector(s.hidden),
           weights.matrix(s.hidden, 2 * s.hidden),
           w,
           weights.vector(s.hidden),
           weights.matrix(17, s.hidden)};
    next = {3, 16, 0, 9};
    x_ = weights.random().normal(next.size() * s.hidden);
  }

  // f(step, cache rows, x) on the four tokens, one step.
  template <class Backend, class F>
  std::vector<float> run(Backend& be, F&& f) {
    const std::size_t tokens = next.size();
    mote::kv_cache cache(1, 2, 4, config.attention.cache_width());
    auto sequence = cache.make_sequence();
    cache.resize(sequence, tokens);
    const std::vector<std::int32_t> positions = {0, 1, 2, 3};
    const auto rope = mote::make_rope_frequencies(s.rope, 10000.0);
    std::vector<float> cos(tokens * s.rope / 2), sin(cos.size()), x = x_;
    const mote::view<float, 2> cos_view(cos.data(), tokens, s.rope / 2), sin_view(sin.data(), tokens, s.rope / 2);
    mote::rope_table(be, positions, rope.inv_freq, rope.attention_factor, cos_view, sin_view);
    f(mote::step_context{0, cos_view, sin_view}, cache.rows(sequence, 0),
      mote::view<float, 2>(x.data(), tokens, s.hidden));
    return x;
  }

  template <class Backend>
  std::vector<float> layer(Backend& be) {
    return run(be,
               [&](const auto& step, const auto& rows, auto x) { mote::decoder_layer(be, config, w, step, rows, x); });
  }

  template <class Backend>
  std::vector<float> predict(Backend& be) {
    return run(be, [&](const auto& step, const auto& rows, auto x) {
      std::vector<float> hidden(x.data(), x.data() + x.size());
      mote::mtp(be, config, mtp, next, {hidden.data(), next.size(), s.hidden}, step, rows, x);
    });
  }

 private:
  std::vector<mote::ffn_weights> experts_;
  std::vector<float> transposed_, x_;
};

}  // namespace

TEST_CASE("decoder_layer: back ends agree, threads do not change a bit") {
  layer_case c;
  mote::reference ref;
  mote::simd<> one, three{mote::threads{3}};
  const auto got = c.layer(one);
  test::check_close(got, c.layer(ref), 1e-5f);
  CHECK(c.layer(three) == got);
}

TEST_CASE("mtp: back ends agree, threads do not change a bit") {
  layer_case c;
  mote::reference ref;
  mote::simd<> one, three{mote::threads{3}};
  const auto got = c.predict(one);
  test::check_close(got, c.predict(ref), 1e-5f);
  CHECK(c.predict(three) == got);
}

TEST_CASE("mtp: a token outside the vocabulary is refused") {
  layer_case c;
  c.next[1] = 17;
  mote::simd<> be;
  CHECK_THROWS_WITH(c.predict(be), contains("token id 17"));
}
