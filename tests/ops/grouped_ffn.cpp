#include <mote/core/executors/team.hpp>
#include <mote/ops/grouped_ffn/grouped_ffn.hpp>

#include <algorithm>
#include <memory>
#include <thread>

#include "support/backends.hpp"
#include "support/matrices.hpp"
#include "support/random.hpp"

namespace {

using test::strided_weight, test::weight_format;

struct moe_shape {
  std::size_t tokens, experts, top_k, hidden, intermediate;
};

// Tokens routed at random to experts whose formats follow `formats` in turn.
class routed_case {
 public:
  routed_case(const moe_shape& s, const std::vector<weight_format>& formats, std::uint32_t seed)
      : shape(s), random_(seed) {
    for (std::size_t e = 0; e < s.experts; ++e) {
      const auto format = formats[e % formats.size()];
      experts.push_back({matrix(format, s.intermediate, s.hidden), matrix(format, s.intermediate, s.hidden),
                         matrix(format, s.hidden, s.intermediate)});
    }
    x = random_.normal(s.tokens * s.hidden);
    weights = random_.normal(s.tokens * s.top_k, 0.3f);
    for (std::size_t i = 0; i < s.tokens * s.top_k; ++i) {
      // Most tokens go to the first experts.
      indices.push_back(static_cast<std::int32_t>(random_.below(1 + random_.below(s.experts))));
    }
  }

  std::vector<float> normal(std::size_t n) { return random_.normal(n); }

  // Tokens [begin, begin + count).
  void run(auto& be, std::size_t begin, std::size_t count, mote::view<float, 2> y,
           mote::output mode = mote::output::overwrite) const {
    const std::size_t k = shape.top_k, h = shape.hidden;
    mote::grouped_ffn(be, mote::view<const float, 2>(x.data() + begin * h, count, h),
                      mote::view<const std::int32_t, 2>(indices.data() + begin * k, count, k),
                      mote::view<const float, 2>(weights.data() + begin * k, count, k), experts, y, mode);
  }
  std::vector<float> run(auto& be, std::size_t begin, std::size_t count) const {
    std::vector<float> y(count * shape.hidden);
    run(be, begin, count, {y.data(), count, shape.hidden});
    return y;
  }

  moe_shape shape;
  std::vector<mote::ffn_weights> experts;
  std::vector<float> x, weights;
  std::vector<std::int32_t> indices;

 private:
  mote::weight matrix(weight_format format, std::size_t out, std::size_t in) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(in + 1));
    owned_.push_back(std::make_unique<strided_weight>(format, out, in, random_.normal(out * in, scale)));
    return owned_.back()->get();
  }

  test::random_source random_;
  std::vector<std::unique_ptr<strided_weight>> owned_;
};

const std::vector<moe_shape> moe_shapes = {
    {0, 3, 2, 5, 4},    {1, 1, 1, 1, 1},    {3, 4, 0, 5, 6},     {2, 3, 2, 7, 0},    {1, 6, 3, 67, 35},
    {11, 5, 2, 24, 16}, {40, 4, 2, 33, 70}, {30, 2, 1, 65, 129}, {9, 16, 6, 48, 31}, {60, 3, 3, 130, 1100}};

const std::vector<std::vector<weight_format>> mixtures = {
    {weight_format::f32},
    {weight_format::bf16},
    {weight_format::int8},
    {weight_format::fp8, weight_format::f16},
    {weight_format::f32, weight_format::int8, weight_format::bf16}};

}  // namespace

TEST_CASE("grouped_ffn: the vector back end agrees with the reference, set and added") {
  for (const auto& shape : moe_shapes) {
    for (const auto& formats : mixtures) {
      CAPTURE(shape.tokens, shape.experts, shape.top_k, shape.hidden, shape.intermediate, test::name(formats.front()),
              formats.size());
      routed_case c(shape, formats, 1);
      mote::reference reference;
      const auto want = c.run(reference, 0, shape.tokens);
      const auto before = c.normal(want.size());
      auto sum = want;
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += before[i];
      // An intermediate value on the edge between two int8 codes may take either.
      const bool codes = std::count(formats.begin(), formats.end(), weight_format::int8) > 0;
      const float tolerance = codes ? 0.02f : 2e-5f;
      test::for_each_simd([&](auto& be) {
        test::framed y(shape.tokens, shape.hidden), added(shape.tokens, shape.hidden, before, 4);
        c.run(be, 0, shape.tokens, y.view());
        test::check_close(y.values(), want, tolerance);
        c.run(be, 0, shape.tokens, added.view(), mote::output::accumulate);
        test::check_close(added.values(), sum, tolerance);
        CHECK((y.intact() && added.intact()));
      });
    }
  }
}

