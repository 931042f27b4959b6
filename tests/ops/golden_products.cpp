// The matrix products against golden cases (tests/golden/ops): a mixture of experts and int8 arithmetic.
#include <mote/ops/grouped_ffn/grouped_ffn.hpp>
#include <mote/ops/matmul/matmul.hpp>

#include "support/backends.hpp"
#include "support/golden.hpp"
#include "support/kernels.hpp"

TEST_CASE("golden: mixture of experts") {
  const test::golden g("moe");
  const std::size_t experts = g.setting("experts"), top_k = g.setting("top_k");
  const std::size_t tokens = g.extent("x", 0), hidden = g.extent("x", 1), inner = g.extent("w_gate", 1);
  const auto x = g.floats("x"), weights = g.floats("weights"), want = g.floats("y");
  const auto gate = g.floats("w_gate"), up = g.floats("w_up"), down = g.floats("w_down");
  const auto indices = g.integers("indices"), counts = g.integers("expert_counts");
  const mote::view<const std::int32_t, 2> chosen(indices.data(), tokens, top_k);

  std::vector<mote::ffn_weights> all;
  for (std::size_t e = 0; e < experts; ++e) {
    const auto matrix = [&](const std::vector<float>& w, std::size_t out, std::size_t in) {
      return mote::view<const float, 2>(w.data() + e * out * in, out, in);
    };
    all.push_back({matrix(gate, inner, hidden), matrix(up, inner, hidden), matrix(down, hidden, inner)});
  }
  test::for_each_backend([&](auto& be) {
    std::vector<std::int32_t> offsets(experts + 1), slots(tokens * top_k);
    mote::group_by_expert(be, chosen, offsets, slots);
    CHECK(slots == g.integers("sorted_slots"));
    for (std::size_t e = 0; e < experts; ++e) CHECK(offsets[e + 1] - offsets[e] == counts[e]);
    std::vector<float> y(x.size());
    mote::grouped_ffn(be, mote::view<const float, 2>(x.data(), tokens, hidden), chosen,
                      mote::view<const float, 2>(weights.data(), tokens, top_k), all,
                      mote::view<float, 2>(y.data(), tokens, hidden));
    test::check_close(y, want, 2e-5f);
  });
}

TEST_CASE("golden: int8 per channel and per token") {
  const test::golden g("integer");
  const std::size_t tokens = g.extent("x", 0), in = g.extent("x", 1), out = g.extent("w", 0);
  const auto x = g.floats("x"), w = g.floats("w"), x_scale = g.floats("x_scale");
  const auto acc = g.integers("acc");
  std::vector<std::int8_t> codes(out * in), token_codes(in);
  std::vector<float> scale(out);
  mote::quantize_int8(mote::view<const float, 2>(w.data(), out, in), {codes.data(), out, in}, scale);
  CHECK(codes == g.bytes("w_int8"));
  test::check_close(scale, g.floats("w_scale"), 0.0f, 1e-6f);
  const auto x_codes = g.bytes("x_int8");
  for (std::size_t t = 0; t < tokens; ++t) {
    const float s = mote::quantize_int8_row(x.data() + t * in, in, token_codes.data());
    CHECK(s == Approx(x_scale[t]).epsilon(1e-6));
    CHECK(std::equal(token_codes.begin(), token_codes.end(), x_codes.begin() + static_cast<std::ptrdiff_t>(t * in)));
  }
  const mote::weight matrix = mote::int8_matrix{{codes.data(), out, in}, scale};
  test::for_each_backend([&](auto& be) {
    std::vector<float> y(tokens * out);
    mote::matmul(be, mote::view<const float, 2>(x.data(), tokens, in), matrix,
                 mote::view<float, 2>(y.data(), tokens, out));
    test::check_close(y, g.floats("y"), 0.0f, 1e-6f);
    for (std::size_t i = 0; i < y.size(); ++i) {
      CHECK(std::nearbyint(y[i] / (x_scale[i / out] * scale[i % out])) == static_cast<float>(acc[i]));
    }
  });
}
