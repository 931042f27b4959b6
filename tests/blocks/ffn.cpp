#include <mote/blocks/ffn.hpp>

#include "blocks/support.hpp"

TEST_CASE("ffn: back ends agree for awkward sizes") {
  for (const std::size_t tokens : {0u, 1u, 5u}) {
    for (const std::size_t hidden : {1u, 33u}) {
      for (const std::size_t intermediate : {1u, 19u, 64u}) {
        test::random_weights r(3);
        const auto w = r.ffn(hidden, intermediate);
        const auto x = r.random().normal(tokens * hidden);
        std::vector<float> want(x.size()), got(x.size());
        mote::reference ref;
        mote::simd<> cpu{mote::threads{2}};
        mote::ffn(ref, {x.data(), tokens, hidden}, w, {want.data(), tokens, hidden});
        mote::ffn(cpu, {x.data(), tokens, hidden}, w, {got.data(), tokens, hidden});
        test::check_close(got, want, 1e-5f);
      }
    }
  }
}

TEST_CASE("ffn: projections that do not fit are refused") {
  test::random_weights r(4);
  auto w = r.ffn(8, 16);
  w.up = r.matrix(12, 8);
  std::vector<float> x(8), y(8);
  mote::simd<> be;
  CHECK_THROWS_AS(
      mote::ffn(be, {x.data(), std::size_t{1}, std::size_t{8}}, w, {y.data(), std::size_t{1}, std::size_t{8}}),
      mote::shape_error);
}
