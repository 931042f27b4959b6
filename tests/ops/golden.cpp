// The ops against results of published model code and of float64 references (tests/golden/ops).
#include <mote/ops/mla_decode/mla_decode.hpp>
#include <mote/ops/mla_prefill/mla_prefill.hpp>
#include <mote/ops/rms_norm/rms_norm.hpp>
#include <mote/ops/rope/rope.hpp>
#include <mote/ops/route/route.hpp>
#include <mote/ops/swiglu/swiglu.hpp>

#include "support/backends.hpp"
#include "support/golden.hpp"

namespace {

// x [rows, k] times w [n, k] transposed.
std::vector<float> linear(const std::vector<float>& x, const std::vector<float>& w, std::size_t k) {
  const std::size_t rows = x.size() / k, n = w.size() / k;
  std::vector<float> y(rows * n);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t i = 0; i < n; ++i) {
      double sum = 0.0;
      for (std::size_t j = 0; j < k; ++j) sum += double{x[r * k + j]} * w[i * k + j];
      y[r * n + i] = static_cast<float>(sum);
    }
  }
  return y;
}

mote::view<const float, 2> matrix(const std::vector<float>& x, std::size_t columns) {
  return {x.data(), x.size() / columns, columns};
}
mote::view<float, 2> matrix(std::vector<float>& x, std::size_t columns) {
  return {x.data(), x.size() / columns, columns};
}

}  // namespace

TEST_CASE("golden: rms_norm and swiglu") {
  const test::golden g("layers");
  const std::size_t hidden = g.extent("x", 1), inner = g.extent("w_gate", 0);
  const auto x = g.floats("x"), weight = g.floats("norm_weight");
  const auto gate = linear(x, g.floats("w_gate"), hidden), up = linear(x, g.floats("w_up"), hidden);
  test::for_each_backend([&](auto& be) {
    std::vector<float> y(x.size()), z(gate.size());
    mote::rms_norm(be, matrix(x, hidden), mote::view<const float, 1>(weight), 1e-6f, matrix(y, hidden));
    test::check_close(y, g.floats("rmsnorm_1e6"), 2e-5f);
    mote::rms_norm(be, matrix(x, hidden), mote::view<const float, 1>(weight), 1e-2f, matrix(y, hidden));
    test::check_close(y, g.floats("rmsnorm_1e2"), 2e-5f);
    mote::rms_norm(be, matrix(x, hidden), mote::view<const float, 1>(), 1e-6f, matrix(y, hidden));
    test::check_close(y, g.floats("rmsnorm_unweighted"), 2e-5f);
    mote::swiglu(be, matrix(gate, inner), matrix(up, inner), matrix(z, inner));
    test::check_close(linear(z, g.floats("w_down"), inner), g.floats("swiglu"), 2e-5f);
  });
}

TEST_CASE("golden: YaRN frequencies, attention factors and softmax multipliers") {
  const test::golden g("rope");
  for (const std::string name : {"deepseek_v3", "mixed_mscale", "no_mscale", "no_truncate", "v2_lite"}) {
    INFO(name);
    const auto table = g.settings().object("tables").object(name);
    mote::yarn_scaling yarn;
    yarn.factor = table.number("factor");
    yarn.original_max_position_embeddings = table.number("original_max_position_embeddings");
    yarn.beta_fast = table.number("beta_fast");
    yarn.beta_slow = table.number("beta_slow");
    yarn.mscale = table.number_or("mscale", 0.0);
    yarn.mscale_all_dim = table.number_or("mscale_all_dim", 0.0);
    yarn.truncate = table.boolean_or("truncate", true);
    const auto f = mote::make_rope_frequencies(table.integer("dim", 2, 1024), table.number("rope_theta"), yarn);
    test::check_close(f.inv_freq, g.floats(name + ".inv_freq"), 0.0f, 1e-5f);
    test::check_close({&f.attention_factor, 1}, g.floats(name + ".attention_factor"), 0.0f, 1e-5f);
    test::check_close({&f.softmax_multiplier, 1}, g.floats(name + ".softmax_scale_multiplier"), 0.0f, 1e-5f);
  }
}

