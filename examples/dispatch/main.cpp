// One program for every machine of a family: kernels built for several instruction sets, picked at run time.
// Runs each variant that this machine can run and compares it with plain loops; exit code 1 if one differs.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "kernels_variants.hpp"

namespace {

constexpr std::size_t tokens = 5, hidden = 67, out = 35;

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 0.0f;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

}  // namespace

int main() {
  std::vector<float> x(tokens * hidden), weight(hidden), w(out * hidden);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i));
  for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = 1.0f + 0.1f * std::cos(static_cast<float>(i));
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = 0.2f * std::sin(0.7f * static_cast<float>(i));

  std::vector<float> normed(x.size()), product(tokens * out);
  for (std::size_t t = 0; t < tokens; ++t) {
    double squares = 0.0;
    for (std::size_t i = 0; i < hidden; ++i) squares += static_cast<double>(x[t * hidden + i]) * x[t * hidden + i];
    const double scale = 1.0 / std::sqrt(squares / hidden + 1e-6);
    for (std::size_t i = 0; i < hidden; ++i) {
      normed[t * hidden + i] = static_cast<float>(x[t * hidden + i] * scale * weight[i]);
    }
    for (std::size_t n = 0; n < out; ++n) {
      double sum = 0.0;
      for (std::size_t k = 0; k < hidden; ++k) sum += static_cast<double>(x[t * hidden + k]) * w[n * hidden + k];
      product[t * out + n] = static_cast<float>(sum);
    }
  }

  bool equal = true;
  for (const kernels* variant : kernels_supported()) {
    std::vector<float> y(x.size()), z(tokens * out);
    variant->rms_norm(x.data(), weight.data(), 1e-6f, y.data(), tokens, hidden);
    variant->matmul(x.data(), w.data(), z.data(), tokens, hidden, out);
    const float difference = std::max(largest_difference(y, normed), largest_difference(z, product));
    std::printf("%-36s largest difference %.1e\n", variant->name, static_cast<double>(difference));
    equal = equal && difference < 1e-5f;
  }
  std::printf("this machine's best: %s\n", kernels_best().name);
  return equal ? 0 : 1;
}