TEST_CASE("grouped_ffn: a token's bits do not depend on the batch nor on threads", "[long]") {
  for (const auto& formats : mixtures) {
    for (const auto& shape : {moe_shape{60, 3, 2, 130, 1100}, moe_shape{33, 16, 6, 48, 31}}) {
      CAPTURE(shape.hidden, test::name(formats.front()), formats.size());
      const routed_case c(shape, formats, 2);
      test::for_each_simd([&](auto& be) {
        const auto all = c.run(be, 0, shape.tokens);
        for (const std::size_t count : {1u, 2u, 7u, 25u}) {
          for (std::size_t t = 0; t + count <= shape.tokens; t += 8) {
            const auto part = std::span(all).subspan(t * shape.hidden, count * shape.hidden);
            CHECK(test::same_bits(c.run(be, t, count), part));
          }
        }
      });
      mote::simd<> one, three{mote::threads{3}};
      const auto all = c.run(one, 0, shape.tokens);
      CHECK(test::same_bits(c.run(three, 0, shape.tokens), all));
      std::vector<float> shared(all.size());
      test::run_team([&](auto& be) {
        c.run(be, 0, shape.tokens, mote::view<float, 2>(shared.data(), shape.tokens, shape.hidden));
      });
      CHECK(test::same_bits(shared, all));
    }
  }
}

TEST_CASE("grouped_ffn: the scratch memory stops growing after the first call") {
  const routed_case c({20, 4, 2, 64, 48}, mixtures.back(), 3);
  mote::simd<> be;
  c.run(be, 0, 20);
  c.run(be, 0, 20);
  const std::size_t held = be.arena().capacity();
  c.run(be, 0, 20);
  c.run(be, 3, 1);
  CHECK(be.arena().capacity() == held);
}

TEST_CASE("grouped_ffn: wrong shapes and experts name the argument") {
  routed_case c({3, 2, 2, 8, 4}, {weight_format::f32}, 4);
  std::vector<float> y(24);
  const mote::view<const float, 2> x(c.x.data(), 3, 8), weights(c.weights.data(), 3, 2);
  const mote::view<const std::int32_t, 2> indices(c.indices.data(), 3, 2);
  const mote::view<float, 2> to(y.data(), 3, 8);
  test::for_each_backend([&](auto& be) {
    CHECK_THROWS_WITH(mote::grouped_ffn(be, x, indices, weights.slice(1, 0, 1), c.experts, to),
                      "grouped_ffn: weights: expected shape [3, 2], got [3, 1]");
    CHECK_THROWS_WITH(mote::grouped_ffn(be, x, indices.slice(0, 0, 2), weights, c.experts, to),
                      "grouped_ffn: indices: expected shape [3, 2], got [2, 2]");
    CHECK_THROWS_WITH(mote::grouped_ffn(be, x, indices, weights, c.experts, to.slice(1, 0, 7)),
                      "grouped_ffn: y: expected shape [3, 8], got [3, 7]");
    CHECK_THROWS_WITH(mote::grouped_ffn(be, x, indices, weights, {}, to), "grouped_ffn: experts: must not be empty");
    auto swapped = c.experts;
    std::swap(swapped[1].up, swapped[1].down);
    CHECK_THROWS_WITH(mote::grouped_ffn(be, x, indices, weights, swapped, to),
                      "grouped_ffn: up: expected shape [4, 8], got [8, 4]");
    const auto kept = c.indices[5];
    c.indices[5] = 2;
    CHECK_THROWS_AS(mote::grouped_ffn(be, x, indices, weights, c.experts, to), mote::shape_error);
    c.indices[5] = kept;
  });
}

TEST_CASE("grouped_ffn: the members of a team ask for each group of experts once") {
  struct counting : mote::expert_residency {
    std::size_t calls = 0;
    std::size_t require(mote::view<const std::int32_t, 1>, std::size_t first) override {
      ++calls;
      return first + 1;
    }
  };
  const routed_case c({7, 5, 2, 33, 20}, {weight_format::f32}, 9);
  const std::size_t k = c.shape.top_k, h = c.shape.hidden, tokens = c.shape.tokens;
  mote::simd<> alone;
  const auto want = c.run(alone, 0, tokens);
  std::vector<float> y(want.size());
  counting residency;
  mote::team team(3);
  std::vector<std::thread> members;
  for (std::size_t i = 0; i < team.size(); ++i) {
    members.emplace_back([&, i] {
      mote::simd<mote::default_arch, mote::team_member> be{mote::team_member{team, i}};
      mote::grouped_ffn(be, mote::view<const float, 2>(c.x.data(), tokens, h),
                        mote::view<const std::int32_t, 2>(c.indices.data(), tokens, k),
                        mote::view<const float, 2>(c.weights.data(), tokens, k), c.experts,
                        mote::view<float, 2>(y.data(), tokens, h), mote::output::overwrite, &residency);
    });
  }
  for (std::thread& member : members) member.join();
  CHECK(residency.calls == c.shape.experts);
  CHECK(test::same_bits(y, want));
}
