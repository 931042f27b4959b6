#include <mote/core/vector_math.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/catch.hpp"

namespace {

using arch = mote::default_arch;
using vector = mote::batch<float, arch>;

float first(const vector& x) {
  float lanes[vector::size];
  x.store_unaligned(lanes);
  return lanes[0];
}

float exp_vector(float x) { return first(mote::detail::exp_vector<arch>(vector(x))); }
float exp_nonpositive(float x) { return first(mote::detail::exp_nonpositive<arch>(vector(x))); }

double relative_error(float got, float x) {
  const double want = std::exp(static_cast<double>(x));
  return std::abs(got - want) / want;
}

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

}  // namespace

TEST_CASE("exp_vector is exp to 2 ulp") {
  double worst = 0;
  for (float x = -87.3f; x < 88.7f; x += 0.0137f) worst = std::max(worst, relative_error(exp_vector(x), x));
  CHECK(worst <= 2.4e-7);
  CHECK(exp_vector(0.0f) == 1.0f);
  CHECK(exp_vector(-88.0f) == 0.0f);
  CHECK(exp_vector(-infinity) == 0.0f);
  CHECK(exp_vector(89.0f) == infinity);
  CHECK(exp_vector(infinity) == infinity);
  CHECK(std::isnan(exp_vector(not_a_number)));
}

TEST_CASE("exp_nonpositive is exp to 2 ulp and the rounding of x") {
  double worst = 0;
  for (float x = -87.3f; x <= 0.0f; x += 0.0037f) {
    worst = std::max(worst, relative_error(exp_nonpositive(x), x) / (2.4e-7 - 1.2e-7 * static_cast<double>(x)));
  }
  CHECK(worst <= 1.0);
  CHECK(exp_nonpositive(0.0f) == 1.0f);
  CHECK(exp_nonpositive(-0.0f) == 1.0f);
  CHECK(exp_nonpositive(-88.0f) == 0.0f);
  CHECK(exp_nonpositive(-1e30f) == 0.0f);
  CHECK(exp_nonpositive(-infinity) == 0.0f);
  CHECK(std::isnan(exp_nonpositive(not_a_number)));
  CHECK(std::isnan(exp_nonpositive(std::nanf("0x1ff"))));
}
