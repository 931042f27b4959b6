#include <mote/compress/mixed_precision.hpp>
#include <mote/compress/sensitivity.hpp>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

namespace {

using options = std::vector<std::vector<mote::layer_option>>;

// Every choice of every layer.
template <class Function>
void for_each_choice(const options& layers, Function&& f) {
  std::vector<std::size_t> choice(layers.size());
  for (;;) {
    std::size_t bytes = 0;
    double error = 0.0;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      bytes += layers[l][choice[l]].bytes;
      error += layers[l][choice[l]].error;
    }
    f(bytes, error);
    std::size_t l = 0;
    while (l < layers.size() && ++choice[l] == layers[l].size()) choice[l++] = 0;
    if (l == layers.size()) return;
  }
}

double best_error(const options& layers, std::size_t budget) {
  double best = std::numeric_limits<double>::infinity();
  for_each_choice(layers, [&](std::size_t bytes, double error) {
    if (bytes <= budget) best = std::min(best, error);
  });
  return best;
}

std::size_t best_bytes(const options& layers, double budget) {
  std::size_t best = std::numeric_limits<std::size_t>::max();
  for_each_choice(layers, [&](std::size_t bytes, double error) {
    if (error <= budget) best = std::min(best, bytes);
  });
  return best;
}

// Layers of different sizes and sensitivities; more bits, less error, now and then not quite.
options random_layers(test::random_source& random, std::size_t count) {
  options layers(count);
  for (auto& layer : layers) {
    const std::size_t elements = 100 + random.below(1000);
    const float sensitivity = std::exp(random.normal(1, 2.0f)[0]);
    for (const std::size_t bits : {4u, 5u, 6u, 8u, 16u}) {
      const float noise = std::exp(random.normal(1, 0.5f)[0]);
      const float error = bits == 16 ? 0.0f : sensitivity * noise * std::exp2(-2.0f * static_cast<float>(bits));
      layer.push_back({elements * bits / 8, static_cast<double>(error)});
    }
  }
  return layers;
}

void check_sums(const options& layers, const mote::assignment& a) {
  std::size_t bytes = 0;
  double error = 0.0;
  REQUIRE(a.choice.size() == layers.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    bytes += layers[l][a.choice[l]].bytes;
    error += layers[l][a.choice[l]].error;
  }
  CHECK(a.bytes == bytes);
  CHECK(a.error == error);
}

}  // namespace

TEST_CASE("mixed precision: against every possible choice") {
  test::random_source random(1);
  double error_excess = 0.0, bytes_excess = 0.0;
  int exact = 0, cases = 0;
  for (int trial = 0; trial < 20; ++trial) {
    const auto layers = random_layers(random, 6);
    std::size_t smallest = 0, largest = 0;
    double worst = 0.0;
    for (const auto& layer : layers) {
      smallest += layer.front().bytes;
      largest += layer.back().bytes;
      worst += layer.front().error;
    }
    for (int step = 0; step <= 10; ++step) {
      ++cases;
      const std::size_t budget = smallest + (largest - smallest) * static_cast<std::size_t>(step) / 10;
      const auto a = mote::assign_within_bytes(layers, budget);
      check_sums(layers, a);
      CHECK(a.bytes <= budget);
      const double best = best_error(layers, budget);
      CHECK(a.error >= best * (1.0 - 1e-12));
      exact += a.error <= best * (1.0 + 1e-12);
      error_excess += best > 0.0 ? a.error / best - 1.0 : a.error;

      const double allowed = worst * std::pow(0.5, step);
      const auto b = mote::assign_within_error(layers, allowed);
      check_sums(layers, b);
      CHECK(b.error <= allowed);
      const std::size_t least = best_bytes(layers, allowed);
      CHECK(b.bytes >= least);
      bytes_excess += static_cast<double>(b.bytes) / static_cast<double>(least) - 1.0;
    }
  }
  CAPTURE(exact, cases, error_excess / cases, bytes_excess / cases);
  CHECK(exact > cases / 2);
  CHECK(error_excess / cases < 0.1);
  CHECK(bytes_excess / cases < 0.02);
}