TEST_CASE("golden: rope in every pairing") {
  const test::golden g("rope");
  const std::size_t heads = g.extent("x", 0), tokens = g.extent("x", 1), dim = g.extent("x", 2);
  const auto f = mote::make_rope_frequencies(dim, 10000.0);
  test::check_close(f.inv_freq, g.floats("inv_freq"), 0.0f, 1e-5f);
  const auto x = g.floats("x");
  const auto by_token = [&](auto* data) {
    return mote::view<std::remove_pointer_t<decltype(data)>, 3>(data, {tokens, heads, dim}, {dim, tokens * dim, 1});
  };
  test::for_each_backend([&](auto& be) {
    std::vector<float> cos(tokens * dim / 2), sin(cos.size()), y(x.size());
    mote::rope_table(be, g.integers("positions"), f.inv_freq, 1.0f, matrix(cos, dim / 2), matrix(sin, dim / 2));
    test::check_close(cos, g.floats("cos"), 1e-5f);
    test::check_close(sin, g.floats("sin"), 1e-5f);
    const std::pair<mote::rope_pairing, const char*> cases[] = {
        {mote::rope_pairing::interleaved, "interleaved_in_place"},
        {mote::rope_pairing::half_split, "half_split"},
        {mote::rope_pairing::interleaved_to_half_split, "interleaved_to_halves"}};
    for (const auto& [pairing, name] : cases) {
      INFO(name);
      mote::rope(be, by_token(x.data()), matrix(cos, dim / 2), matrix(sin, dim / 2), pairing, by_token(y.data()));
      test::check_close(y, g.floats(name), 1e-5f);
    }
  });
}

TEST_CASE("golden: routers") {
  const test::golden g("routers");
  const std::size_t experts = g.setting("experts"), top_k = g.setting("top_k");
  mote::router_config base;
  base.num_experts_per_tok = top_k;
  base.n_group = g.setting("groups");
  base.topk_group = g.setting("topk_group");
  base.routed_scaling_factor = static_cast<float>(g.settings().number("scaling"));

  mote::router_config greedy = base, limited = base, renormalised = base, noaux = base, one_group = base;
  limited.method = mote::topk_method::group_limited_greedy;
  renormalised.norm_topk_prob = true;
  noaux.scoring = mote::scoring_func::sigmoid;
  noaux.method = mote::topk_method::noaux_tc;
  noaux.norm_topk_prob = true;
  one_group = noaux;
  one_group.n_group = one_group.topk_group = 1;
  const std::pair<std::string, mote::router_config> cases[] = {{"softmax_greedy", greedy},
                                                               {"softmax_group_limited", limited},
                                                               {"softmax_topk_renorm", renormalised},
                                                               {"sigmoid_noaux", noaux},
                                                               {"sigmoid_noaux_one_group", one_group}};
  const auto bias = g.floats("bias");
  for (const auto& [name, config] : cases) {
    const auto logits = g.floats(name + ".logits");
    const std::size_t tokens = logits.size() / experts;
    const bool biased = config.method == mote::topk_method::noaux_tc;
    test::for_each_backend([&, &name = name, &config = config](auto& be) {
      INFO(name);
      std::vector<std::int32_t> indices(tokens * top_k);
      std::vector<float> weights(tokens * top_k);
      mote::route(be, config, matrix(logits, experts),
                  biased ? mote::view<const float, 1>(bias) : mote::view<const float, 1>(),
                  mote::view<std::int32_t, 2>(indices.data(), tokens, top_k), matrix(weights, top_k));
      CHECK(indices == g.integers(name + ".indices"));
      test::check_close(weights, g.floats(name + ".weights"), 1e-6f * std::max(1.0f, config.routed_scaling_factor));
    });
  }
}

