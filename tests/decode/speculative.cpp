#include <mote/decode/speculative.hpp>

#include <cmath>
#include <cstdint>
#include <vector>

#include "support/backends.hpp"
#include "support/random.hpp"

namespace {

std::vector<float> distribution(test::random_source& random, std::size_t vocab) {
  auto p = random.normal(vocab);
  float total = 0.0f;
  for (float& v : p) total += v = std::exp(v);
  for (float& v : p) v /= total;
  return p;
}

}  // namespace

TEST_CASE("verify_draft: drafts and what follows them have the target's distribution") {
  test::random_source random(1);
  const std::size_t vocab = 5;
  const auto q = distribution(random, vocab), p = distribution(random, vocab), after = distribution(random, vocab);
  std::vector<float> target(p);
  target.insert(target.end(), after.begin(), after.end());
  // Every draft, weighted by q, and evenly spaced numbers in place of random ones.
  const int steps = 500;
  std::vector<double> first(vocab), second(vocab);
  double accepted = 0.0;
  for (std::size_t token = 0; token < vocab; ++token) {
    const std::int32_t draft[] = {static_cast<std::int32_t>(token)};
    for (int i = 0; i < steps; ++i) {
      for (int j = 0; j < steps; ++j) {
        const float u[] = {(static_cast<float>(i) + 0.5f) / steps}, r = (static_cast<float>(j) + 0.5f) / steps;
        const float residual[] = {r, r};
        const auto v = mote::verify_draft(draft, {q.data(), 1, vocab}, {target.data(), 2, vocab}, u, residual);
        const double weight = static_cast<double>(q[token]) / (steps * steps);
        const auto next = static_cast<std::size_t>(v.next_token);
        first[v.accepted == 1 ? token : next] += weight;
        if (v.accepted == 1) second[next] += weight;
        accepted += weight * static_cast<double>(v.accepted);
      }
    }
  }
  for (std::size_t t = 0; t < vocab; ++t) {
    CHECK(std::abs(first[t] - static_cast<double>(p[t])) < 4.0 / steps);
    CHECK(std::abs(second[t] / accepted - static_cast<double>(after[t])) < 4.0 / steps);
  }
}

TEST_CASE("verify_draft: distributions that differ by rounding alone") {
  const std::vector<float> q = {0.0f, 1.0f}, p = {0.0f, 0.9999999f, 0.0f, 1.0f}, u = {0.99999994f}, r = {0.5f, 0.5f};
  const std::int32_t draft[] = {1};
  const auto v = mote::verify_draft(draft, {q.data(), 1, 2}, {p.data(), 2, 2}, u, r);
  CHECK(v.next_token == 1);
}

TEST_CASE("verify_draft_greedy: accepts while drafts are the most probable tokens") {
  const std::vector<float> target = {0.1f, 0.7f, 0.2f, 0.6f, 0.3f, 0.1f, 0.2f, 0.4f, 0.4f};
  const mote::view<const float, 2> rows(target.data(), 3, 3);
  const auto check = [&](std::vector<std::int32_t> draft, std::size_t accepted, std::int32_t next) {
    const auto v = mote::verify_draft_greedy(draft, rows);
    CHECK(v.accepted == accepted);
    CHECK(v.next_token == next);
  };
  check({1, 0}, 2, 1);  // of two as probable the lower
  check({1, 2}, 1, 0);
  check({0, 0}, 0, 1);
}

TEST_CASE("verify_draft: what does not fit is refused by name") {
  const std::vector<float> values(6, 0.5f);
  const std::int32_t draft[] = {1}, beyond[] = {2};
  const std::vector<float> u = {0.5f}, r = {0.5f, 0.5f};
  const mote::view<const float, 2> q(values.data(), 1, 2), p(values.data(), 2, 2);
  CHECK_THROWS_WITH(mote::verify_draft(draft, p, p, u, r), contains("verify_draft: draft_probs"));
  CHECK_THROWS_WITH(mote::verify_draft(draft, q, q, u, r), contains("verify_draft: target_probs"));
  CHECK_THROWS_WITH(mote::verify_draft(draft, q, p, r, r), contains("verify_draft: uniforms"));
  CHECK_THROWS_WITH(mote::verify_draft(beyond, q, p, u, r), contains("token outside the vocabulary"));
  const mote::view<const float, 2> strided(values.data(), {2, 2}, {3, 2}), none(values.data(), 2, 0);
  CHECK_THROWS_WITH(mote::verify_draft_greedy(draft, strided), contains("verify_draft_greedy: target"));
  CHECK_THROWS_WITH(mote::verify_draft_greedy(draft, none), contains("expected a vocabulary"));
}