TEST_CASE("mixed precision: optimal at the corners of the hull") {
  test::random_source random(2);
  for (int trial = 0; trial < 20; ++trial) {
    const auto layers = random_layers(random, 5);
    // A corner for each price of a byte: every layer minimises error + price · bytes by itself.
    for (int power = -20; power <= 4; ++power) {
      const double price = std::exp2(power);
      std::size_t bytes = 0;
      double error = 0.0;
      for (const auto& layer : layers) {
        const auto cost = [&](const auto& o) { return o.error + price * static_cast<double>(o.bytes); };
        const auto& best = *std::min_element(layer.begin(), layer.end(),
                                             [&](const auto& a, const auto& b) { return cost(a) < cost(b); });
        bytes += best.bytes;
        error += best.error;
      }
      CHECK(mote::assign_within_bytes(layers, bytes).error == error);
      CHECK(mote::assign_within_error(layers, error).bytes == bytes);
    }
  }
}

TEST_CASE("mixed precision: options off the hull are taken where the next one on it does not fit") {
  // 150 bytes lie above the line from 100 to 200.
  const options layers = {{{100, 1.0}, {150, 0.6}, {200, 0.0}}, {{100, 0.1}, {300, 0.0}}};
  const auto a = mote::assign_within_bytes(layers, 260);
  CHECK(a.choice == std::vector<std::size_t>{1, 0});
  CHECK(a.bytes == 250);
  const auto b = mote::assign_within_error(layers, 0.75);
  CHECK(b.choice == std::vector<std::size_t>{1, 0});
  CHECK(b.bytes == 250);
}

TEST_CASE("mixed precision: the sensitive layer keeps bf16, equal layers are served in order") {
  const std::vector<mote::layer_option> robust = {{100, 0.01}, {200, 0.001}, {400, 0.0}};
  const std::vector<mote::layer_option> sensitive = {{100, 5.0}, {200, 2.0}, {400, 0.0}};
  const options layers = {robust, sensitive, robust, robust};
  const auto a = mote::assign_within_bytes(layers, 800);
  CHECK(a.choice == std::vector<std::size_t>{1, 2, 0, 0});
  CHECK(mote::assign_within_bytes(layers, 700).choice == std::vector<std::size_t>{0, 2, 0, 0});
  CHECK(mote::assign_within_error(layers, 0.0).choice == std::vector<std::size_t>{2, 2, 2, 2});
  CHECK(mote::assign_within_error(layers, 0.02101).choice == std::vector<std::size_t>{1, 2, 0, 0});
  CHECK(mote::assign_within_bytes(layers, 1u << 20).error == 0.0);
  CHECK(mote::assign_within_bytes({}, 0).choice.empty());
}

TEST_CASE("mixed precision: impossible budgets and bad options are refused") {
  const options layers = {{{100, 1.0}, {50, 2.0}}, {{30, 0.5}}};
  CHECK_THROWS_WITH(mote::assign_within_bytes(layers, 79), contains("at least 80 bytes, got 79"));
  CHECK(mote::assign_within_bytes(layers, 80).error == 2.5);
  CHECK_THROWS_WITH(mote::assign_within_error(layers, 1.4), contains("at least 1.5"));
  CHECK_THROWS_WITH(mote::assign_within_bytes(options{{{1, 1.0}}, {}}, 10), contains("layer 1 has no option"));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(mote::assign_within_bytes(options{{{1, nan}}}, 10), contains("layer 0: expected finite errors"));
}

TEST_CASE("sensitivity: loss above the baseline, never below zero") {
  std::vector<std::pair<std::size_t, std::size_t>> asked;
  const auto errors = mote::perplexity_sensitivity(2, 2, 20.0, [&](std::size_t layer, std::size_t option) {
    asked.emplace_back(layer, option);
    return layer == 0 ? (option == 0 ? 40.0 : 20.0) : (option == 0 ? 19.9 : 22.0);
  });
  CHECK(asked == std::vector<std::pair<std::size_t, std::size_t>>{{0, 0}, {0, 1}, {1, 0}, {1, 1}});
  CHECK(errors[0][0] == Approx(std::log(2.0)));
  CHECK(errors[0][1] == 0.0);
  CHECK(errors[1][0] == 0.0);
  CHECK(errors[1][1] == Approx(std::log(1.1)));
  const auto bad = [](std::size_t, std::size_t) { return std::numeric_limits<double>::quiet_NaN(); };
  CHECK_THROWS_WITH(mote::perplexity_sensitivity(1, 1, 20.0, bad), contains("layer 0, option 0: expected a positive"));
  CHECK_THROWS_WITH(mote::perplexity_sensitivity(1, 1, 0.0, bad), contains("baseline"));
}