TEST_CASE("golden: latent attention, expanded and absorbed") {
  const test::golden g("mla");
  const std::size_t heads = g.setting("heads"), rank = g.setting("kv_lora_rank"), nope = g.setting("qk_nope_head_dim");
  const std::size_t rope = g.setting("qk_rope_head_dim"), dim_v = g.setting("v_head_dim");
  const std::size_t tokens = g.extent("x", 0), hidden = g.extent("x", 1);
  const auto scale = static_cast<float>(g.settings().number("scale"));
  const auto f = mote::make_rope_frequencies(rope, g.settings().number("rope_theta"));
  const auto x = g.floats("x"), kv_b = g.floats("kv_b_proj"), kv_a_norm = g.floats("kv_a_norm");

  // heads' rows [head, token, dim] of the golden file, seen as [token, head, dim]
  const auto by_token = [&](auto* data, std::size_t dim) {
    return mote::view<std::remove_pointer_t<decltype(data)>, 3>(data, {tokens, heads, dim}, {dim, tokens * dim, 1});
  };
  test::for_each_backend([&](auto& be) {
    std::vector<std::int32_t> positions(tokens);
    for (std::size_t t = 0; t < tokens; ++t) positions[t] = static_cast<std::int32_t>(t);
    std::vector<float> cos(tokens * rope / 2), sin(cos.size());
    mote::rope_table(be, positions, f.inv_freq, f.attention_factor, matrix(cos, rope / 2), matrix(sin, rope / 2));

    auto q = linear(x, g.floats("q_proj"), hidden), kv = linear(x, g.floats("kv_a_proj"), hidden);
    const mote::view<float, 3> q_heads(q.data(), tokens, heads, nope + rope),
        kv_rows(kv.data(), tokens, 1, rank + rope);
    const auto q_nope = q_heads.slice(2, 0, nope), q_rope = q_heads.slice(2, nope, rope);
    const auto latent = matrix(kv, rank + rope).slice(1, 0, rank),
               k_rope = matrix(kv, rank + rope).slice(1, rank, rope);
    mote::rope(be, q_rope, matrix(cos, rope / 2), matrix(sin, rope / 2), mote::rope_pairing::interleaved, q_rope);
    mote::rope(be, kv_rows.slice(2, rank, rope), matrix(cos, rope / 2), matrix(sin, rope / 2),
               mote::rope_pairing::interleaved, kv_rows.slice(2, rank, rope));
    mote::rms_norm(be, latent, mote::view<const float, 1>(kv_a_norm), 1e-6f, latent);
    std::vector<float> c(tokens * rank);
    for (std::size_t i = 0; i < c.size(); ++i) c[i] = latent(i / rank, i % rank);
    test::check_close(c, g.floats("latent"), 2e-5f);

    const auto expanded = linear(c, kv_b, rank);
    const mote::view<const float, 3> k_and_v(expanded.data(), tokens, heads, nope + dim_v);
    std::vector<float> naive(tokens * heads * dim_v);
    mote::mla_prefill(be, q_nope, q_rope, k_and_v.slice(2, 0, nope), k_rope, k_and_v.slice(2, nope, dim_v), scale,
                      by_token(naive.data(), dim_v));
    test::check_close(naive, g.floats("heads_naive"), 2e-5f);

    // Pages of three rows, each followed by one that belongs to nobody.
    const std::size_t page_size = 3, pages = (tokens + page_size - 1) / page_size;
    std::vector<float> memory(2 * pages * page_size * (rank + rope), std::nanf(""));
    std::vector<std::int32_t> table(pages);
    for (std::size_t i = 0; i < pages; ++i) table[i] = static_cast<std::int32_t>(2 * (pages - 1 - i));
    std::vector<mote::paged_rows<const float>> context(tokens);
    for (std::size_t t = 0; t < tokens; ++t) {
      context[t] = {mote::view<const float, 3>(memory.data(), 2 * pages, page_size, rank + rope), table, t + 1};
      const std::size_t row = static_cast<std::size_t>(table[t / page_size]) * page_size + t % page_size;
      std::copy_n(kv.data() + t * (rank + rope), rank + rope, memory.data() + row * (rank + rope));
    }
    const auto q_latent = g.floats("q_latent");
    std::vector<float> o_latent(q_latent.size());
    mote::mla_decode(be, by_token(q_latent.data(), rank), q_rope, context, scale, by_token(o_latent.data(), rank));
    test::check_close(o_latent, g.floats("o_latent"), 2e-5f);
  });
}
