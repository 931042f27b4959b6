#include <mote/decode/sampler.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"

namespace {

const std::vector<float> logits = {0.0f, 1.0f, 2.0f, 3.0f, -1.0f};

std::vector<int> draw(const mote::sampling_config& config, int draws = 20000) {
  mote::sampler sampler(config, logits.size());
  std::vector<int> count(logits.size());
  for (int i = 0; i < draws; ++i) ++count[static_cast<std::size_t>(sampler.sample(logits))];
  return count;
}

// The distribution over the tokens listed, by softmax at a temperature.
std::vector<double> expected(const std::vector<std::size_t>& kept, double temperature = 1.0) {
  std::vector<double> p(logits.size());
  double total = 0.0;
  for (const std::size_t i : kept) total += p[i] = std::exp(static_cast<double>(logits[i]) / temperature);
  for (double& v : p) v /= total;
  return p;
}

void check_distribution(const mote::sampling_config& config, const std::vector<double>& p) {
  const auto count = draw(config);
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double share = count[i] / 20000.0;
    CHECK(std::abs(share - p[i]) <= 4.0 * std::sqrt(p[i] * (1.0 - p[i]) / 20000.0));
  }
}

}  // namespace

TEST_CASE("sampler: draws follow the filtered distribution") {
  check_distribution({.seed = 1}, expected({0, 1, 2, 3, 4}));
  check_distribution({.temperature = 2.0f, .seed = 2}, expected({0, 1, 2, 3, 4}, 2.0));
  check_distribution({.top_k = 2, .seed = 3}, expected({2, 3}));
  check_distribution({.top_k = 99, .seed = 3}, expected({0, 1, 2, 3, 4}));
  check_distribution({.top_p = 0.8f, .seed = 4}, expected({2, 3}));  // 0.636 + 0.234
  check_distribution({.top_p = 0.6f, .seed = 5}, expected({3}));
  check_distribution({.min_p = 0.1f, .seed = 6}, expected({1, 2, 3}));  // e^-2 = 0.135, e^-3 = 0.05
  check_distribution({.top_k = 3, .top_p = 0.95f, .min_p = 0.2f, .seed = 7}, expected({2, 3}));
}

TEST_CASE("sampler: a seed fixes the draws") {
  CHECK(draw({.seed = 11}) == draw({.seed = 11}));
  CHECK(draw({.seed = 11}) != draw({.seed = 12}));
}

TEST_CASE("sampler: greedy takes the largest logit, ties to the lower id") {
  mote::sampler greedy({.temperature = 0.0f}, 4);
  CHECK(greedy.sample(std::array{1.0f, 5.0f, 5.0f, 2.0f}) == 1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(greedy.sample(std::array{nan, 1.0f, 2.0f, nan}) == 2);
  CHECK_THROWS_AS(greedy.sample(std::array{nan, nan, nan, nan}), mote::shape_error);
  CHECK_THROWS_AS(greedy.sample(std::array{1.0f}), mote::shape_error);
}

TEST_CASE("sampler: the repetition penalty makes seen tokens less likely, whatever their sign") {
  mote::sampler penalised({.temperature = 0.0f, .repetition_penalty = 2.0f}, 3);
  CHECK(penalised.sample(std::array{3.0f, 2.0f, -1.0f}) == 0);
  penalised.observe(0);
  CHECK(penalised.sample(std::array{3.0f, 2.0f, -1.0f}) == 1);
  CHECK(penalised.sample(std::array{-1.0f, -3.0f, -1.5f}) == 2);
  CHECK_THROWS_AS(penalised.observe(3), mote::shape_error);
  CHECK_THROWS_AS(penalised.observe(-1), mote::shape_error);
}

TEST_CASE("sampler: values out of range are named") {
  CHECK_THROWS_WITH(mote::sampler({.temperature = -1.0f}, 2), contains("temperature"));
  CHECK_THROWS_WITH(mote::sampler({.top_p = 0.0f}, 2), contains("top_p"));
  CHECK_THROWS_WITH(mote::sampler({.min_p = 2.0f}, 2), contains("min_p"));
  CHECK_THROWS_WITH(mote::sampler({.repetition_penalty = 0.0f}, 2), contains("repetition_penalty"));
  CHECK_THROWS_WITH(mote::sampler({}, 0), contains("vocab_size"));
}
